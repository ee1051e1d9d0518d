"""Bernoulli bandits: what an arm pays, and what the best possible total is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import tasks


def sampled(family, num, seed=0):
    return jax.vmap(family.sample)(jax.random.split(jax.random.key(seed), num))


def test_an_arm_pays_with_its_probability():
    family = tasks.bandit(num_arms=3, num_pulls=7)
    task = jnp.array([0.1, 0.5, 0.9])

    def pull(key, arm):
        state, _ = family.env.reset(key, task)
        return family.env.step(key, state, arm, task)[1].reward

    keys = jax.random.split(jax.random.key(0), 4000)
    paid = np.stack([jax.vmap(pull, (0, None))(keys, arm) for arm in range(3)])
    assert set(np.unique(paid)) == {0.0, 1.0}
    # Standard error at most sqrt(1/4 / 4000) = 0.008; four of them.
    np.testing.assert_allclose(paid.mean(1), task, atol=0.032)


def test_nothing_is_observed_and_nothing_ends():
    family = tasks.bandit()
    state, start = family.env.reset(jax.random.key(0), jnp.ones(5))
    _, after = family.env.step(jax.random.key(1), state, jnp.int32(2), jnp.ones(5))
    np.testing.assert_array_equal(start.obs, after.obs)
    assert not after.terminated and after.reward == 1


def test_probabilities_are_uniform():
    arms = np.asarray(sampled(tasks.bandit(num_arms=4), 4000))
    assert arms.shape == (4000, 4)
    # Mean 1/2 and variance 1/12, to 0.0046 and 0.0012.
    np.testing.assert_allclose(arms.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(arms.var(0), 1 / 12, atol=0.005)


def test_the_best_total_is_that_of_the_best_arm():
    family = tasks.bandit(num_arms=5, num_pulls=10)
    np.testing.assert_allclose(family.optimal_return(jnp.array([0.2, 0.7, 0.1, 0.3, 0.5])), 7.0, rtol=1e-6)
    # The greatest of five uniform numbers is 5/6 in the mean, to 0.14 / sqrt(4000) = 0.0022.
    best = jax.vmap(family.optimal_return)(sampled(family, 4000))
    np.testing.assert_allclose(best.mean(), 10 * 5 / 6, atol=0.09)


def test_a_trial_is_one_episode_of_all_pulls():
    family = tasks.bandit(num_pulls=9)
    assert family.env.spec.trial_episodes == 1 and family.env.spec.horizon == 9


@pytest.mark.parametrize("argument", ["num_arms", "num_pulls"])
def test_bad_arguments_are_named(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        tasks.bandit(**{argument: 0})
