"""Learning from sampled episodes by policy gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta import rollouts
from jmeta.checks import at_least, boolean, in_unit_interval, one_of
from jmeta.estimators import advantages, baselines
from jmeta.estimators.surrogates import SURROGATES, PolicyGradientBatch
from jmeta.inner.loop import Learner
from jmeta.types import (
    Adapted,
    Array,
    InnerLoop,
    Key,
    Metrics,
    Params,
    Policy,
    PolicyInput,
    PolicyOutput,
    PyTree,
    Rollout,
    Task,
    TaskFamily,
)

Loss = Callable[
    [PolicyOutput, PolicyGradientBatch], Array
]  # the policy's output [N, T, ...] on the batch, batch
BASELINES = ("linear", "value", "none")
_VALUE_COEFFICIENT = 0.5
# Updates that learn stay below 0.1. Where one of many epochs leaves the region that the old episodes
# describe, the gradient of the inner steps that are repeated on them explodes, and 16 to 250 were seen: one
# such update loses all that was learned.
_MAX_KL = 1.0


class PolicyGradient(NamedTuple):
    """What inner and outer loops share: how data is collected, and the loss on it."""

    # adapted, task, key -> N episodes with their advantages
    collect: Callable[[Adapted, Task, Key], PolicyGradientBatch]
    loss: Callable[[str], Loss]  # name of a surrogate -> loss to minimise


def estimator(
    family: TaskFamily,
    policy: Policy,
    *,
    num_episodes: int,
    discount: float,
    gae_lambda: float,
    baseline: str,
    normalize_advantages: bool,
) -> PolicyGradient:
    """Collects episodes, estimates advantages, and turns surrogates into losses.

    Args:
      family: tasks and their environment.
      policy: the policy; with `baseline="value"` its critic is trained by the same loss.
      num_episodes: N, episodes of one task in a batch.
      discount: in [0, 1].
      gae_lambda: in [0, 1]; 1 gives Monte Carlo returns minus the baseline, less trades variance for the
        bias of the baseline (with "none", for a shorter horizon: the discount is then their product).
      baseline: "linear" (fitted on every batch again, so per task and per inner step, to the other episodes),
        "value" (the policy's critic, which bootstraps at the time limit) or "none".
      normalize_advantages: to zero mean and unit standard deviation over the steps of the batch.

    Raises:
      ValueError: a value is out of its range.
    """
    at_least(1, num_episodes=num_episodes)
    in_unit_interval(discount=discount, gae_lambda=gae_lambda)
    boolean(normalize_advantages=normalize_advantages)
    one_of(BASELINES, baseline=baseline)
    if not policy.differentiable:
        raise ValueError(
            "policy gradients need a policy whose probabilities have derivatives, got one without (tabular?)"
        )
    if baseline == "value" and not policy.has_critic:
        raise ValueError(
            "baseline 'value' needs a policy with a critic: mlp(..., critic=True), got one without"
        )

    def collect_episodes(adapted: Adapted, task: Task, key: Key) -> PolicyGradientBatch:
        return collect(
            family,
            policy,
            adapted,
            task,
            key,
            num_episodes=num_episodes,
            discount=discount,
            gae_lambda=gae_lambda,
            baseline=baseline,
            normalize_advantages=normalize_advantages,
        )

    def loss(surrogate: str) -> Loss:
        def loss_fn(output: PolicyOutput, batch: PolicyGradientBatch) -> Array:
            log_prob = jax.vmap(jax.vmap(policy.distribution.log_prob))(output.distribution, batch.action)
            objective = SURROGATES[surrogate](log_prob, batch, discount=discount, gae_lambda=gae_lambda)
            if baseline != "value":
                return -objective
            error = jnp.mean(batch.mask * jnp.square(output.value - batch.target))
            return _VALUE_COEFFICIENT * error - objective

        return loss_fn

    return PolicyGradient(collect_episodes, loss)


def collect(
    family: TaskFamily,
    policy: Policy,
    adapted: Adapted,
    task: Task,
    key: Key,
    *,
    num_episodes: int,
    discount: float | Array,
    gae_lambda: float | Array,
    baseline: str,
    normalize_advantages: bool,
) -> PolicyGradientBatch:
    """Episodes of one task with their advantages; arguments as of `estimator`, here not checked."""
    rollout = rollouts.batch(family.env, policy, adapted, task, key, num_episodes)
    last_value = jnp.zeros_like(rollout.last_value)
    if baseline == "value":
        value, last_value = rollout.value, rollout.last_value
    elif baseline == "linear":
        value = baselines.linear_baseline(rollout.inputs.obs, returns_to_go(rollout, discount), rollout.mask)
    else:
        value = jnp.zeros_like(rollout.reward)
    batch = PolicyGradientBatch(
        inputs=rollout.inputs,
        action=rollout.action,
        log_prob=rollout.log_prob,
        advantage=value,
        target=value,
        reward=rollout.reward,
        value=value,
        mask=rollout.mask,
        terminated=rollout.terminated,
        last_value=last_value,
    )
    advantage, target = estimate_advantages(
        batch, discount=discount, gae_lambda=gae_lambda, normalize_advantages=normalize_advantages
    )
    return batch._replace(advantage=advantage, target=target)


def returns_to_go(episodes: Rollout | PolicyGradientBatch, discount: float | Array) -> Array:
    """Discounted returns [N, T] from each step of some episodes on."""
    returns = functools.partial(advantages.discounted_returns, discount=discount)
    return jax.vmap(returns)(episodes.reward, episodes.mask)


def estimate_advantages(
    batch: PolicyGradientBatch,
    *,
    discount: float | Array,
    gae_lambda: float | Array,
    normalize_advantages: bool,
) -> tuple[Array, Array]:
    """Advantages of one task's episodes, and the targets of its critic.

    Normalized advantages are 0 where the rewards are no signal (`advantages.has_signal`), because normalizing
    would blow up what is left of them. Others stay as they are: they are small, and it would bias them.

    Args:
      batch: the episodes, whose `advantage` and `target` are not read.
      discount: in [0, 1], per step.
      gae_lambda: in [0, 1].
      normalize_advantages: to zero mean and unit standard deviation over the steps of the batch.

    Returns:
      advantage: [N, T].
      target: [N, T].
    """
    gae = jax.vmap(functools.partial(advantages.gae, discount=discount, gae_lambda=gae_lambda))
    advantage, target = gae(batch.reward, batch.value, batch.last_value, batch.terminated, batch.mask)
    if normalize_advantages:
        size = advantages.root_mean_square(returns_to_go(batch, discount), batch.mask)
        signal = advantages.has_signal(batch.reward, batch.mask)
        advantage = jnp.where(signal, advantage, 0)
        advantage = advantages.normalize(advantage, batch.mask, scale=jax.lax.stop_gradient(size))
    return advantage, target


def weigh_by_length(batch: PolicyGradientBatch, terminates: bool) -> PolicyGradientBatch:
    """Weighs episodes so that the size of an inner step does not depend on the horizon.

    A surrogate divides by all N T steps, taken or not. Where episodes end early, that would make a step
    shorter the longer they might have lasted. So each episode is weighed by T over the mean length of the
    *other* episodes of the task: what an episode contributes is divided by a number that does not depend on
    its own actions, and the direction of the expected step is unchanged. The only episode of a batch is
    weighed by its own length.

    Args:
      batch: one task's episodes.
      terminates: whether they can end before the horizon; if not, all weights are 1.
    """
    if not terminates:
        return batch
    lengths = (batch.mask > 0).sum(-1).astype(batch.mask.dtype)
    num_episodes, horizon = batch.mask.shape
    others = (lengths.sum() - lengths) / (num_episodes - 1) if num_episodes > 1 else lengths
    return batch._replace(mask=batch.mask * (horizon / others)[:, None])


def learner(
    family: TaskFamily,
    policy: Policy,
    *,
    surrogate: str,
    outer_surrogate: str,
    num_episodes: int,
    discount: float,
    gae_lambda: float,
    baseline: str,
    normalize_advantages: bool,
) -> Learner:
    """Learning from episodes by policy gradients.

    Args:
      family: tasks and their environment.
      policy: the policy.
      surrogate: name of the objective of a step; it decides which terms the Hessian of a step keeps.
      outer_surrogate: name of the objective after adaptation.
      num_episodes: as in `estimator`, and so are the others.
      discount: see `estimator`.
      gae_lambda: see `estimator`.
      baseline: see `estimator`.
      normalize_advantages: see `estimator`.

    Raises:
      ValueError: a value is out of its range.
    """
    one_of(SURROGATES, surrogate=surrogate, outer_surrogate=outer_surrogate)
    source = estimator(
        family,
        policy,
        num_episodes=num_episodes,
        discount=discount,
        gae_lambda=gae_lambda,
        baseline=baseline,
        normalize_advantages=normalize_advantages,
    )
    loss, outer_loss = source.loss(surrogate), source.loss(outer_surrogate)

    terminates = family.env.spec.terminates

    def on(loss: Loss) -> Callable[[Params, PolicyGradientBatch], Array]:
        return lambda params, batch: loss(unroll(policy, params, batch.inputs), batch)

    def gradient(params: Params, batch: PolicyGradientBatch) -> Params:
        return jax.grad(on(loss))(params, weigh_by_length(batch, terminates))

    def report(batch: PolicyGradientBatch) -> Metrics:
        if baseline == "none":
            return {}
        return {"explained_variance": explained_variance(batch, discount)}

    return Learner(source.collect, gradient, on(outer_loss), report, max_kl=_MAX_KL)


def explained_variance(batch: PolicyGradientBatch, discount: float | Array) -> Array:
    """Share of the variance of one task's returns that the baseline explains, [].

    The linear baseline predicts every episode from others, so for it this is a figure out of sample. It may
    be negative where there is nothing to predict, and is 0 where returns do not vary.
    """
    returns = returns_to_go(batch, discount)
    taken = (batch.mask > 0).astype(returns.dtype)
    mean = jnp.sum(taken * returns) / jnp.maximum(jnp.sum(taken), 1)
    spread = advantages.root_mean_square(returns - mean, taken)
    error = advantages.root_mean_square(returns - batch.value, taken)
    return jnp.where(spread > 0, 1 - jnp.square(error / jnp.where(spread > 0, spread, 1)), 0)


def unroll(policy: Policy, params: Params, inputs: PolicyInput) -> PolicyOutput:
    """The policy's outputs [N, T, ...] on stored inputs [N, T, ...], each episode from a fresh carry."""
    carry = policy.initial_carry()
    if jax.tree.leaves(carry):
        return jax.vmap(lambda one: policy.unroll(params, carry, one)[1])(inputs)
    # Without a memory all steps are one long episode, whose matrix products XLA lays out better.
    output = policy.unroll(params, carry, jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), inputs))[1]
    return jax.tree.map(lambda x: x.reshape(*inputs.obs.shape[:2], *x.shape[1:]), output)


