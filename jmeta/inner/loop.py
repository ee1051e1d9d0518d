"""Adaptation, whatever is learned from: K times, collect data and take one step on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from jmeta.checks import one_of
from jmeta.optimizers import lenient_promotion
from jmeta.types import Adapted, AdaptInfo, Array, InnerLoop, Key, Metrics, Params, Policy, PyTree, Task

Gradient = Callable[[Params, PyTree], Params]  # params, data -> gradient with respect to params
DIFFERENTIATIONS = ("mixed", "reverse", "rematerialized")


class Learner(NamedTuple):
    """How one task is learned from. A batch is any pytree with `inputs`, `reward` and `mask` [N, T, ...].

    Attributes:
      collect: (adapted, task, key) -> N episodes of the adapted policy, as data.
      gradient: (params, batch) -> what a step of adaptation descends, like params.
      loss: (params, batch) -> [] what the outer loop minimises, on episodes of the adapted policy.
      report: (batch) -> metrics [] of one task's episodes after adaptation.
      conservative: whether `gradient` is the gradient of a scalar, so that its Jacobian is symmetric.
      max_kl: nats a step by which an update of several epochs may move adapted policies. Further away, their
        old episodes say nothing of them.
    """

    collect: Callable[[Adapted, Task, Key], PyTree]
    gradient: Gradient
    loss: Callable[[Params, PyTree], Array]
    report: Callable[[PyTree], Metrics] = lambda batch: {}
    conservative: bool = True
    max_kl: float = math.inf


def inner_loop(
    *,
    policy: Policy,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    first_order: bool = False,
    differentiation: str = "mixed",
    start: Callable[[Params], Params] = lambda params: params,
) -> InnerLoop:
    """Adaptation by steps of an optimiser, each on fresh data (Finn et al., 2017, algorithms 1 to 3).

    Args:
      policy: the policy.
      learner: collects the data and gives the direction of a step.
      optimizer: of the step, its state fresh for every task. Adam-like ones need `eps_root > 0` to be
        differentiated at zero gradients.
      first_order: treat the gradients as constants (FOMAML).
      differentiation: how `replay` is differentiated in reverse: "mixed", forward over reverse, which needs
        a `conservative` learner (another's is differentiated in "reverse"); "reverse", which keeps what
        every step computed; "rematerialized", the same computed anew from the parameters before each step.
      start: meta-parameters -> the policy's parameters before the first step.

    Raises:
      ValueError: if there is no such `differentiation`.
    """
    one_of(DIFFERENTIATIONS, differentiation=differentiation)
    mixed = differentiation == "mixed" and learner.conservative
    reverse = symmetric_gradient(learner.gradient) if mixed else learner.gradient

    def begin(params: Params) -> tuple[Params, PyTree]:
        params = start(params)
        return params, optimizer.init(params)

    def update(
        gradient: Gradient,
        params: Params,
        opt_state: PyTree,
        batch: PyTree,
        step_scale: float | Array | None = None,
    ) -> tuple[Params, PyTree]:
        gradients = gradient(params, batch)
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        with lenient_promotion():
            updates, opt_state = optimizer.update(gradients, opt_state, params)
        if step_scale is not None:
            updates = jax.tree.map(lambda update: step_scale * update, updates)
        return optax.apply_updates(params, updates), opt_state

    def adapt(
        params: Params, task: Task, key: Key, num_steps: int, step_scale: float | Array | None = None
    ) -> tuple[Adapted, AdaptInfo]:
        def step(loop: PyTree, key: Key) -> tuple[PyTree, PyTree]:
            params, opt_state = loop
            before = Adapted(params, policy.initial_carry())
            batch = learner.collect(before, task, key)
            return update(learner.gradient, params, opt_state, batch, step_scale), (batch, before)

        (params, _), (data, path) = jax.lax.scan(step, begin(params), jax.random.split(key, num_steps))
        return Adapted(params, policy.initial_carry()), AdaptInfo(mean_return(data), data, path)

    def path_with(gradient: Gradient, params: Params, data: PyTree) -> tuple[Params, Params]:
        def step(loop: PyTree, batch: PyTree) -> tuple[PyTree, Params]:
            params, opt_state = loop
            return update(gradient, params, opt_state, batch), params

        if differentiation == "rematerialized":
            step = jax.checkpoint(step, prevent_cse=False)  # a scan keeps it from being undone
        (params, _), path = jax.lax.scan(step, begin(params), data)
        return params, path

    def path(params: Params, data: PyTree) -> tuple[Params, Params]:
        return path_with(reverse, params, data)

    def replay(params: Params, data: PyTree) -> Params:
        return path(params, data)[0]

    def replay_jvp(params: Params, data: PyTree, tangent: Params) -> tuple[Params, Params]:
        return jax.jvp(lambda params: path_with(learner.gradient, params, data)[0], (params,), (tangent,))

    return InnerLoop(adapt, replay, path, replay_jvp)


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


def mean_return(batch: PyTree) -> Array:
    """Mean undiscounted return over the episodes: `batch.reward` [..., N, T] -> [...]."""
    return batch.reward.sum(-1).mean(-1)
