"""A point that moves in the plane, for rewards that depend on where it is."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.envs.wrappers import clip_actions
from jmeta.types import Array, Continuous, Env, EnvSpec, Key, Task, TimeStep

MAX_STEP = 0.1  # largest change of a coordinate in one step


def distance(position: Array, other: Array) -> Array:
    """Euclidean distance [] of two points [2]; its derivative is finite where it is 0, unlike a norm's."""
    square = jnp.sum(jnp.square(position - other))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def point_mass(
    *,
    horizon: int,
    reward: Callable[[Array, Task], Array],
    terminated: Callable[[Array, Task], Array] | None = None,
    success: Callable[[Array, Task], Array] | None = None,
) -> Env:
    """Makes a point in the plane that starts at the origin and moves by `0.1 * clip(action, -1, 1)`.

    Args:
      horizon: steps in an episode.
      reward: `(position [2], task) -> []`, of the position after the step.
      terminated: `(position [2], task) -> [] bool`, of the position after the step; None never terminates.
      success: `(position [2], task) -> [] bool`, of the position after the step: the measure `success`; None
        measures nothing.

    Returns:
      The environment: its observation and its state are the position [2].

    Raises:
      ValueError: if the horizon is not positive.
    """
    at_least(1, horizon=horizon)

    def measure(position: Array, task: Task) -> dict[str, Array]:
        return {} if success is None else {"success": success(position, task)}

    def reset(key: Key, task: Task) -> tuple[Array, TimeStep]:
        del key
        position = jnp.zeros(2)
        return position, TimeStep(position, jnp.zeros(()), jnp.array(False), measure(position, task))

    def step(key: Key, state: Array, action: Array, task: Task) -> tuple[Array, TimeStep]:
        del key
        position = state + MAX_STEP * action
        end = jnp.array(False) if terminated is None else terminated(position, task)
        return position, TimeStep(position, reward(position, task), end, measure(position, task))

    spec = EnvSpec(2, Continuous(2), horizon, terminates=terminated is not None)
    return clip_actions(Env(reset, step, spec))
