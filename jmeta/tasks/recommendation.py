"""Personalisation: recommend items to a user whose preferences are hidden."""

from __future__ import annotations

import jax

from jmeta.envs.recommendation import recommendation as environment
from jmeta.types import Array, Key, TaskFamily


def recommendation(*, num_items: int = 5, num_features: int = 4, horizon: int = 50) -> TaskFamily:
    """A contextual bandit: at every step choose one of some items by their features; a click pays 1.

    Task: the user's preferences [F], each ~ N(0, 1).
    Reward: 1 if the user clicks, with probability sigmoid(2 preferences . features), else 0.
    Observation: the features of the items on offer [items x F], each ~ N(0, 1) / sqrt(F), drawn anew at every
    step. Actions: the items. A trial is one episode.
    Termination: never.
    Splits: none: the held-out tasks are fresh ones of the same distribution.
    Source: the linear contextual bandit with binary rewards (Li et al. 2010, LinUCB; Chapelle and Li 2011),
    with hidden preferences as the task.

    Args:
      num_items: on offer at every step.
      num_features: F.
      horizon: recommendations in an episode.

    Returns:
      The family `recommendation`.

    Raises:
      ValueError: an argument is not positive.
    """

    def sample(key: Key) -> Array:
        return jax.random.normal(key, (num_features,))

    env = environment(num_items=num_items, num_features=num_features, horizon=horizon)
    return TaskFamily("recommendation", env, sample, sample)
