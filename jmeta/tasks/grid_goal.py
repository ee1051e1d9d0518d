"""A grid whose goal must be searched for."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.envs.gridworld import gridworld
from jmeta.envs.wrappers import trials
from jmeta.types import Array, Key, TaskFamily

_SIZE = 5


def grid_goal(*, horizon: int = 15) -> TaskFamily:
    """A 5 x 5 grid with a goal that the agent is not shown: search in the first episode, then go there.

    Task: the goal's cell [2], uniform over all but the start (0, 0) and the three cells beside it.
    Reward: 1 for a step that ends on the goal, else -0.1.
    Observation: the agent's cell, scaled to [-1, 1]. Actions: stay, up, right, down, left.
    Measures: `success`, an episode that has been on the goal.
    Termination: never. A trial is 4 episodes; each starts in (0, 0).
    Splits: none: the held-out tasks are of the same distribution.
    Source: Zintgraf et al. 2020 (VariBAD), section 5.1, and its published code.

    `optimal_return`: of an agent that knows the goal and walks there; it stays for the rest.

    Args:
      horizon: steps in an episode.

    Returns:
      The family `grid-goal`.

    Raises:
      ValueError: if the horizon is not positive.
    """
    cells = [(x, y) for x in range(_SIZE) for y in range(_SIZE) if x > 1 or y > 1]

    def sample(key: Key) -> Array:
        return jnp.array(cells, jnp.int32)[jax.random.randint(key, (), 0, len(cells))]

    def optimal_return(task: Array) -> Array:
        on_the_way = jnp.minimum(task.sum() - 1, horizon).astype(float)
        return (horizon - on_the_way) - 0.1 * on_the_way

    env = trials(gridworld(size=_SIZE, horizon=horizon), num_episodes=4)
    return TaskFamily("grid-goal", env, sample, sample, optimal_return)
