"""Environments so small that returns, values and advantages are known by hand.

Each differs from the one before it by one thing that an estimator must get right. Observations have length 1.
Where nothing is said of the task, it is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.types import Array, Continuous, Discrete, Env, EnvSpec, Key, Task, TimeStep


def constant_reward() -> Env:
    """One step of reward 1, then the end: the value is 1, whatever the discount."""
    return time_limit(horizon=1, terminal=True)


def delayed_reward() -> Env:
    """Reward 0, then 1, then the end; the observation is the time: the values are `discount` and 1."""

    def step(obs: Array, action: Array, task: Task) -> tuple[Array, Array, Array]:
        del action, task
        return obs + 1, obs[0], obs[0] == 1

    return _probe(_zero, step, Discrete(2), horizon=2)


def time_limit(*, horizon: int, terminal: bool = False) -> Env:
    """Reward 1 a step, until the time limit or, if `terminal`, the end of the first step.

    With discount g < 1, the value is 1 / (1 - g), for which the time limit must bootstrap; it is 1 if
    `terminal`, for which it must not.

    Args:
      horizon: steps before the time limit.
      terminal: whether the first step ends in a terminal state.

    Raises:
      ValueError: if the horizon is not positive.
    """
    at_least(1, horizon=horizon)

    def step(obs: Array, action: Array, task: Task) -> tuple[Array, Array, Array]:
        del action, task
        return obs, jnp.ones(()), jnp.array(terminal)

    return _probe(_zero, step, Discrete(2), horizon=horizon)


def observation_reward() -> Env:
    """One step whose reward is the observation, -1 or +1 at random: the value is the observation."""

    def first(key: Key) -> Array:
        return jax.random.rademacher(key, (1,), float)

    def step(obs: Array, action: Array, task: Task) -> tuple[Array, Array, Array]:
        del action, task
        return obs, obs[0], jnp.array(True)

    return _probe(first, step, Discrete(2), horizon=1)


def action_reward() -> Env:
    """One step of reward -(action - task)^2, with an action [1] and a task []: the best action is the task.

    For actions of mean m and standard deviation s, the value is -(m - task)^2 - s^2.
    """

    def step(obs: Array, action: Array, task: Task) -> tuple[Array, Array, Array]:
        return obs, -((action[0] - task) ** 2), jnp.array(True)

    return _probe(_zero, step, Continuous(1, -math.inf, math.inf), horizon=1)


def _zero(key: Key) -> Array:
    del key
    return jnp.zeros(1)


def _probe(
    first: Callable[[Key], Array],
    transition: Callable[[Array, Array, Task], tuple[Array, Array, Array]],
    action: Continuous | Discrete,
    *,
    horizon: int,
) -> Env:
    """Makes an environment whose state is its observation; `transition` gives obs, reward, terminated."""

    def reset(key: Key, task: Task) -> tuple[Array, TimeStep]:
        del task
        obs = first(key)
        return obs, TimeStep(obs, jnp.zeros(()), jnp.array(False))

    def step(key: Key, state: Array, action: Array, task: Task) -> tuple[Array, TimeStep]:
        del key
        obs, reward, terminated = transition(state, action, task)
        return obs, TimeStep(obs, reward, terminated)

    return Env(reset, step, EnvSpec(obs_size=1, action=action, horizon=horizon))
