"""A point between a goal and a pit, of which it is shown neither."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.envs.point_mass import MAX_STEP, distance, point_mass
from jmeta.tasks._splits import uniform_inside, uniform_outside, unit_vector
from jmeta.types import Array, Key, Task, TaskFamily

_REACH = 0.8  # how far from the goal, or the pit, anything is felt of it
_SUCCESS_RADIUS = 0.2
_PIT_WEIGHT = 2.0  # a step near the pit costs what two steps as near to the goal pay
_HELDOUT = (0.0, jnp.pi / 4)  # angles of the line through goal and pit


def goal_and_pit(*, horizon: int = 40) -> TaskFamily:
    """A goal on a circle, a worse pit opposite, and nothing between: no single policy can take the risk.

    A policy that cannot tell the tasks apart visits the same places in all of them, and in the mean over the
    tasks every place costs: near the circle it is as often at the pit as at the goal. So joint training ends
    at policies that stay within 0.2 of the start, where every reward is 0. Their episodes show nothing of the
    task, the gradient of their return on any task is exactly 0, and no step of any size adapts them. To
    adapt, a policy must first take steps that cost something on average.

    Task: the goal [2], at distance 1 from the origin and a uniform angle in [0, 2 pi). The pit is at minus
    the goal.
    Reward: 1 - d / 0.8 at a distance d < 0.8 from the goal; -2 (1 - d / 0.8) at a distance d < 0.8 from the
    pit; 0 elsewhere.
    Observation: the position [2]. Actions in [-1, 1] change each coordinate by at most 0.1.
    Measures: `success`, an episode that has been within 0.2 of the goal.
    Termination: never.
    Splits: goals whose line through the origin has an angle in [0, pi/4) are held out, on both sides, so that
    goals remain as frequent as pits everywhere; training angles are uniform in the rest.
    Source: ours.

    `optimal_return`: the return of the greatest possible step in each coordinate that does not overshoot. It
    minimizes both coordinates' distance at every step at once, so no policy does better.

    Args:
      horizon: steps in an episode.

    Returns:
      The family `goal-and-pit`.

    Raises:
      ValueError: if the horizon is not positive.
    """

    def near(far: Array) -> Array:
        return jnp.maximum(1 - far / _REACH, 0.0)

    def reward(position: Array, task: Task) -> Array:
        goal, pit = distance(position, task), distance(position, -task)
        return near(goal) - _PIT_WEIGHT * near(pit)

    def success(position: Array, task: Task) -> Array:
        return distance(position, task) < _SUCCESS_RADIUS

    def on_either_side(key: Key, angle: Array) -> Task:
        return unit_vector(angle) * jax.random.rademacher(key, (), float)

    def sample(key: Key) -> Task:
        key_angle, key_side = jax.random.split(key)
        return on_either_side(key_side, uniform_outside(key_angle, 0.0, jnp.pi, _HELDOUT))

    def sample_heldout(key: Key) -> Task:
        key_angle, key_side = jax.random.split(key)
        return on_either_side(key_side, uniform_inside(key_angle, _HELDOUT))

    def optimal_return(task: Task) -> Array:
        steps = jnp.arange(1, horizon + 1, dtype=float)[:, None]
        left = jnp.maximum(
            jnp.abs(task)[None] - MAX_STEP * steps, 0.0
        )  # [T, 2] distance left in each coordinate
        return near(jnp.linalg.norm(left, axis=1)).sum()

    env = point_mass(horizon=horizon, reward=reward, success=success)
    return TaskFamily("goal-and-pit", env, sample, sample_heldout, optimal_return)
