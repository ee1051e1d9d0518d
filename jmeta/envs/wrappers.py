"""Environments made of other environments: other actions, longer trials."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.types import Array, Continuous, Discrete, Env, Key, PyTree, Task, TimeStep

MAX_DISCRETE_ACTIONS = 4096


def clip_actions(env: Env, *, low: float = -1.0, high: float = 1.0) -> Env:
    """Clips actions to `[low, high]`, so that dynamics and reward both see the clipped action.

    Args:
      env: an environment with a `Continuous` action space.
      low: lower bound of every action dimension.
      high: upper bound of every action dimension.

    Returns:
      The environment, its spec unchanged.

    Raises:
      ValueError: if the actions are discrete or `low` is not below `high`.
    """
    if not isinstance(env.spec.action, Continuous):
        raise ValueError(f"clip_actions needs Continuous actions, got {env.spec.action}")
    if not low < high:
        raise ValueError(f"low must be below high, got low={low}, high={high}")

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        return env.step(key, state, jnp.clip(action, low, high), task)

    return env._replace(step=step)


def discretize_actions(env: Env, *, bins: int, low: float = -1.0, high: float = 1.0) -> Env:
    """Turns `Continuous(size)` actions into `Discrete(bins**size)`: a grid of `bins` values a dimension.

    Action `a` is read as `size` digits in base `bins`, most significant digit first; digit `d` stands for
    `low + d * (high - low) / (bins - 1)`, so the ends of the range are among the values.

    Args:
      env: an environment with a `Continuous` action space.
      bins: values in each action dimension, at least 2.
      low: value of digit 0.
      high: value of digit `bins - 1`.

    Returns:
      The environment with discrete actions.

    Raises:
      ValueError: if the actions are already discrete, `bins` is below 2, `low` is not below `high`, or the
        grid has more than `MAX_DISCRETE_ACTIONS` actions.
    """
    if not isinstance(env.spec.action, Continuous):
        raise ValueError(f"discretize_actions needs Continuous actions, got {env.spec.action}")
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    if not low < high:
        raise ValueError(f"low must be below high, got low={low}, high={high}")
    size = env.spec.action.size
    num = bins**size
    if num > MAX_DISCRETE_ACTIONS:
        raise ValueError(
            f"bins={bins} on {size} action dimensions makes {num} actions; at most {MAX_DISCRETE_ACTIONS}"
        )

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        values = jnp.linspace(low, high, bins)  # [bins]
        digits = action // bins ** jnp.arange(size - 1, -1, -1) % bins  # [size]
        return env.step(key, state, values[digits], task)

    return env._replace(step=step, spec=dataclasses.replace(env.spec, action=Discrete(num)))


def trials(env: Env, *, num_episodes: int) -> Env:
    """The same environment, of which `num_episodes` make a trial.

    Args:
      env: the environment.
      num_episodes: E, for methods with a memory.

    Raises:
      ValueError: if it is not positive.
    """
    at_least(1, num_episodes=num_episodes)
    return env._replace(spec=dataclasses.replace(env.spec, trial_episodes=num_episodes))