def mean_kl(policy: Policy, old: PyTree, new: PyTree, mask: Array) -> Array:
    """Mean over the steps of KL(old || new) between distribution parameters [N, T, ...] -> []."""
    return jnp.sum(mask * jax.vmap(jax.vmap(policy.distribution.kl))(old, new)) / jnp.sum(mask)


def fisher_product(
    policy: Policy,
    inner: InnerLoop,
    params: Params,
    vector: Params,
    pre: PolicyGradientBatch,
    post: PolicyGradientBatch,
) -> Params:
    """Hessian-vector product of the adapted policy's divergence from itself, inner steps included.

    In the form J^T F J v, with J the Jacobian of the adapted distributions with respect to `params` and F
    their Fisher information: equal, as the divergence has no gradient there, and cheaper.

    Args:
      policy: the policy.
      inner: its adaptation.
      params: where the product is taken, before adaptation.
      vector: like `params`.
      pre: data of the inner steps [K, N, T, ...].
      post: episodes of the adapted policy [N, T, ...], which the divergence is averaged over.

    Returns:
      Like `params`.
    """

    def distribution_of(adapted: Params) -> PyTree:
        return unroll(policy, adapted, post.inputs).distribution

    adapted, tangent = inner.replay_jvp(params, pre, vector)
    old, change = jax.jvp(distribution_of, (adapted,), (tangent,))
    slope = jax.grad(lambda new: mean_kl(policy, old, new, post.mask))
    _, response = jax.jvp(slope, (old,), (change,))
    (response,) = jax.vjp(distribution_of, adapted)[1](response)
    return jax.vjp(lambda params: inner.replay(params, pre), params)[1](response)[0]
