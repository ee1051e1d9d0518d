"""Policy-gradient adaptation: K times, sample episodes and take one gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jmeta import rollouts
from jmeta.estimators import advantages, baselines
from jmeta.estimators.surrogates import SURROGATES, PolicyGradientBatch
from jmeta.types import (
    Adapted,
    AdaptInfo,
    Array,
    InnerLoop,
    Key,
    Params,
    Policy,
    PolicyInput,
    PolicyOutput,
    PyTree,
    Task,
    TaskFamily,
)

Gradient = Callable[[Params, PyTree], Params]  # params, data -> gradient with respect to params
BASELINES = ("linear", "value", "none")
_VALUE_COEFFICIENT = 0.5


class PolicyGradient(NamedTuple):
    """What inner and outer loops share: how data is collected, and the loss on it."""

    # adapted, task, key -> N episodes with their advantages
    collect: Callable[[Adapted, Task, Key], PolicyGradientBatch]
    # name of a surrogate -> (the policy's output [N, T, ...] on the batch, batch) -> [] loss to minimise
    loss: Callable[[str], Callable[[PolicyOutput, PolicyGradientBatch], Array]]


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
      baseline: "linear" (time-dependent features, refitted on every batch, so per task and per inner step),
        "value" (the policy's critic, which bootstraps at the time limit) or "none".
      normalize_advantages: to zero mean and unit standard deviation over the steps of the batch.

    Raises:
      ValueError: a value is out of its range.
    """
    _check_at_least("num_episodes", num_episodes, 1)
    for name, value in (("discount", discount), ("gae_lambda", gae_lambda)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {baseline!r}")
    if baseline == "value" and not policy.has_critic:
        raise ValueError(
            "baseline 'value' needs a policy with a critic: mlp(..., critic=True), got one without"
        )

    def collect(adapted: Adapted, task: Task, key: Key) -> PolicyGradientBatch:
        rollout = rollouts.batch(family.env, policy, adapted, task, key, num_episodes)
        last_value = jnp.zeros_like(rollout.last_value)
        if baseline == "value":
            value, last_value = rollout.value, rollout.last_value
        elif baseline == "linear":
            returns = jax.vmap(lambda r, m: advantages.discounted_returns(r, m, discount=discount))(
                rollout.reward, rollout.mask
            )
            value = baselines.linear_baseline(rollout.inputs.obs, returns, rollout.mask)
        else:
            value = jnp.zeros_like(rollout.reward)
        gae = jax.vmap(lambda *x: advantages.gae(*x, discount=discount, gae_lambda=gae_lambda))
        advantage, target = gae(rollout.reward, value, last_value, rollout.terminated, rollout.mask)
        if normalize_advantages:
            advantage = advantages.normalize(advantage, rollout.mask)
        return PolicyGradientBatch(
            inputs=rollout.inputs,
            action=rollout.action,
            log_prob=rollout.log_prob,
            advantage=advantage,
            target=target,
            reward=rollout.reward,
            value=value,
            mask=rollout.mask,
        )

    def loss(surrogate: str) -> Callable[[PolicyOutput, PolicyGradientBatch], Array]:
        if surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {surrogate!r}")

        def loss_fn(output: PolicyOutput, batch: PolicyGradientBatch) -> Array:
            log_prob = jax.vmap(jax.vmap(policy.distribution.log_prob))(output.distribution, batch.action)
            objective = SURROGATES[surrogate](log_prob, batch, discount=discount, gae_lambda=gae_lambda)
            if baseline != "value":
                return -objective
            error = jnp.mean(batch.mask * jnp.square(output.value - batch.target))
            return _VALUE_COEFFICIENT * error - objective

        return loss_fn

    return PolicyGradient(collect, loss)


def inner_loop(
    policy: Policy,
    source: PolicyGradient,
    *,
    surrogate: str,
    optimizer: optax.GradientTransformation,
    first_order: bool = False,
) -> InnerLoop:
    """Adaptation by policy-gradient steps, each on fresh episodes (MAML; Finn et al., 2017, Algorithm 3).

    Args:
      policy: the policy.
      source: collects the episodes and gives the loss.
      surrogate: name of the surrogate objective; it decides which terms the Hessian of a step keeps.
      optimizer: of the inner step, its state fresh for every task. Adam-like ones need `eps_root > 0` to be
        differentiated at zero gradients.
      first_order: treat the inner gradients as constants (FOMAML): `replay` then has an identity Jacobian.
    """
    loss = source.loss(surrogate)
    plain = jax.grad(lambda params, batch: loss(unroll(policy, params, batch.inputs), batch))
    reverse = symmetric_gradient(plain)

    def update(gradient: Gradient, params: Params, opt_state: PyTree, batch: PyTree) -> tuple[Params, PyTree]:
        gradients = gradient(params, batch)
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def adapt(params: Params, task: Task, key: Key, num_steps: int) -> tuple[Adapted, AdaptInfo]:
        def step(loop: PyTree, key: Key) -> tuple[PyTree, PolicyGradientBatch]:
            params, opt_state = loop
            batch = source.collect(Adapted(params, policy.initial_carry()), task, key)
            return update(plain, params, opt_state, batch), batch

        keys = jax.random.split(key, num_steps)
        (params, _), data = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return Adapted(params, policy.initial_carry()), AdaptInfo(mean_return(data), data)

    def replay_with(gradient: Gradient, params: Params, data: PolicyGradientBatch) -> Params:
        def step(loop: PyTree, batch: PolicyGradientBatch) -> tuple[PyTree, None]:
            params, opt_state = loop
            return update(gradient, params, opt_state, batch), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), data)
        return params

    def replay(params: Params, data: PolicyGradientBatch) -> Params:
        return replay_with(reverse, params, data)

    def replay_jvp(params: Params, data: PolicyGradientBatch, tangent: Params) -> tuple[Params, Params]:
        return jax.jvp(lambda params: replay_with(plain, params, data), (params,), (tangent,))

    return InnerLoop(adapt, replay, replay_jvp)


def symmetric_gradient(gradient: Gradient) -> Gradient:
    """A gradient function whose own reverse derivative is taken forward over reverse.

    The Hessian is symmetric, so the pull-back of a cotangent v is the Hessian-vector product Hv: one `jvp`
    of the gradient, which stores no residuals of the inner backward pass. Data is constant.

    Args:
      gradient: (params, data) -> the gradient of a scalar with respect to params.

    Returns:
      The same function. It has no forward derivative: take that of `gradient`.
    """

    def forward(params: Params, data: PyTree) -> tuple[Params, tuple[Params, PyTree]]:
        return gradient(params, data), (params, data)

    def backward(residuals: tuple[Params, PyTree], cotangent: Params) -> tuple[Params, None]:
        params, data = residuals
        return jax.jvp(lambda p: gradient(p, data), (params,), (cotangent,))[1], None

    symmetric = jax.custom_vjp(gradient)
    symmetric.defvjp(forward, backward)
    return symmetric


def unroll(policy: Policy, params: Params, inputs: PolicyInput) -> PolicyOutput:
    """The policy's outputs [N, T, ...] on stored inputs [N, T, ...], each episode from a fresh carry."""
    return jax.vmap(lambda one: policy.unroll(params, policy.initial_carry(), one)[1])(inputs)


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


def mean_return(batch: PolicyGradientBatch) -> Array:
    """Mean undiscounted return over the episodes: reward [..., N, T] -> [...]."""
    return batch.reward.sum(-1).mean(-1)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
