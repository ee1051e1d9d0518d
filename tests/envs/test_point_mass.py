"""The point moves as documented."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.envs import point_mass


@pytest.fixture
def env():
    return point_mass(
        horizon=3,
        reward=lambda position, task: position @ task,
        terminated=lambda position, task: position[0] > 0.15,
    )


def test_moves_by_a_tenth_of_the_clipped_action(env):
    task = jnp.array([2.0, 10.0])
    state, first = env.reset(jax.random.key(0), task)
    np.testing.assert_array_equal(first.obs, [0.0, 0.0])
    assert first.reward == 0 and not first.terminated

    # Action (0.5, -3) is clipped to (0.5, -1): position (0.05, -0.1), reward 0.05 * 2 - 0.1 * 10 = -0.9.
    state, second = env.step(jax.random.key(0), state, jnp.array([0.5, -3.0]), task)
    np.testing.assert_allclose(second.obs, [0.05, -0.1], rtol=1e-6)
    np.testing.assert_allclose(second.reward, -0.9, rtol=1e-6)
    assert not second.terminated

    # Then (9, 1) is clipped to (1, 1): position (0.15, 0), reward 0.3; and once more to (0.25, 0.1), the end.
    state, third = env.step(jax.random.key(0), state, jnp.array([0.9, 1.0]), task)
    assert not third.terminated
    _, fourth = env.step(jax.random.key(0), state, jnp.array([9.0, 1.0]), task)
    assert fourth.terminated


def test_without_a_terminal_region_nothing_terminates():
    env = point_mass(horizon=2, reward=lambda position, task: position[0])
    state, _ = env.reset(jax.random.key(0), None)
    for _ in range(5):  # beyond the horizon, which is the rollout's business
        state, time_step = env.step(jax.random.key(0), state, jnp.ones(2), None)
        assert not time_step.terminated


def test_rejects_a_horizon_below_one():
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        point_mass(horizon=0, reward=lambda position, task: position[0])
