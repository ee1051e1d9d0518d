"""Trust-region policy optimisation as an optax transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jmeta.checks import at_least, in_interval, not_negative, positive
from jmeta.optimizers.conjugate_gradient import conjugate_gradient
from jmeta.types import Array, Params, PyTree


class TrpoState(NamedTuple):
    """Diagnostics of the last update, and the count of rejected ones."""

    step_fraction: Array  # [] float32, the fraction of the full step that was taken; 0 when rejected
    kl: Array  # [] float32, KL divergence of the step that was taken; 0 when rejected
    rejected: Array  # [] int32, updates so far that changed nothing


def trpo(
    *,
    max_kl: float = 0.01,
    cg_iterations: int = 10,
    cg_damping: float = 0.01,
    backtrack_ratio: float = 0.8,
    max_backtracks: int = 15,
) -> optax.GradientTransformationExtraArgs:
    """The natural-gradient step that reaches the KL bound, with a backtracking line search.

    Schulman et al. 2015, appendix C. Differences: the step that fits the bound is computed from the damped
    curvature, as in the authors' code, and a line search that finds no candidate with a smaller loss within
    the bound, or that meets nothing but non-finite numbers, rejects the step: the update is 0.

    `update(grads, state, params, *, value_and_kl_fn, kl_hvp_fn)` needs two more arguments:
      value_and_kl_fn: params -> (loss [], kl []), the loss that is minimised and the KL divergence from the
        current policy to the one at `params`, both on fixed data.
      kl_hvp_fn: vector -> vector, the product of that divergence's Hessian at the current parameters.
    `grads` is the gradient of the loss.

    Args:
      max_kl: bound on the KL divergence, in nats.
      cg_iterations: most iterations of conjugate gradient; one Hessian-vector product each.
      cg_damping: added to the Hessian's diagonal.
      backtrack_ratio: each candidate step is this fraction of the one before.
      max_backtracks: most candidates after the full step.

    Returns:
      The transformation; its state is `TrpoState`.

    Raises:
      ValueError: an argument is out of its range; at `update`, one of the functions or `params` is missing.
    """
    positive(max_kl=max_kl)
    at_least(1, cg_iterations=cg_iterations)
    not_negative(cg_damping=cg_damping)
    in_interval("(0, 1)", backtrack_ratio=backtrack_ratio)
    at_least(0, max_backtracks=max_backtracks)

    def init(params: Params) -> TrpoState:
        del params
        return TrpoState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def update(
        grads: PyTree,
        state: TrpoState,
        params: Params | None = None,
        *,
        value_and_kl_fn: Callable[[Params], tuple[Array, Array]] | None = None,
        kl_hvp_fn: Callable[[PyTree], PyTree] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, TrpoState]:
        del extra_args
        if params is None or value_and_kl_fn is None or kl_hvp_fn is None:
            raise ValueError("trpo's update needs params, value_and_kl_fn and kl_hvp_fn; one is missing.")

        # One flat vector: loops over many tiny leaves are slow.
        flat_params, unravel = ravel_pytree(params)
        gradient, _ = ravel_pytree(grads)
        # The step does not depend on the gradient's length, whose square may overflow or underflow.
        largest = jnp.max(jnp.abs(gradient))
        gradient /= jnp.where(largest > 0, largest, 1)

        def damped_hvp(vector: Array) -> Array:
            return ravel_pytree(kl_hvp_fn(unravel(vector)))[0] + cg_damping * vector

        direction, curvature = conjugate_gradient(damped_hvp, gradient, cg_iterations)
        full_step = -direction * jnp.sqrt(2 * max_kl / curvature)
        loss_before, _ = value_and_kl_fn(params)

        def searching(search: _LineSearch) -> Array:
            return ~search.accepted & (search.num_tried <= max_backtracks)

        def try_next(search: _LineSearch) -> _LineSearch:
            fraction = jnp.float32(backtrack_ratio) ** search.num_tried
            loss, kl = value_and_kl_fn(unravel(flat_params + fraction.astype(full_step.dtype) * full_step))
            # Comparisons with NaN are false.
            accepted = (loss < loss_before) & jnp.isfinite(loss) & (kl <= max_kl)
            return _LineSearch(search.num_tried + 1, accepted, fraction, kl.astype(jnp.float32))

        # Without a finite step there is nothing to try.
        has_step = jnp.all(jnp.isfinite(full_step))
        none_tried = _LineSearch(
            jnp.where(has_step, 0, max_backtracks + 1), jnp.array(False), state.step_fraction, state.kl
        )
        search = jax.lax.while_loop(searching, try_next, none_tried)

        fraction = jnp.where(search.accepted, search.fraction, 0)
        step = jnp.where(search.accepted, fraction.astype(full_step.dtype) * full_step, 0)
        new_state = TrpoState(
            step_fraction=fraction,
            kl=jnp.where(search.accepted, search.kl, 0),
            rejected=state.rejected + (~search.accepted).astype(jnp.int32),
        )
        return unravel(step), new_state

    return optax.GradientTransformationExtraArgs(init, update)


class _LineSearch(NamedTuple):
    num_tried: Array  # [] int32
    accepted: Array  # [] bool, of the last candidate
    fraction: Array  # [] float32, of the last candidate
    kl: Array  # [] float32, of the last candidate
