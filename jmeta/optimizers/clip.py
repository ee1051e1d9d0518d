"""The global norm of a tree, and updates that are clipped by it, whatever the size of the numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jmeta.checks import positive
from jmeta.types import Array, Params, PyTree


def global_norm(tree: PyTree) -> Array:
    """The Euclidean norm [] of all leaves together.

    Unlike `optax.tree.norm` it neither overflows nor underflows where the norm itself does not, because the
    leaves are divided by their largest magnitude before they are squared. At a tree of zeros its derivative
    is 0.
    """
    largest, relative = _largest_and_relative_norm(tree)
    return largest * relative


def clip_by_global_norm(max_grad_norm: float | Array) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, for gradients of any size, and with a derivative at a gradient of zero.

    Args:
      max_grad_norm: bound on the global norm of the updates.

    Raises:
      ValueError: the bound is not positive.
    """
    positive(max_grad_norm=max_grad_norm)

    def update(updates: PyTree, state: PyTree, params: Params | None = None) -> tuple[PyTree, PyTree]:
        del params
        largest, relative = _largest_and_relative_norm(updates)
        bound = jnp.asarray(max_grad_norm, float)
        exceeds = largest > bound / relative
        divisor = jnp.where(exceeds, largest, 1)

        def clip(leaf: Array) -> Array:
            unit = jnp.asarray(leaf, float) / divisor / relative
            return jnp.where(exceeds, (unit * bound).astype(leaf.dtype), leaf)

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _largest_and_relative_norm(tree: PyTree) -> tuple[Array, Array]:
    """The largest magnitude [], a constant for derivatives, and the norm [] in units of it, at least 1."""
    leaves = [jnp.asarray(leaf, float) for leaf in jax.tree.leaves(tree)]
    largest = jnp.zeros((), float)
    for leaf in leaves:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0))
    largest = jax.lax.stop_gradient(largest)
    unit = jnp.where(largest > 0, largest, 1)
    square = sum((jnp.sum(jnp.square(leaf / unit)) for leaf in leaves), jnp.zeros((), float))
    return largest, jnp.sqrt(jnp.where(square == 0, 1, square))
