"""Ant, walk forward or backward, or in any direction."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmeta.envs import brax
from jmeta.envs.wrappers import trials
from jmeta.tasks._splits import heading, heading_heldout
from jmeta.types import Array, Env, Key, Task, TaskFamily


def ant_direction(*, backend: str = "spring", horizon: int = 100) -> TaskFamily:
    """Ant asked to walk forward or backward.

    Task: the direction [2], (+1, 0) or (-1, 0) with equal probability.
    Reward: velocity of the torso along the direction (m/s) + 0.05 - 0.005 * |action|^2, clipped action.
    Observation: brax's, position on the ground left out and joint velocities scaled by 0.1.
    Termination: the torso leaves heights 0.2 to 1 m.
    Splits: two tasks in all, so there is no held-out set and `sample_heldout` is `sample`.
    Source: Finn et al. 2017 (MAML), section 5.3, and the rewards of its published code, less the contact
    cost (brax has no contact forces on every backend). PEARL and ProMP use 1 for survival and 0.5 for the
    control cost: survival then dominates 100 steps. "Ant direction" also names two other distributions in
    the literature: any direction (`ant_angle`) and directions in a half-plane.
    A trial is four episodes: setting out with what was learned differs from the first, and wants practice.

    Args:
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `ant-direction`.

    Raises:
      ValueError: if the backend or horizon is not allowed.
    """

    def sample(key: Key) -> Task:
        return jnp.array([1.0, 0.0]) * jax.random.rademacher(key, (), float)

    env = trials(_ant(backend, horizon), num_episodes=4)
    return TaskFamily("ant-direction", env, sample, sample_heldout=sample)


def ant_angle(*, backend: str = "spring", horizon: int = 100) -> TaskFamily:
    """Ant asked to walk in any direction of the plane.

    Task: a unit vector [2] at a uniform angle.
    Reward, observation, termination: as `ant_direction`.
    Splits: angles in [0, pi/4) are held out; training angles are uniform in the rest, [pi/4, 2 pi).
    Source: Rakelly et al. 2019 (PEARL), "Ant-Dir" (Ant-2D of ProMP), with the reward weights of MAML's code;
    PEARL has no held-out region.

    Args:
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `ant-angle`.

    Raises:
      ValueError: if the backend or horizon is not allowed.
    """
    return TaskFamily("ant-angle", _ant(backend, horizon), heading, heading_heldout)


def _ant(backend: str, horizon: int) -> Env:
    def reward(state: Any, action: Array, task: Task) -> Array:
        velocity = jnp.stack([state.metrics["x_velocity"], state.metrics["y_velocity"]])
        return velocity @ task + 0.05 - 0.005 * jnp.sum(action**2)

    return brax.make("ant", backend=backend, horizon=horizon, reward=reward)
