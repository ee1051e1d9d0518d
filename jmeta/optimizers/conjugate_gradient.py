"""Conjugate gradient for matrices that should be positive definite, and may turn out not to be."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jmeta.types import Array

# It stops once the squared residual has shrunk this far: float32 knows no more.
_TOLERANCE = 1e-10


def conjugate_gradient(
    product: Callable[[Array], Array], b: Array, max_iterations: int
) -> tuple[Array, Array]:
    """Solves A x = b from x = 0 (Hestenes and Stiefel, 1952), as far as A is positive definite.

    Where it meets a direction of no positive curvature, along which the quadratic has no minimum, it stops
    with what it has, which is b itself in the first iteration (as Steihaug, 1983, without a trust region).
    So x is never a direction against b.

    Args:
      product: vector [P] -> A vector [P].
      b: [P].
      max_iterations: most iterations.

    Returns:
      x: [P].
      curvature: [] x^T A x, from the residual: no further product.
    """
    # The solution is proportional to b, whose square may overflow or underflow.
    largest = jnp.max(jnp.abs(b))
    largest = jnp.where(largest > 0, largest, 1)
    b = b / largest
    squared_norm = jnp.vdot(b, b)

    def unsolved(carry: tuple[Array, ...]) -> Array:
        iteration, convex, _, _, _, squared_residual = carry
        return (iteration < max_iterations) & convex & (squared_residual > _TOLERANCE * squared_norm)

    def iterate(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        iteration, _, x, residual, search, squared_residual = carry
        image = product(search)
        curvature = jnp.vdot(search, image)
        convex = curvature > 0
        length = jnp.where(
            convex,
            squared_residual / jnp.where(convex, curvature, 1),
            (iteration == 0).astype(curvature.dtype),
        )
        x = x + length * search
        residual = residual - length * image
        new_squared_residual = jnp.vdot(residual, residual)
        search = residual + new_squared_residual / squared_residual * search
        return iteration + 1, convex, x, residual, search, new_squared_residual

    start: tuple[Array, ...] = (jnp.int32(0), jnp.array(True), jnp.zeros_like(b), b, b, squared_norm)
    _, _, x, residual, _, _ = jax.lax.while_loop(unsolved, iterate, start)
    return largest * x, jnp.square(largest) * jnp.vdot(x, b - residual)
