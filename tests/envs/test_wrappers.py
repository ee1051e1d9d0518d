"""Wrappers change the action as documented."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.envs import clip_actions, discretize_actions, hold_reset, point_mass, probes
from jmeta.types import Continuous, Discrete, TaskFamily


@pytest.fixture
def point():
    return point_mass(horizon=3, reward=lambda position, task: position[0])


def test_clip_actions_reaches_the_reward():
    env = clip_actions(probes.action_reward(), low=-2.0, high=1.0)
    state, _ = env.reset(jax.random.key(0), jnp.array(0.0))
    for action, reward in [(5.0, -1.0), (-5.0, -4.0), (0.5, -0.25)]:  # -(clip(action, -2, 1))^2
        _, time_step = env.step(jax.random.key(0), state, jnp.array([action]), jnp.array(0.0))
        assert time_step.reward == reward


def test_discrete_actions_are_digits(point):
    env = discretize_actions(point, bins=3)
    assert env.spec.action == Discrete(9)
    assert env.spec.obs_size == 2 and env.spec.horizon == 3
    # In base 3, 0 to 8 is 00, 01, 02, 10, ..., 22; digits 0, 1, 2 stand for -1, 0, 1, times a tenth.
    expected = [[first / 10, second / 10] for first in (-1, 0, 1) for second in (-1, 0, 1)]
    state, _ = env.reset(jax.random.key(0), None)
    _, time_steps = jax.vmap(lambda action: env.step(jax.random.key(0), state, action, None))(jnp.arange(9))
    np.testing.assert_allclose(time_steps.obs, expected, atol=1e-7)


def test_discrete_range(point):
    env = discretize_actions(point, bins=2, low=0.25, high=0.75)
    state, _ = env.reset(jax.random.key(0), None)
    _, time_step = env.step(jax.random.key(0), state, jnp.array(1), None)  # digits 0, 1
    np.testing.assert_allclose(time_step.obs, [0.025, 0.075], rtol=1e-6)


def test_validation(point):
    discrete = discretize_actions(point, bins=2)
    with pytest.raises(ValueError, match="needs Continuous actions"):
        discretize_actions(discrete, bins=2)
    with pytest.raises(ValueError, match="needs Continuous actions"):
        clip_actions(discrete)
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        discretize_actions(point, bins=1)
    with pytest.raises(ValueError, match="bins=65 on 2 action dimensions makes 4225"):
        discretize_actions(point, bins=65)
    with pytest.raises(ValueError, match="low=1.0, high=1.0"):
        clip_actions(point, low=1.0, high=1.0)
    with pytest.raises(ValueError, match="low=2.0, high=1.0"):
        discretize_actions(point, bins=3, low=2.0)


def test_the_spec_states_the_bounds_of_actions():
    bounded = clip_actions(probes.action_reward(), low=-2.0, high=3.0)
    assert bounded.spec.action == Continuous(1, -2.0, 3.0)


def test_a_held_reset_starts_every_episode_of_a_task_alike():
    env = probes.observation_reward()  # draws its observation in `reset`
    family = TaskFamily("drawn", env, lambda key: jnp.zeros(()), lambda key: jnp.zeros(()))
    held = hold_reset(family._replace(optimal_return=lambda task: task + 1))
    tasks = jax.vmap(held.sample)(jax.random.split(jax.random.key(0), 20))
    assert all(leaf.dtype != jax.random.key(0).dtype for leaf in jax.tree.leaves(tasks))  # plain arrays
    keys = jax.random.split(jax.random.key(1), 5)
    obs = jax.vmap(lambda task: jax.vmap(lambda key: held.env.reset(key, task)[1].obs)(keys))(tasks)
    assert (obs == obs[:, :1]).all()
    assert set(obs.ravel().tolist()) == {-1.0, 1.0}
    assert held.optimal_return(jax.tree.map(lambda x: x[0], tasks)) == 1
    assert hold_reset(family._replace(sample_heldout=family.sample)).sample_heldout is not held.sample
