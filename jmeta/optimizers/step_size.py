"""The step size as the last part of an optimizer: it can decay over a run, and its state can be read."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jmeta.checks import at_least, not_negative
from jmeta.types import Array, Params, PyTree


class StepSizeState(NamedTuple):
    """The step size of the last update; before the first update, the initial one."""

    learning_rate: Array  # []


def scale_by_step_size(
    learning_rate: float | Array, decay_iterations: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the step size.

    Args:
      learning_rate: the step size, or where it decays, its value at iteration 0.
      decay_iterations: meta-iterations over which the step size falls linearly to 0; None keeps it constant.
        `update` then needs the keyword argument `iteration`, as every algorithm of the library passes it: all
        updates of an iteration have the same step size, however many epochs and minibatches there are.

    Raises:
      ValueError: an argument is out of its range; at `update`, `iteration` is missing.
    """
    not_negative(learning_rate=learning_rate)
    if decay_iterations is not None:
        at_least(0, decay_iterations=decay_iterations)

    def init(params: Params) -> StepSizeState:
        del params
        return StepSizeState(jnp.asarray(learning_rate, float))

    def update(
        updates: PyTree,
        state: StepSizeState,
        params: Params | None = None,
        *,
        iteration: Array | int | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, StepSizeState]:
        del state, params, extra_args
        rate = jnp.asarray(learning_rate, float)
        if decay_iterations is not None:
            if iteration is None:
                raise ValueError("iteration must be given to update where the step size decays, got None")
            share = jnp.asarray(iteration, rate.dtype) / max(decay_iterations, 1)
            rate *= jnp.maximum(1 - share, 0)
        updates = jax.tree.map(lambda update: -rate.astype(jnp.result_type(update)) * update, updates)
        return updates, StepSizeState(rate)

    return optax.GradientTransformationExtraArgs(init, update)
