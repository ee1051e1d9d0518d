"""Surrogate objectives of ONE task, to be MAXIMISED: their derivatives estimate those of the expected return.

Every surrogate has the signature `surrogate(log_prob [N, T], batch, *, discount, gae_lambda) -> []` and
differentiates through `log_prob` alone. With J the expected return of an episode, at the behaviour policy's
parameters and with undiscounted returns, all have the gradient of J / T; they differ elsewhere:

  name         value at other parameters    second derivative
  reinforce    no meaning                   Hessian of log-probabilities alone
  ratio        importance-weighted,         and each step's own score outer product; no credit from a step's
               per step                     action to the score of an earlier one (Rothfuss et al. 2019)
  ppo-clip     as `ratio`, pessimistic      as `ratio` where unclipped
  low-variance-curvature  as `reinforce`    as `ratio`, at any parameters (Rothfuss et al. 2019)
  dice         none: its magic boxes are    unbiased; high variance
  loaded-dice  always 1, so only local      unbiased, with per-step advantages: lower variance

The sum over steps is divided by the static N * T and not by `sum(mask)`, which is random: it depends on the
policy through the lengths of episodes, and dividing by it would bias the estimate (long episodes would weigh
less). So a surrogate is linear in the weight that `mask` gives an episode.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from jmeta.types import Array, PolicyInput


class PolicyGradientBatch(NamedTuple):
    """Episodes of one task, with everything that a surrogate needs. All of it is data: not differentiated."""

    inputs: PolicyInput  # [N, T, ...]
    action: Array  # [N, T, A] float or [N, T] int32
    log_prob: Array  # [N, T] of the behaviour policy
    advantage: Array  # [N, T]
    target: Array  # [N, T] the critic's regression target; no surrogate reads it
    reward: Array  # [N, T]
    value: Array  # [N, T] baseline: an estimate of the discounted return from this step on
    mask: Array  # [N, T] 0 on steps not taken, else the episode's weight, usually 1
    terminated: Array  # [N, T] bool; with `last_value` what other advantages of the batch need
    last_value: Array  # [N] value after the last step; 0 where nothing bootstraps


class Surrogate(Protocol):
    """An objective to maximise for one task: (log_prob [N, T], batch, *, discount, gae_lambda) -> []."""

    def __call__(
        self, log_prob: Array, batch: PolicyGradientBatch, *, discount: float, gae_lambda: float
    ) -> Array:
        """Returns the objective [] at the policy whose log-probabilities of `batch.action` are given."""
        ...


def reinforce(log_prob: Array, batch: PolicyGradientBatch, *, discount: float, gae_lambda: float) -> Array:
    """Mean of log-probability times advantage (Williams 1992). For first derivatives only.

    Args:
      log_prob: [N, T] of `batch.action` under the policy that is differentiated.
      batch: the task's episodes.
      discount: unused: it is in the advantages.
      gae_lambda: unused: it is in the advantages.

    Returns:
      [] objective.
    """
    del discount, gae_lambda
    batch = _checked(log_prob, batch)
    return _mean(batch.mask, log_prob * batch.advantage)


def ratio(log_prob: Array, batch: PolicyGradientBatch, *, discount: float, gae_lambda: float) -> Array:
    """Mean of likelihood ratio to the behaviour policy times advantage.

    Its derivatives are those of `low_variance_curvature` at the behaviour policy's parameters, where the
    stored log-probabilities equal the stopped ones.

    Args:
      log_prob: [N, T] of `batch.action` under the policy that is differentiated.
      batch: the task's episodes.
      discount: unused: it is in the advantages.
      gae_lambda: unused: it is in the advantages.

    Returns:
      [] objective.
    """
    del discount, gae_lambda
    batch = _checked(log_prob, batch)
    return _mean(batch.mask, _likelihood_ratio(log_prob, batch) * batch.advantage)


def low_variance_curvature(
    log_prob: Array, batch: PolicyGradientBatch, *, discount: float, gae_lambda: float
) -> Array:
    """Low-variance curvature, LVC (Rothfuss et al. 2019, ProMP, eq. 10).

    The ratio is to the very policy that is differentiated and not to the stored one: the same as `ratio` at
    the behaviour policy, and without importance weights elsewhere.

    Args:
      log_prob: [N, T] of `batch.action` under the policy that is differentiated.
      batch: the task's episodes.
      discount: unused: it is in the advantages.
      gae_lambda: unused: it is in the advantages.

    Returns:
      [] objective; its value is the mean advantage whatever the policy.
    """
    del discount, gae_lambda
    batch = _checked(log_prob, batch)
    return _mean(batch.mask, _magic_box(_valid(batch, log_prob)) * batch.advantage)


def ppo_clip(
    log_prob: Array, batch: PolicyGradientBatch, *, discount: float, gae_lambda: float, clip: float = 0.2
) -> Array:
    """The clipped likelihood-ratio objective (Schulman et al. 2017, eq. 7).

    Args:
      log_prob: [N, T] of `batch.action` under the policy that is differentiated.
      batch: the task's episodes.
      discount: unused: it is in the advantages.
      gae_lambda: unused: it is in the advantages.
      clip: largest distance of the ratio from 1 that is rewarded.

    Returns:
      [] objective.
    """
    del discount, gae_lambda
    batch = _checked(log_prob, batch)
    likelihood_ratio = _likelihood_ratio(log_prob, batch)
    clipped = jnp.clip(likelihood_ratio, 1 - clip, 1 + clip)
    return _mean(batch.mask, jnp.minimum(likelihood_ratio * batch.advantage, clipped * batch.advantage))


def dice(log_prob: Array, batch: PolicyGradientBatch, *, discount: float, gae_lambda: float) -> Array:
    """DiCE: derivatives of every order are unbiased (Foerster et al. 2018, eqs. 7 and 9).

    Uses rewards and the baseline, not the advantages: there is no bootstrap at the time limit. The baseline
    term reduces the variance of the first derivative alone; at higher orders it keeps the mean and does
    little for the variance (Farquhar et al. 2019), which is what `loaded-dice` is for. Rewards are discounted
    from the episode's start, so later steps weigh less than in `ratio` where `discount` < 1.

    Args:
      log_prob: [N, T] of `batch.action` under the policy that is differentiated.
      batch: the task's episodes.
      discount: in [0, 1], per step; `batch.value` must estimate returns under it.
      gae_lambda: unused: no advantages.

    Returns:
      [] objective; its value is the discounted return / T whatever the policy, and only its derivatives at
      the behaviour policy's parameters have a meaning.
    """
    del gae_lambda
    batch = _checked(log_prob, batch)
    log_prob = _valid(batch, log_prob)
    rewards = _magic_box(jnp.cumsum(log_prob, axis=-1)) * batch.reward
    baselines = (1 - _magic_box(log_prob)) * batch.value
    return _mean(batch.mask, _discounts(batch, discount) * (rewards + baselines))


def loaded_dice(
    log_prob: Array,
    batch: PolicyGradientBatch,
    *,
    discount: float,
    gae_lambda: float,
    dependency_decay: float = 1.0,
) -> Array:
    """Loaded DiCE: DiCE for any advantage estimator (Farquhar et al. 2019, algorithm 1).

    Unbiased at every order if the advantages are and `dependency_decay` is 1; at 0 it is `ratio` with
    discounted steps. Advantages are discounted from the episode's start, as in the paper: later steps weigh
    less than in `ratio` where `discount` < 1.

    Args:
      log_prob: [N, T] of `batch.action` under the policy that is differentiated.
      batch: the task's episodes.
      discount: in [0, 1], per step.
      gae_lambda: unused: it is in the advantages, and is not the paper's λ (its τ).
      dependency_decay: the paper's λ, in [0, 1]: how much an advantage depends on each earlier action, per
        step of distance. Below 1 higher derivatives trade bias for variance; the first is unchanged.

    Returns:
      [] objective; its value is 0 whatever the policy, and only its derivatives at the behaviour policy's
      parameters have a meaning.
    """
    del gae_lambda
    batch = _checked(log_prob, batch)
    log_prob = _valid(batch, log_prob)
    inclusive = _decayed_cumsum(log_prob, dependency_decay)
    dependencies = _magic_box(inclusive) - _magic_box(inclusive - log_prob)
    return _mean(batch.mask, _discounts(batch, discount) * dependencies * batch.advantage)


SURROGATES: dict[str, Surrogate] = {
    "reinforce": reinforce,
    "ratio": ratio,
    "low-variance-curvature": low_variance_curvature,
    "dice": dice,
    "loaded-dice": loaded_dice,
    "ppo-clip": ppo_clip,
}

# Those whose value says how good a policy other than the sampling one is: an importance-weighted estimate.
COMPARABLE = ("ratio", "ppo-clip")


def _checked(log_prob: Array, batch: PolicyGradientBatch) -> PolicyGradientBatch:
    """Asserts [N, T] and stops the gradient at everything stored."""
    chex.assert_rank(log_prob, 2)
    stored = [batch.log_prob, batch.advantage, batch.reward, batch.value, batch.mask]
    chex.assert_equal_shape([log_prob, *stored])
    return jax.lax.stop_gradient(batch)


def _mean(mask: Array, x: Array) -> Array:
    return jnp.sum(mask * x) / mask.size


def _valid(batch: PolicyGradientBatch, log_prob: Array) -> Array:
    # A step not taken is no stochastic node. The weight of an episode does not belong in here.
    return jnp.where(batch.mask > 0, log_prob, 0)


def _likelihood_ratio(log_prob: Array, batch: PolicyGradientBatch) -> Array:
    return jnp.exp(_valid(batch, log_prob - batch.log_prob))


def _magic_box(x: Array) -> Array:
    """1 in value, and multiplies a derivative by that of x."""
    return jnp.exp(x - jax.lax.stop_gradient(x))


def _discounts(batch: PolicyGradientBatch, discount: float) -> Array:
    return discount ** jnp.arange(batch.mask.shape[-1], dtype=batch.mask.dtype)


def _decayed_cumsum(x: Array, decay: float) -> Array:
    """[N, T]: the sum over s <= t of decay^(t - s) x_s."""
    if decay == 1:
        return jnp.cumsum(x, axis=-1)

    def forward(earlier: Array, x_t: Array) -> tuple[Array, Array]:
        total = decay * earlier + x_t
        return total, total

    return jax.lax.scan(forward, jnp.zeros_like(x[:, 0]), x.T)[1].T
