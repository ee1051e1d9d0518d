"""Regression as an environment of one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.envs.regression import regression
from jmeta.types import Continuous


@pytest.fixture
def env():
    """The target is the task times the product of two inputs."""
    return regression(
        input_size=2,
        sample_input=lambda key: jax.random.normal(key, (2,)),
        target=lambda inputs, task: task * inputs[0] * inputs[1],
    )


def test_an_episode_shows_an_input_and_pays_the_squared_error(env):
    key = jax.random.key(0)
    state, first = env.reset(key, jnp.array(2.0))
    np.testing.assert_array_equal(first.obs, jax.random.normal(key, (2,)))
    assert first.reward == 0 and not first.terminated
    # Target 2 * 3 * -1 = -6; the prediction -5 is 1 off, the prediction 0 is 6 off.
    for prediction, reward in ((-5.0, -1.0), (0.0, -36.0), (-6.0, 0.0)):
        _, last = env.step(key, jnp.array([3.0, -1.0]), jnp.array([prediction]), jnp.array(2.0))
        assert last.reward == reward and not last.terminated
    _, last = env.step(key, state, jnp.zeros(1), jnp.array(2.0))
    np.testing.assert_allclose(last.reward, -((2 * first.obs[0] * first.obs[1]) ** 2), rtol=1e-6)


def test_inputs_are_fresh_for_every_key(env):
    observed = {float(env.reset(jax.random.key(seed), jnp.array(1.0))[1].obs[0]) for seed in range(5)}
    assert len(observed) == 5


def test_the_reward_is_differentiable_in_the_prediction(env):
    def reward(prediction):
        return env.step(jax.random.key(0), jnp.array([3.0, -1.0]), prediction, jnp.array(2.0))[1].reward

    # d -(p + 6)^2 / dp at -5: -2.
    np.testing.assert_allclose(jax.grad(reward)(jnp.array([-5.0])), [-2.0])


def test_spec(env):
    assert (env.spec.obs_size, env.spec.action, env.spec.horizon) == (2, Continuous(1, -np.inf, np.inf), 1)
