"""A user who clicks on items, whose task is the user's preferences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.types import Array, Discrete, Env, EnvSpec, Key, TimeStep

SLOPE = 2.0  # how sharply clicks tell good items from bad


def recommendation(*, num_items: int, num_features: int, horizon: int) -> Env:
    """Makes a contextual bandit: items with random features are on offer, anew at every step.

    Args:
      num_items: A, items on offer.
      num_features: F.
      horizon: recommendations in an episode.

    Returns:
      The environment: its task is the preferences [F], its state the features on offer [A, F], its
      observation the same, flat.

    Raises:
      ValueError: if an argument is not positive.
    """
    at_least(1, num_items=num_items, num_features=num_features, horizon=horizon)

    def offer(key: Key, reward: Array) -> tuple[Array, TimeStep]:
        items = jax.random.normal(key, (num_items, num_features)) / jnp.sqrt(num_features)
        return items, TimeStep(items.ravel(), reward, jnp.array(False))

    def reset(key: Key, task: Array) -> tuple[Array, TimeStep]:
        del task
        return offer(key, jnp.zeros(()))

    def step(key: Key, state: Array, action: Array, task: Array) -> tuple[Array, TimeStep]:
        key_click, key_offer = jax.random.split(key)
        click = jax.random.bernoulli(key_click, jax.nn.sigmoid(SLOPE * state[action] @ task))
        return offer(key_offer, click.astype(float))

    spec = EnvSpec(num_items * num_features, Discrete(num_items), horizon, trial_episodes=1, terminates=False)
    return Env(reset, step, spec)
