"""The tabular environment follows its tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.envs import tabular_mdp
from jmeta.envs.tabular_mdp import TabularTask, finite_horizon_value
from jmeta.types import Discrete

# Two states, two actions. In state 0, action 0 stays with probability 1/4; the rest is deterministic.
TASK = TabularTask(
    transition=jnp.array([[[0.25, 0.75], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]),
    reward=jnp.array([[1.0, 2.0], [3.0, 4.0]]),
)


@pytest.fixture
def env():
    return tabular_mdp(num_states=2, num_actions=2, horizon=3)


def test_deterministic_walk(env):
    key = jax.random.key(0)
    state, first = env.reset(key, TASK)
    np.testing.assert_array_equal(first.obs, [1.0, 0.0])
    # 0 --action 1, reward 2--> 1 --action 1, reward 4--> 1 --action 0, reward 3--> 0
    for action, reward, obs in [(1, 2.0, [0, 1]), (1, 4.0, [0, 1]), (0, 3.0, [1, 0])]:
        state, time_step = env.step(key, state, jnp.array(action), TASK)
        assert time_step.reward == reward
        np.testing.assert_array_equal(time_step.obs, obs)
        assert not time_step.terminated


def test_transition_frequencies(env):
    state, _ = env.reset(jax.random.key(0), TASK)
    keys = jax.random.split(jax.random.key(1), 4000)
    next_states, _ = jax.vmap(lambda key: env.step(key, state, jnp.array(0), TASK))(keys)
    # Standard error sqrt(0.75 * 0.25 / 4000) = 0.007; four of them.
    np.testing.assert_allclose(next_states.mean(), 0.75, atol=0.028)


def test_every_table_entry_matters(env):
    state, _ = env.reset(jax.random.key(0), TASK)
    for action in range(2):
        changed = TASK._replace(reward=TASK.reward.at[0, action].add(0.5))
        _, time_step = env.step(jax.random.key(0), state, jnp.array(action), changed)
        assert time_step.reward == TASK.reward[0, action] + 0.5
    always_stay = TASK._replace(transition=jnp.eye(2)[:, None, :].repeat(2, axis=1))
    next_state, _ = env.step(jax.random.key(0), state, jnp.array(1), always_stay)
    assert next_state == 0


def test_rewards_are_as_noisy_as_asked():
    env = tabular_mdp(num_states=2, num_actions=2, horizon=3, reward_std=0.5)
    keys = jax.random.split(jax.random.key(2), 4000)
    next_states, time_steps = jax.vmap(lambda key: env.step(key, jnp.array(0), jnp.array(0), TASK))(keys)
    rewards = np.asarray(time_steps.reward)
    # Standard errors 0.5 / sqrt(4000) = 0.008 and 0.5 / sqrt(8000) = 0.006; four of them.
    np.testing.assert_allclose(rewards.mean(), 1.0, atol=0.032)
    np.testing.assert_allclose(rewards.std(), 0.5, atol=0.023)
    # And the noise tells nothing of the next state: four of 1 / sqrt(4000).
    assert abs(np.corrcoef(rewards, next_states)[0, 1]) < 0.064


@pytest.mark.parametrize(
    ("horizon", "value"),
    [
        (0, [0, 0]),
        # max(1, 2) and max(3, 4).
        (1, [2, 4]),
        # max(1 + 0.25 * 2 + 0.75 * 4, 2 + 4) and max(3 + 2, 4 + 4).
        (2, [6, 8]),
        # max(1 + 0.25 * 6 + 0.75 * 8, 2 + 8) and max(3 + 6, 4 + 8).
        (3, [10, 12]),
    ],
)
def test_finite_horizon_value_by_hand(horizon, value):
    np.testing.assert_allclose(finite_horizon_value(TASK, horizon), value)


def test_finite_horizon_value_weighs_what_comes_later():
    # Action 0 pays 3 at once and leads to state 0, action 1 pays nothing and leads to state 1, worth 10 once.
    to_0, to_1 = [1.0, 0.0], [0.0, 1.0]
    task = TabularTask(jnp.array([[to_0, to_1], [to_0, to_0]]), jnp.array([[3.0, 0.0], [10.0, 0.0]]))
    # One step: 3. Two: 0 + 10 and not 3 + 3. Three: 3 + 10, the same as 0 + 10 + 3. Four: 0 + 10 + 0 + 10.
    values = [finite_horizon_value(task, horizon)[0] for horizon in (1, 2, 3, 4)]
    np.testing.assert_allclose(values, [3, 10, 13, 20])


def test_spec_and_validation(env):
    assert env.spec.obs_size == 2 and env.spec.action == Discrete(2) and env.spec.horizon == 3
    with pytest.raises(ValueError, match="num_actions must be at least 1, got 0"):
        tabular_mdp(num_states=2, num_actions=0, horizon=3)
    with pytest.raises(ValueError, match="reward_std must be finite and not negative, got -1"):
        tabular_mdp(num_states=2, num_actions=2, horizon=3, reward_std=-1)
