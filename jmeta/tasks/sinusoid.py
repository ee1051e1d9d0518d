"""Regression of a sine of unknown amplitude and phase."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.envs import trials
from jmeta.envs.regression import regression
from jmeta.types import Array, Key, TaskFamily


class Sine(NamedTuple):
    """The function amplitude * sin(x - phase)."""

    amplitude: Array  # []
    phase: Array  # [] radians


def sinusoid() -> TaskFamily:
    """Sines to regress from a few points of them; an episode is one point, so K shots are K episodes.

    Task: a `Sine`, amplitude uniform in [0.1, 5], phase uniform in [0, pi].
    Reward: minus the squared error of the prediction.
    Observation: the input x [1], uniform in [-5, 5]. Action: the prediction [1].
    Horizon: 1 step.
    Termination: never.
    Splits: none: the held-out tasks are fresh ones of the same distribution.
    Source: Finn et al. 2017 (MAML), section 5.1; its published code has sin(x - phase).

    `optimal_return`: 0.

    Returns:
      The family `sinusoid`.
    """

    def sample(key: Key) -> Sine:
        key_amplitude, key_phase = jax.random.split(key)
        amplitude = jax.random.uniform(key_amplitude, minval=0.1, maxval=5.0)
        return Sine(amplitude, jax.random.uniform(key_phase, maxval=jnp.pi))

    def target(inputs: Array, task: Sine) -> Array:
        return task.amplitude * jnp.sin(inputs[0] - task.phase)

    def sample_input(key: Key) -> Array:
        return jax.random.uniform(key, (1,), minval=-5.0, maxval=5.0)

    def optimal_return(task: Sine) -> Array:
        return jnp.zeros_like(task.phase)

    env = trials(regression(input_size=1, sample_input=sample_input, target=target), num_episodes=11)
    return TaskFamily("sinusoid", env, sample, sample, optimal_return)
