"""Ant, walk to a place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmeta.envs import brax
from jmeta.tasks._splits import heading, heading_heldout
from jmeta.types import Array, Key, Task, TaskFamily

_RADIUS = 3.0


def ant_goal(*, backend: str = "spring", horizon: int = 200) -> TaskFamily:
    """Ant asked to walk to an unseen goal.

    Task: the goal [2], uniform in the disc of radius 3 m around the start.
    Reward: minus the L1 distance from torso to goal (m) - 0.1 * |action|^2, with the clipped action.
    Observation: brax's, with the position on the ground; joint velocities scaled by 0.1.
    Termination: never, not even if the ant falls.
    Splits: goals at angles in [0, pi/4) are held out; training goals are uniform in the rest of the disc.
    Source: Rakelly et al. 2019 (PEARL), "Ant-Goal-2D", and its published code, less the contact cost (brax
    has no contact forces on every backend) and with a held-out region.

    Args:
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `ant-goal`.

    Raises:
      ValueError: if the backend or horizon is not allowed.
    """

    def reward(state: Any, action: Array, task: Task) -> Array:
        position = state.pipeline_state.x.pos[0, :2]
        return -jnp.sum(jnp.abs(position - task)) - 0.1 * jnp.sum(action**2)

    env = brax.make(
        "ant",
        backend=backend,
        horizon=horizon,
        reward=reward,
        observe_position=True,
        terminate_when_unhealthy=False,
    )
    return TaskFamily("ant-goal", env, _goal(heading), _goal(heading_heldout))


def _goal(sample_heading: Callable[[Key], Array]) -> Callable[[Key], Task]:
    def sample(key: Key) -> Task:
        key_heading, key_radius = jax.random.split(key)
        # The square root makes the goal uniform in area.
        return sample_heading(key_heading) * _RADIUS * jnp.sqrt(jax.random.uniform(key_radius))

    return sample
