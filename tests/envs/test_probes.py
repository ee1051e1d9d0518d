"""The probes give what their docstrings promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.envs import probes


def run(env, actions, task=None, key=0):
    """Steps through `actions`; returns observations (one more than actions), rewards, terminations."""
    state, time_step = env.reset(jax.random.key(key), task)
    obs, rewards, ends = [time_step.obs], [], []
    for action in actions:
        state, time_step = env.step(jax.random.key(0), state, jnp.asarray(action), task)
        obs.append(time_step.obs)
        rewards.append(float(time_step.reward))
        ends.append(bool(time_step.terminated))
    return np.stack(obs), rewards, ends


def test_constant_reward():
    _, rewards, ends = run(probes.constant_reward(), [0])
    assert rewards == [1.0] and ends == [True]


def test_delayed_reward_shows_the_time():
    obs, rewards, ends = run(probes.delayed_reward(), [0, 1])
    assert rewards == [0.0, 1.0] and ends == [False, True]
    np.testing.assert_array_equal(obs, [[0.0], [1.0], [2.0]])


def test_time_limit_differs_from_a_terminal_state_in_termination_alone():
    limit_obs, limit_rewards, limit_ends = run(probes.time_limit(horizon=3), [0, 0, 0])
    obs, rewards, ends = run(probes.time_limit(horizon=3, terminal=True), [0, 0, 0])
    np.testing.assert_array_equal(obs, limit_obs)
    assert rewards == limit_rewards == [1.0, 1.0, 1.0]
    assert limit_ends == [False] * 3 and ends[0]
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        probes.time_limit(horizon=0)


def test_observation_reward_is_the_first_observation():
    seen = set()
    for key in range(8):
        obs, rewards, ends = run(probes.observation_reward(), [0], key=key)
        assert rewards == [obs[0, 0]] and ends == [True]
        seen.add(rewards[0])
    assert seen == {-1.0, 1.0}


def test_action_reward():
    # -(0.5 - 2)^2 = -2.25; nothing is lost at the task itself.
    assert run(probes.action_reward(), [[0.5]], task=jnp.array(2.0))[1:] == ([-2.25], [True])
    assert run(probes.action_reward(), [[2.0]], task=jnp.array(2.0))[1] == [0.0]
