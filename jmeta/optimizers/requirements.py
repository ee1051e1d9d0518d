"""What an optimizer asks of an algorithm, found out before anything is compiled."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jmeta.optimizers.promotion import lenient_promotion
from jmeta.types import Array, Params, Policy, PyTree


def update_arguments(
    iteration: Array,
    value: Array,
    grad: Params,
    value_of: Callable[[Params], Array],
    **divergence: Callable[..., Any],
) -> dict[str, Any]:
    """The keyword arguments with which every algorithm calls the update of an outer optimizer.

    Args:
      iteration: [] meta-iterations done before this one.
      value: [] the loss.
      grad: its gradient.
      value_of: params -> the loss [] there.
      **divergence: `value_and_kl_fn` and `kl_hvp_fn`, as TRPO needs them, where the algorithm has them.
    """

    def value_fn(
        params: Params, *, iteration: Any = None, value_and_kl_fn: Any = None, kl_hvp_fn: Any = None
    ) -> Array:
        # The line searches of optax hand it all arguments that they do not know, and refuse it without them.
        del iteration, value_and_kl_fn, kl_hvp_fn
        return value_of(params)

    return {"iteration": iteration, "value": value, "grad": grad, "value_fn": value_fn, **divergence}


Requirement = Literal["gradient", "value", "divergence"]


def requirement(optimizer: Any, policy: Policy) -> Requirement:
    """What an outer optimizer's update asks for beside the gradient and the parameters.

    Args:
      optimizer: the optimizer.
      policy: whose parameters it updates.

    Returns:
      "gradient": nothing, or the number of the `iteration`.
      "value": `value`, `grad` or `value_fn`, as line searches and `reduce_on_plateau` do.
      "divergence": `value_and_kl_fn` or `kl_hvp_fn`, as TRPO does; it compares values of the loss too.

    Raises:
      ValueError: it is not an optax transformation, or asks for something else.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r}")
    reason: Exception | None = None
    for level in typing.get_args(Requirement):
        try:
            _try_update(optimizer, policy, level)
        except Exception as error:  # whatever another library's update raises
            reason = error
        else:
            return level
    raise ValueError(f"optimizer must do with what it is given, got one whose update fails: {reason}")


def check_inner(optimizer: optax.GradientTransformation, policy: Policy) -> None:
    """Raises ValueError for an inner optimizer whose update needs more than gradients and parameters."""
    like = jax.eval_shape(policy.init, jax.random.key(0))
    try:
        with lenient_promotion():
            jax.eval_shape(lambda params: optimizer.update(params, optimizer.init(params), params), like)
    except Exception as error:  # whatever another library's update raises
        raise ValueError(
            "inner_optimizer must do with gradients and parameters, got one whose update fails:"
            f" {type(error).__name__}: {error}"
        ) from error


def check_no_divergence(algorithm: str, optimizer: Any, policy: Policy) -> None:
    """Raises ValueError for an optimizer that asks for a divergence, which some algorithms do not have."""
    if requirement(optimizer, policy) == "divergence":
        raise ValueError(f"optimizer of {algorithm} must do with gradients and values of the loss, got trpo")


def differentiable_at_zero(make: Callable[[float], optax.GradientTransformation], policy: Policy) -> bool:
    """Whether two updates of an inner optimizer have finite derivatives where the gradient is 0.

    A parameter that the loss does not depend on, such as a critic's without use, has a gradient of exactly 0.

    Args:
      make: step size -> the optimizer.
      policy: whose parameters it updates. They are replaced by parameters of one number a leaf.
    """
    like = jax.eval_shape(policy.init, jax.random.key(0))
    with jax.ensure_compile_time_eval(), lenient_promotion(), jax.debug_nans(False):
        params = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim, leaf.dtype), like)
        zeros = jax.tree.map(jnp.zeros_like, params)
        optimizer = make(1.0)

        def updates(gradients: PyTree) -> tuple[PyTree, PyTree]:
            first, state = optimizer.update(gradients, optimizer.init(params), params)
            return first, optimizer.update(gradients, state, optax.apply_updates(params, first))[0]

        slopes = jax.tree.leaves(jax.jvp(updates, (zeros,), (params,))[1])
        # A hyperparameter that the optimizer was made with may be traced: then there is no number to look at.
        return all(isinstance(slope, jax.core.Tracer) or bool(jnp.isfinite(slope).all()) for slope in slopes)


def _try_update(optimizer: optax.GradientTransformation, policy: Policy, level: Requirement) -> None:
    """Traces an update with zero gradients; if something is missing, this raises."""
    like = jax.eval_shape(policy.init, jax.random.key(0))
    optimizer = optax.with_extra_args_support(optimizer)

    def zero(params: Params) -> Array:
        return sum((0 * jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    def update(params: Params) -> PyTree:
        divergence: dict[str, Callable[..., Any]] = {}
        if level == "divergence":
            divergence = {"value_and_kl_fn": lambda p: (zero(p), zero(p)), "kl_hvp_fn": lambda vector: vector}
        extra = update_arguments(jnp.zeros((), jnp.int32), zero(params), params, zero, **divergence)
        if level == "gradient":
            extra = {"iteration": extra["iteration"]}
        with lenient_promotion():
            return optimizer.update(params, optimizer.init(params), params, **extra)

    jax.eval_shape(update, like)
