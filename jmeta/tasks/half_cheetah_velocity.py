"""Half-cheetah, run at a given speed."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jmeta.checks import positive
from jmeta.envs import brax
from jmeta.tasks._splits import uniform_inside, uniform_outside
from jmeta.types import Array, Key, Task, TaskFamily


def half_cheetah_velocity(
    *, max_velocity: float = 2.0, backend: str = "spring", horizon: int = 100
) -> TaskFamily:
    """Half-cheetah asked to run forward at an unseen speed.

    Task: the goal velocity [], uniform in [0, max_velocity] m/s.
    Reward: -|forward velocity of the torso - goal| (m/s) - 0.05 * |action|^2, with the clipped action.
    Observation: brax's, position along the ground left out and joint velocities scaled by 0.1.
    Termination: never.
    Splits: velocities in [1/2, 5/8) of `max_velocity` are held out; training velocities are uniform in the
    rest.
    Source: Finn et al. 2017 (MAML), section 5.3: velocities in [0, 2], horizon 200, no held-out region.
    The code of Rakelly et al. 2019 (PEARL) has [0, 3].

    Args:
      max_velocity: the largest goal velocity (m/s).
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `half-cheetah-velocity`.

    Raises:
      ValueError: if `max_velocity`, backend or horizon is not allowed.
    """
    positive(max_velocity=max_velocity)
    heldout = (max_velocity / 2, max_velocity * 5 / 8)

    def reward(state: Any, action: Array, task: Task) -> Array:
        return -jnp.abs(state.metrics["x_velocity"] - task) - 0.05 * jnp.sum(action**2)

    def sample(key: Key) -> Task:
        return uniform_outside(key, 0.0, max_velocity, heldout)

    def sample_heldout(key: Key) -> Task:
        return uniform_inside(key, heldout)

    env = brax.make("halfcheetah", backend=backend, horizon=horizon, reward=reward)
    return TaskFamily("half-cheetah-velocity", env, sample, sample_heldout)
