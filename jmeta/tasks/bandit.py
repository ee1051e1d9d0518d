"""Bernoulli bandits with random arms."""

from __future__ import annotations

import jax

from jmeta.envs import bandit as envs
from jmeta.types import Array, Key, TaskFamily


def bandit(*, num_arms: int = 5, num_pulls: int = 10) -> TaskFamily:
    """Arms that pay 1 with an unknown probability: explore, then pull the best.

    Task: the arms' probabilities [A], each uniform in [0, 1].
    Reward: 1 with the probability of the arm pulled, else 0.
    Observation: none (a constant). Actions: A arms. A trial is one episode of all pulls.
    Termination: never.
    Splits: none: the held-out tasks are fresh ones of the same distribution.
    Source: Duan et al. 2016 (RL²), section 3.1.

    `optimal_return`: pulls of the best arm throughout; no agent that does not know it comes near.

    Args:
      num_arms: A.
      num_pulls: steps in an episode.

    Returns:
      The family `bandit`.

    Raises:
      ValueError: an argument is not positive.
    """

    def sample(key: Key) -> Array:
        return jax.random.uniform(key, (num_arms,))

    def optimal_return(task: Array) -> Array:
        return num_pulls * task.max()

    env = envs.bandit(num_arms=num_arms, num_pulls=num_pulls)
    return TaskFamily("bandit", env, sample, sample, optimal_return)
