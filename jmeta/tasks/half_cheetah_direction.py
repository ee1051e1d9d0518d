"""Half-cheetah, run forward or backward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmeta.envs import brax
from jmeta.types import Array, Key, Task, TaskFamily


def half_cheetah_direction(*, backend: str = "spring", horizon: int = 100) -> TaskFamily:
    """Half-cheetah asked to run forward or backward.

    Task: the direction [], -1 or +1 with equal probability.
    Reward: direction * forward velocity of the torso (m/s) - 0.1 * |action|^2, with the clipped action.
    Observation: brax's, position along the ground left out and joint velocities scaled by 0.1.
    Termination: never.
    Splits: two tasks in all, so there is no held-out set and `sample_heldout` is `sample`.
    Source: Finn et al. 2017 (MAML), section 5.3, horizon 200. The control cost is brax's; MAML's code has
    0.05.

    Args:
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `half-cheetah-direction`.

    Raises:
      ValueError: if the backend or horizon is not allowed.
    """

    def reward(state: Any, action: Array, task: Task) -> Array:
        return task * state.metrics["x_velocity"] - 0.1 * jnp.sum(action**2)

    def sample(key: Key) -> Task:
        return jax.random.rademacher(key, (), float)

    env = brax.make("halfcheetah", backend=backend, horizon=horizon, reward=reward)
    return TaskFamily("half-cheetah-direction", env, sample, sample_heldout=sample)
