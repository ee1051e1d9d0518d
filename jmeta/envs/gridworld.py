"""A square grid with a hidden goal."""

from __future__ import annotations

import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.types import Array, Discrete, Env, EnvSpec, Key, TimeStep

MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # stay, up, right, down, left


def gridworld(*, size: int, horizon: int) -> Env:
    """Makes a grid of `size` x `size` cells: the agent starts in the corner (0, 0) and is not shown the goal.

    A step pays 1 if it ends on the goal, else -0.1. A move off the grid stays. The measure `success` is
    whether the agent is on the goal.

    Args:
      size: cells in a row.
      horizon: steps in an episode.

    Returns:
      The environment: its task is the goal's cell [2], its state the agent's, int32; the observation is the
      agent's cell, each coordinate scaled to [-1, 1].

    Raises:
      ValueError: if an argument is too small.
    """
    at_least(2, size=size)
    at_least(1, horizon=horizon)

    def observe(cell: Array, reward: Array, task: Array) -> TimeStep:
        obs = 2.0 * cell.astype(float) / (size - 1) - 1.0
        return TimeStep(obs, reward, jnp.array(False), {"success": (cell == task).all()})

    def reset(key: Key, task: Array) -> tuple[Array, TimeStep]:
        del key
        cell = jnp.zeros(2, jnp.int32)
        return cell, observe(cell, jnp.zeros(()), task)

    def step(key: Key, state: Array, action: Array, task: Array) -> tuple[Array, TimeStep]:
        del key
        cell = jnp.clip(state + jnp.array(MOVES)[action], 0, size - 1)
        return cell, observe(cell, jnp.where((cell == task).all(), 1.0, -0.1).astype(float), task)

    return Env(reset, step, EnvSpec(2, Discrete(len(MOVES)), horizon, terminates=False))
