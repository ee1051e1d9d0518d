"""Recommendations: clicks follow the preferences, offers are fresh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import tasks
from jmeta.envs.recommendation import SLOPE


def test_clicks_follow_the_hidden_preferences():
    family = tasks.recommendation(num_items=3, num_features=2)
    task = jnp.array([1.5, -0.5])
    state, start = family.env.reset(jax.random.key(0), task)
    np.testing.assert_array_equal(start.obs, np.asarray(state).ravel())
    keys = jax.random.split(jax.random.key(1), 4000)
    for item in range(3):
        clicks = jax.vmap(lambda key, i=item: family.env.step(key, state, i, task)[1].reward)(keys)
        probability = 1 / (1 + np.exp(-SLOPE * float(np.asarray(state)[item] @ np.asarray(task))))
        # Standard error at most 0.008; four of them.
        np.testing.assert_allclose(clicks.mean(), probability, atol=0.032)


def test_offers_are_fresh_and_of_unit_size():
    family = tasks.recommendation(num_items=5, num_features=4)
    state, _ = family.env.reset(jax.random.key(0), jnp.zeros(4))
    keys = jax.random.split(jax.random.key(1), 1000)
    offers = jax.vmap(lambda key: family.env.step(key, state, 0, jnp.zeros(4))[1].obs)(keys)
    assert offers.shape == (1000, 20)
    # 20,000 numbers of variance 1/4, to 0.0025.
    np.testing.assert_allclose(offers.var(), 0.25, atol=0.01)
    assert np.abs(np.corrcoef(np.asarray(offers).T) - np.eye(20)).max() < 0.15


def test_every_preference_matters():
    family = tasks.recommendation(num_items=2, num_features=3)
    state, _ = family.env.reset(jax.random.key(0), jnp.zeros(3))
    keys = jax.random.split(jax.random.key(1), 2000)

    def clicks(task):
        return jax.vmap(lambda key: family.env.step(key, state, 0, task)[1].reward)(keys).mean()

    base = clicks(jnp.zeros(3))
    for feature in range(3):
        assert abs(clicks(jnp.zeros(3).at[feature].set(3.0)) - base) > 0.03


@pytest.mark.parametrize("argument", ["num_items", "num_features", "horizon"])
def test_bad_arguments_are_named(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        tasks.recommendation(**{argument: 0})
