"""Regression as an environment: an episode shows one input and takes one prediction."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from jmeta.types import Array, Continuous, Env, EnvSpec, Key, Task, TimeStep


def regression(
    *, input_size: int, sample_input: Callable[[Key], Array], target: Callable[[Array, Task], Array]
) -> Env:
    """Makes a regression problem whose reward is minus the squared error.

    Args:
      input_size: D.
      sample_input: draws an input [D].
      target: (input [D], task) -> the number [] to predict, by the one component of the action.

    Returns:
      The environment, of horizon 1. Its reward is differentiable in the action, for `inner="supervised"`.
    """

    def reset(key: Key, task: Task) -> tuple[Array, TimeStep]:
        del task
        inputs = sample_input(key)
        return inputs, TimeStep(inputs, jnp.zeros(()), jnp.array(False))

    def step(key: Key, state: Array, action: Array, task: Task) -> tuple[Array, TimeStep]:
        del key
        reward = -jnp.square(action[0] - target(state, task))
        return state, TimeStep(state, reward, jnp.array(False))

    return Env(
        reset, step, EnvSpec(input_size, Continuous(1, -math.inf, math.inf), horizon=1, terminates=False)
    )
