"""A point in the plane asked to go to a goal that it is not shown."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.envs.point_mass import MAX_STEP, distance, point_mass
from jmeta.tasks._splits import uniform_inside, uniform_outside, unit_vector
from jmeta.types import Array, Key, Task, TaskFamily

_SPARSE_RADIUS = 0.2  # reward is given within this distance of the goal
_SPARSE_HELDOUT = (jnp.pi / 4, jnp.pi / 2)  # angles


def point_goal(*, horizon: int = 100) -> TaskFamily:
    """A point that starts at the origin and is rewarded for being near an unseen goal.

    Task: the goal [2], uniform in the square [-0.5, 0.5]^2.
    Reward: minus the Euclidean distance to the goal after the step.
    Observation: the position [2]. Actions in [-1, 1] change each coordinate by at most 0.1.
    Measures: `success`, an episode that has been within 0.1 of the goal, the length of the largest step.
    Termination: both coordinates within 0.01 of the goal.
    Splits: goals in the corner x > 0.25, y > 0.25 (1/16 of the square) are held out; training goals are
    uniform in the rest.
    Source: Finn et al. 2017 (MAML), section 5.3, and its published code. The paper says that the reward is
    the negative *squared* distance; its code, which this follows, uses the distance.

    `optimal_return`: the return of the greatest possible step in each coordinate that does not overshoot. It
    minimises both coordinates' distance at every step at once, so no policy does better.

    Args:
      horizon: steps in an episode.

    Returns:
      The family `point-goal`.

    Raises:
      ValueError: if the horizon is not positive.
    """

    def reward(position: Array, task: Task) -> Array:
        return -distance(position, task)

    def terminated(position: Array, task: Task) -> Array:
        return jnp.all(jnp.abs(position - task) < 0.01)

    def sample(key: Key) -> Task:
        # Uniform outside the corner: one of the other 15 cells of a 4 by 4 grid, then a point of the cell.
        key_cell, key_point = jax.random.split(key)
        cell = jax.random.randint(key_cell, (), 0, 15)
        corner = jnp.stack([cell // 4, cell % 4]) / 4 - 0.5
        return corner + jax.random.uniform(key_point, (2,), maxval=0.25)

    def sample_heldout(key: Key) -> Task:
        return jax.random.uniform(key, (2,), minval=0.25, maxval=0.5)

    def optimal_return(task: Task) -> Array:
        steps = jnp.arange(1, horizon + 1, dtype=float)[:, None]
        # [T, 2] distance left in each coordinate
        left = jnp.maximum(jnp.abs(task)[None] - MAX_STEP * steps, 0.0)
        return -jnp.sum(jnp.linalg.norm(left, axis=1))

    def success(position: Array, task: Task) -> Array:
        return distance(position, task) < MAX_STEP

    env = point_mass(horizon=horizon, reward=reward, terminated=terminated, success=success)
    return TaskFamily("point-goal", env, sample, sample_heldout, optimal_return)


def sparse_point_goal(*, horizon: int = 20) -> TaskFamily:
    """A point that must find an unseen goal on a half-circle and is rewarded only beside it.

    Task: the goal [2], at distance 1 from the origin and a uniform angle in [0, pi].
    Reward: 1 - distance to the goal where that distance is at most 0.2, and 0 elsewhere.
    Observation: the position [2]. Actions in [-1, 1] change each coordinate by at most 0.1.
    Measures: `success`, an episode that has been within 0.2 of the goal.
    Termination: never.
    Splits: angles in [pi/4, pi/2) are held out; training angles are uniform in the rest of [0, pi].
    Source: Rakelly et al. 2019 (PEARL), sparse 2D navigation, and its published code (horizon 20). PEARL's
    critic trains on the dense reward and only its context sees the sparse one; here there is no other.

    Args:
      horizon: steps in an episode.

    Returns:
      The family `sparse-point-goal`.

    Raises:
      ValueError: if the horizon is not positive.
    """

    def reward(position: Array, task: Task) -> Array:
        to_goal = distance(position, task)
        return jnp.where(to_goal <= _SPARSE_RADIUS, 1 - to_goal, 0.0)

    def success(position: Array, task: Task) -> Array:
        return distance(position, task) <= _SPARSE_RADIUS

    def sample(key: Key) -> Task:
        return unit_vector(uniform_outside(key, 0.0, jnp.pi, _SPARSE_HELDOUT))

    def sample_heldout(key: Key) -> Task:
        return unit_vector(uniform_inside(key, _SPARSE_HELDOUT))

    env = point_mass(horizon=horizon, reward=reward, success=success)
    return TaskFamily("sparse-point-goal", env, sample, sample_heldout)
