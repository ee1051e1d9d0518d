"""A multi-armed bandit whose task is the arms' success probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.types import Array, Discrete, Env, EnvSpec, Key, TimeStep


def bandit(*, num_arms: int, num_pulls: int) -> Env:
    """Makes a Bernoulli bandit: pulling an arm pays 1 with its probability, else 0.

    Args:
      num_arms: A.
      num_pulls: steps in an episode.

    Returns:
      The environment: its task holds probabilities [A]; the observation is constant.

    Raises:
      ValueError: if an argument is not positive.
    """
    at_least(1, num_arms=num_arms, num_pulls=num_pulls)

    def observe(reward: Array) -> TimeStep:
        return TimeStep(jnp.zeros(1), reward, jnp.array(False))

    def reset(key: Key, task: Array) -> tuple[tuple[()], TimeStep]:
        del key, task
        return (), observe(jnp.zeros(()))

    def step(key: Key, state: tuple[()], action: Array, task: Array) -> tuple[tuple[()], TimeStep]:
        return state, observe(jax.random.bernoulli(key, task[action]).astype(float))

    return Env(
        reset,
        step,
        EnvSpec(1, Discrete(num_arms), horizon=num_pulls, trial_episodes=1, terminates=False),
    )
