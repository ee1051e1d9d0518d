"""Hopper and walker with unseen masses, damping, friction and motors."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jmeta.checks import positive
from jmeta.envs import brax
from jmeta.tasks._splits import uniform_inside, uniform_outside
from jmeta.types import Array, Continuous, Key, Task, TaskFamily


class PhysicalParameters(NamedTuple):
    """Factors of a robot's physical parameters, 1 for the unchanged robot of L links."""

    mass: Array  # [L] of the links' masses and inertias
    damping: Array  # [L-1] of the hinges' damping
    friction: Array  # [] of every surface
    gear: Array  # [L-1] of the motors' strength


def hopper_parameters(
    *, log_scale_limit: float = 3.0, backend: str = "spring", horizon: int = 200
) -> TaskFamily:
    """Hopper whose physical parameters differ from task to task.

    Task: `PhysicalParameters` of 4 links: masses and friction are multiplied by 1.5**u, damping and motors by
    1.3**u, each with its own u uniform in [-log_scale_limit, log_scale_limit].
    Reward: forward velocity (m/s) + 1 for staying upright - 0.001 * |action|^2, with the clipped action:
    brax's own.
    Observation: brax's, position along the ground left out and joint velocities scaled by 0.1.
    Termination: the torso falls below 0.7 m or leans by more than 0.2 rad.
    Splits: torso masses with u in [1/3, 2/3) of the limit are held out; training torsos have the other u.
    Source: rand_param_envs, `HopperRandParamsEnv`, used by ProMP and PEARL. Differences: inertias follow the
    masses, the spring backends ignoring most of an inertia; one factor for all surfaces, of a pair of which
    only the rougher counts; motors are varied too; there is a held-out region.

    Args:
      log_scale_limit: range of the exponent u.
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `hopper-parameters`.

    Raises:
      ValueError: if `log_scale_limit`, backend or horizon is not allowed.
    """
    return _family("hopper", log_scale_limit, backend, horizon)


def walker2d_parameters(
    *, log_scale_limit: float = 3.0, backend: str = "spring", horizon: int = 200
) -> TaskFamily:
    """Walker whose physical parameters differ from task to task.

    Task: `PhysicalParameters` of 7 links, distributed as in `hopper_parameters`.
    Reward, observation, splits: as `hopper_parameters`.
    Termination: the torso leaves heights 0.8 to 2 m or leans by more than 1 rad.
    Source: rand_param_envs, `Walker2DRandParamsEnv`, with the differences named in `hopper_parameters`.

    Args:
      log_scale_limit: range of the exponent u.
      backend: brax physics: spring, generalized, positional or mjx.
      horizon: steps in an episode.

    Returns:
      The family `walker2d-parameters`.

    Raises:
      ValueError: if `log_scale_limit`, backend or horizon is not allowed.
    """
    return _family("walker2d", log_scale_limit, backend, horizon)


def _family(robot: str, limit: float, backend: str, horizon: int) -> TaskFamily:
    positive(log_scale_limit=limit)
    heldout = (limit / 3, limit * 2 / 3)

    def reward(state: Any, action: Array, task: Task) -> Array:
        del action, task
        return state.reward

    def apply_task(system: Any, task: PhysicalParameters) -> Any:
        return brax.scale_physics(system, backend=backend, **task._asdict())

    env = brax.make(robot, backend=backend, horizon=horizon, reward=reward, apply_task=apply_task)
    assert isinstance(env.spec.action, Continuous)
    hinges = env.spec.action.size

    def parameters(key: Key, torso: Array) -> PhysicalParameters:
        key_mass, key_damping, key_friction, key_gear = jax.random.split(key, 4)

        def exponents(key: Key, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-limit, maxval=limit)

        return PhysicalParameters(
            mass=1.5 ** exponents(key_mass, (hinges + 1,)).at[0].set(torso),
            damping=1.3 ** exponents(key_damping, (hinges,)),
            friction=1.5 ** exponents(key_friction, ()),
            gear=1.3 ** exponents(key_gear, (hinges,)),
        )

    def sample(key: Key) -> Task:
        key_torso, key_rest = jax.random.split(key)
        return parameters(key_rest, uniform_outside(key_torso, -limit, limit, heldout))

    def sample_heldout(key: Key) -> Task:
        key_torso, key_rest = jax.random.split(key)
        return parameters(key_rest, uniform_inside(key_torso, heldout))

    name = f"{robot}-parameters"
    return TaskFamily(name, env, sample, sample_heldout)
