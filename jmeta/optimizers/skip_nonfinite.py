"""Skips updates that are not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jmeta.types import Array, Params, PyTree


class SkipNonfiniteState(NamedTuple):
    """State of the wrapped transformation, and how often it was protected."""

    inner: PyTree
    skipped: Array  # [] int32, updates skipped so far


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Replaces an update by 0, and leaves the state of `inner` as it was, when anything in it is not finite.

    Unlike `optax.apply_if_finite` it accepts no such update ever, however many come in a row. Extra arguments
    of `update` are passed on to `inner`.

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
        updates, inner_state = inner.update(grads, state.inner, params, **extra_args)
        finite = jnp.array(True)
        for leaf in jax.tree.leaves((grads, updates)):
            finite &= jnp.all(jnp.isfinite(leaf))

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(finite, new, old)

        updates = jax.tree.map(lambda update: keep(update, jnp.zeros_like(update)), updates)
        inner_state = jax.tree.map(keep, inner_state, state.inner)
        return updates, SkipNonfiniteState(inner_state, state.skipped + ~finite)

    return optax.GradientTransformationExtraArgs(init, update)
