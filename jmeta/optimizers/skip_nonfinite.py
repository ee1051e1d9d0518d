"""Skips updates that are not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jmeta.optimizers.promotion import lenient_promotion
from jmeta.types import Array, Params, PyTree


class SkipNonfiniteState(NamedTuple):
    """State of the wrapped transformation, and how often it was protected."""

    inner: PyTree
    skipped: Array  # [] int32, updates skipped so far


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Replaces an update by 0, and leaves the state of `inner` as it was, when anything in it is not finite.

    A new state in which a number is no longer finite counts too, because it would last: the square of a
    gradient of 1e25 overflows, and a second moment of infinity keeps Adam from ever moving that parameter
    again. Unlike `optax.apply_if_finite` it accepts no such update ever, however many come in a row. Extra
    arguments of `update` are passed on to `inner`.

    Args:
      inner: the transformation to protect.

    Returns:
      The transformation; its state is `SkipNonfiniteState`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(
        grads: PyTree, state: SkipNonfiniteState, params: Params | None = None, **extra_args: Any
    ) -> tuple[PyTree, SkipNonfiniteState]:
        with lenient_promotion():
            updates, inner_state = inner.update(grads, state.inner, params, **extra_args)
        finite = jnp.array(True)
        for leaf in jax.tree.leaves((grads, updates)):
            finite &= jnp.all(jnp.isfinite(leaf))
        # What a state starts with may be infinite, such as the best value before the first.
        for new, old in zip(jax.tree.leaves(inner_state), jax.tree.leaves(state.inner), strict=True):
            if jnp.issubdtype(jnp.result_type(new), jnp.inexact):
                finite &= jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(finite, new, old)

        updates = jax.tree.map(lambda update: keep(update, jnp.zeros_like(update)), updates)
        inner_state = jax.tree.map(keep, inner_state, state.inner)
        return updates, SkipNonfiniteState(inner_state, state.skipped + (~finite).astype(jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)
