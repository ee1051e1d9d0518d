"""The goal and the pit: what is documented, and why no step adapts a policy that was trained jointly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, policies, tasks


@pytest.fixture(scope="module")
def family():
    return tasks.goal_and_pit(horizon=12)


@pytest.fixture(scope="module")
def goals(family):
    keys = jax.random.split(jax.random.key(0), 4000)
    return {
        "train": np.asarray(jax.jit(jax.vmap(family.sample))(keys)),
        "heldout": np.asarray(jax.jit(jax.vmap(family.sample_heldout))(keys)),
    }


def rewards(family, positions, task):
    """Of steps that end at these positions [N, 2]."""
    step = lambda position: family.env.step(jax.random.key(0), position, jnp.zeros(2), task)[1].reward  # noqa: E731
    return jax.vmap(step)(positions)


def test_the_reward_is_the_documented_one(family):
    goal = jnp.array([0.6, 0.8])
    positions = jnp.array([[0.0, 0.0], [0.12, 0.16], [0.6, 0.8], [0.3, 0.4], [-0.6, -0.8], [-0.3, -0.4]])
    expected = [0, 0, 1, 1 - 0.5 / 0.8, -2, -2 * (1 - 0.5 / 0.8)]
    np.testing.assert_allclose(rewards(family, positions, goal), expected, atol=1e-6)


def test_splits(goals):
    line = {name: np.arctan2(goal[:, 1], goal[:, 0]) % np.pi for name, goal in goals.items()}
    assert (line["train"] >= np.pi / 4 - 1e-5).all() and (line["heldout"] <= np.pi / 4 + 1e-5).all()
    for goal in goals.values():
        np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 1, rtol=1e-5)
        # Each side half of the time: standard error sqrt(1/4 / 4000) = 0.008.
        assert abs((goal[:, 1] > 0).mean() - 0.5) < 0.032


def test_every_place_costs_in_the_mean_over_the_tasks_but_those_near_the_start(family, goals):
    """So a policy that does the same in every task does best where it is rewarded in none."""
    positions = jax.random.normal(jax.random.key(1), (200, 2))
    # As a goal is as likely as its opposite, both are taken.
    both = jnp.concatenate([goals["train"][:500], -goals["train"][:500]])
    mean = jax.jit(jax.vmap(lambda task: rewards(family, positions, task)))(both).mean(0)
    assert (mean <= 1e-6).all()
    near_start = jnp.linalg.norm(positions, axis=1) <= 0.2
    np.testing.assert_allclose(mean[near_start], 0, atol=1e-6)
    assert (mean[jnp.linalg.norm(positions, axis=1) < 1.7] < -1e-3).mean() > 0.8


def test_a_policy_that_stays_is_adapted_by_no_step(family):
    policy = policies.mlp(family.env.spec, hidden=(4,), init_log_std=-4.0, min_log_std=-4.0)
    algorithm = algorithms.fomaml(family, policy, optimizer=optax.identity(), num_episodes=3)
    params = policy.init(jax.random.key(0))
    adapt = jax.jit(lambda scale: algorithm.adapt(params, jnp.array([0.6, 0.8]), jax.random.key(1), 1, scale))
    adapted, info = adapt(1e6)
    assert info.returns[0] == 0
    jax.tree.map(np.testing.assert_array_equal, adapted.params, params)


def test_the_optimal_return_is_reached_and_not_exceeded(family, goals):
    def returns(task, noise, key):
        def body(state, key):
            action = 10 * (task - state) + noise * jax.random.normal(key, (2,))
            state, time_step = family.env.step(key, state, action, task)
            return state, (time_step.reward, time_step.measures["success"])

        start, first = family.env.reset(key, task)
        _, (reward, success) = jax.lax.scan(body, start, jax.random.split(key, 12))
        return reward.sum(), success.any() & ~first.measures["success"]

    some, keys = jnp.asarray(goals["train"][:100]), jax.random.split(jax.random.key(2), 100)
    best = jax.vmap(family.optimal_return)(some)
    for noise in (0.0, 1.0):
        found, success = jax.jit(jax.vmap(returns, in_axes=(0, None, 0)))(some, noise, keys)
        assert (found <= best + 1e-4).all()
        if noise == 0:
            np.testing.assert_allclose(found, best, atol=1e-4)
            assert success.all()


def test_a_horizon_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        tasks.goal_and_pit(horizon=0)
