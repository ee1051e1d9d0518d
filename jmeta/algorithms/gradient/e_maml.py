"""E-MAML: credit to the sampling that adaptation learns from (Stadie et al., 2018, arXiv 1803.01118)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmeta.algorithms.gradient import outer
from jmeta.checks import not_negative
from jmeta.estimators.advantages import NEGLIGIBLE, root_mean_square
from jmeta.estimators.surrogates import ppo_clip
from jmeta.hyperparameters import hyperparameters_of
from jmeta.inner import policy_gradient as pg
from jmeta.inner.loop import mean_return
from jmeta.types import Array, MetaAlgorithm, Params, Policy, PyTree, TaskFamily


@hyperparameters_of(outer.assemble, without=("inner",))
def e_maml(
    family: TaskFamily,
    policy: Policy,
    *,
    exploration_weight: float = 1.0,
    surrogate: str = "reinforce",
    **others: Any,
) -> MetaAlgorithm:
    """MAML, and the score of every action before adaptation times the return after it (eq. 7).

    With `surrogate="reinforce"`, whose second derivative is of the log-probabilities alone, the two terms are
    the whole gradient of the return after learning from N episodes, for every N. The other surrogates have
    some of the samples' dependence on the parameters in their Hessian, which then counts twice. Every inner
    step's episodes get credit, under the policy that sampled them as a function of the initial parameters, so
    it is right for several steps. The credit of a task is its return less the mean of the others', a baseline
    that leaves it unbiased; in a batch of one task there is none. It is in the units of the outer surrogate:
    per step, and divided by what advantages are normalised by; it is not discounted. Over several epochs it
    is clipped as in PPO. Its variance does not fall with the number of episodes, and is large for long ones.

    Args:
      exploration_weight: weight of that term; 1 is unbiased, less trades bias for variance, 0 is `maml`.
      surrogate: objective of the inner step, a name in `estimators.surrogates.SURROGATES`.

    Raises:
      ValueError: an argument is out of its range.
    """
    not_negative(exploration_weight=exploration_weight)
    parts = outer.assemble(family, policy, surrogate=surrogate, **others)

    def prepare(params: Params, batch: outer.Batch) -> PyTree:
        del params
        post, kept = batch.collected.post, batch.kept
        returns = jnp.where(kept > 0, mean_return(post), 0)  # [B]
        num_others = jnp.maximum(kept.sum() - kept, 1)
        others = (returns.sum() - returns) / num_others
        spread = jax.vmap(_spread)
        raw, used = (spread(x, post.mask) for x in (post.target - post.value, post.advantage))
        # Where the rewards of a task are no signal, there is no spread that its advantages were divided by.
        divided = (used > 0) & (raw > NEGLIGIBLE * jax.vmap(root_mean_square)(post.target, post.mask))
        # Surrogates average over episodes and steps: here both are summed, of the return per step.
        credit = post.mask.shape[1] * (returns - others)
        return jnp.where(divided, used / jnp.where(divided, raw, 1), 1.0) * credit

    def loss(adapted: Params, path: Params, data: outer.Collected, credit: Array) -> Array:
        def explored(params: Params, batch: PyTree) -> Array:
            output = pg.unroll(policy, params, batch.inputs)
            log_prob = jax.vmap(jax.vmap(policy.distribution.log_prob))(output.distribution, batch.action)
            batch = batch._replace(advantage=jnp.full_like(batch.advantage, credit))
            return ppo_clip(log_prob, batch, discount=1.0, gae_lambda=1.0)

        bonus = jax.vmap(explored)(path, data.pre).sum()
        return parts.learner.loss(adapted, data.post) - exploration_weight * bonus

    return outer.algorithm(parts, loss=loss, prepare=prepare)


def _spread(x: Array, mask: Array) -> Array:
    """Standard deviation [] over the steps [N, T] of a task."""
    mean = (mask * x).sum() / jnp.maximum(mask.sum(), 1)
    return root_mean_square(x - mean, mask)
