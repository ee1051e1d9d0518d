"""Environments made of other environments: other actions, longer trials, starts that belong to the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import at_least, finite
from jmeta.types import Array, Continuous, Discrete, Env, Key, PyTree, Task, TaskFamily, TimeStep

MAX_DISCRETE_ACTIONS = 4096


def clip_actions(env: Env, *, low: float = -1.0, high: float = 1.0) -> Env:
    """Clips actions to `[low, high]`, so that dynamics and reward both see the clipped action.

    Args:
      env: an environment with a `Continuous` action space.
      low: lower bound of every action dimension.
      high: upper bound of every action dimension.

    Returns:
      The environment; its spec states the bounds.

    Raises:
      ValueError: if the actions are discrete or `low` is not below `high`.
    """
    if not isinstance(env.spec.action, Continuous):
        raise ValueError(f"clip_actions needs Continuous actions, got {env.spec.action}")
    if not low < high:
        raise ValueError(f"low must be below high, got low={low}, high={high}")

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        return env.step(key, state, jnp.clip(action, low, high), task)

    action = dataclasses.replace(env.spec.action, low=low, high=high)
    return env._replace(step=step, spec=dataclasses.replace(env.spec, action=action))


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
    at_least(2, bins=bins)
    finite(low=low, high=high)
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


class HeldReset(NamedTuple):
    """A task that says how its episodes start."""

    reset_key: Array  # data of a random key, uint32
    task: Task  # of the family that was given


def hold_reset(family: TaskFamily) -> TaskFamily:
    """The family with the key of `reset` as a part of the task, so that every episode of a task starts alike.

    This is for environments that draw the goal of an episode in `reset`: with a new key for every episode
    there would be nothing to adapt to. All that `reset` draws is held, the starting position too.

    Args:
      family: the family.

    Returns:
      A family of the same name, whose tasks are `HeldReset`.
    """
    env, optimal_return = family.env, family.optimal_return

    def hold(sample: Callable[[Key], Task]) -> Callable[[Key], HeldReset]:
        def sample_held(key: Key) -> HeldReset:
            key_reset, key_task = jax.random.split(key)
            return HeldReset(jax.random.key_data(key_reset), sample(key_task))

        return sample_held

    def reset(key: Key, task: HeldReset) -> tuple[PyTree, TimeStep]:
        held = jax.random.wrap_key_data(task.reset_key, impl=jax.random.key_impl(key))
        return env.reset(held, task.task)

    def step(key: Key, state: PyTree, action: Array, task: HeldReset) -> tuple[PyTree, TimeStep]:
        return env.step(key, state, action, task.task)

    sample = hold(family.sample)
    no_split = family.sample_heldout is family.sample
    return family._replace(
        env=env._replace(reset=reset, step=step),
        sample=sample,
        sample_heldout=sample if no_split else hold(family.sample_heldout),
        optimal_return=optimal_return and (lambda task: optimal_return(task.task)),
    )
