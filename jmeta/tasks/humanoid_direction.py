"""Humanoid, run in any direction."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jmeta.envs import brax
from jmeta.tasks._splits import heading, heading_heldout
from jmeta.types import Array, Task, TaskFamily


def humanoid_direction(*, backend: str = "spring", horizon: int = 200) -> TaskFamily:
    """Humanoid asked to run in any direction of the plane.

    Task: a unit vector [2] at a uniform angle.
    Reward: 1.25 * velocity of the centre of mass along the direction (m/s) + 5 - 0.1 * |motor command|^2; a
    motor command is 0.4 times the clipped action. The 5 for staying upright dominates until the humanoid
    stands; only the first term differs between tasks.
    Observation: brax's, position on the ground left out and joint velocities scaled by 0.1.
    Termination: the torso leaves heights 1 to 2 m.
    Splits: angles in [0, pi/4) are held out; training angles are uniform in the rest, [pi/4, 2 pi).
    Source: Rakelly et al. 2019 (PEARL), "Humanoid-Dir", and its published code (the same as brax's weights),
    less the contact cost and with a held-out region.

    Args:
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `humanoid-direction`.

    Raises:
      ValueError: if the backend or horizon is not allowed.
    """

    def reward(state: Any, action: Array, task: Task) -> Array:
        del action  # brax's control cost has it in the motors' units
        velocity = jnp.stack([state.metrics["x_velocity"], state.metrics["y_velocity"]])
        return 1.25 * velocity @ task + state.metrics["reward_alive"] + state.metrics["reward_quadctrl"]

    env = brax.make("humanoid", backend=backend, horizon=horizon, reward=reward)
    return TaskFamily("humanoid-direction", env, heading, heading_heldout)
