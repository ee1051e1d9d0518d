"""Strategies for bandits: answers from the literature, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.classical import bandits
from jmeta import tasks

FAMILY = tasks.bandit(num_arms=3, num_pulls=10)


def totals(strategy, probabilities, parameter=0.0, num_tasks=900, family=FAMILY):
    batch = jnp.tile(jnp.array(probabilities), (num_tasks, 1))
    keys = jax.random.split(jax.random.key(0), num_tasks)
    return np.asarray(bandits.total_reward(strategy, family, parameter, batch, keys))


@pytest.mark.parametrize("wins, losses, index", [(0, 0, 0.7029), (1, 0, 0.8001), (0, 1, 0.5001)])
def test_gittins_indices_are_those_of_the_literature(wins, losses, index):
    # Gittins, Glazebrook and Weber (2011), table 8.4, discount 0.9; ours are on a grid of 1 / 400.
    assert abs(bandits.gittins_indices(1, 0.9)[wins, losses] - index) <= 0.5 / 400


def test_gittins_scores_an_arm_by_its_wins_and_losses():
    choose, table = bandits.gittins(4, 0.9), bandits.gittins_indices(4, 0.9)
    scores = choose(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 3.0]), 5, 0.0)
    np.testing.assert_array_equal(scores, [table[0, 0], table[1, 0], table[0, 3]])
    assert scores[1] > scores[0] > scores[2]


def test_the_family_is_what_is_played():
    def step(key, state, action, task):
        state, timestep = FAMILY.env.step(key, state, action, task)
        return state, timestep._replace(reward=0.5 * timestep.reward)

    half = FAMILY._replace(env=FAMILY.env._replace(step=step))
    found = totals(bandits.Strategy(bandits.random), [1.0, 1.0, 1.0], num_tasks=2, family=half)
    np.testing.assert_array_equal(found, 5.0)


def test_greedy_finds_the_arm_that_always_pays_and_never_leaves_it():
    found = totals(bandits.Strategy(bandits.greedy), [1.0, 0.0, 0.0])
    # An arm that failed has mean 1/3, one not tried 1/2: before the good one 0, 1 or 2 others are tried, once
    # each and equally often. Standard error sqrt(2/9 / 900) = 0.016; four of them.
    assert set(found) == {8.0, 9.0, 10.0}
    np.testing.assert_allclose([(found == total).mean() for total in (8, 9, 10)], 1 / 3, atol=0.063)


def test_all_exploration_is_random():
    probabilities = [0.9, 0.5, 0.1]
    explored = totals(bandits.Strategy(bandits.epsilon_greedy), probabilities, parameter=1.0)
    np.testing.assert_array_equal(explored, totals(bandits.Strategy(bandits.random), probabilities))


def test_ucb1_prefers_the_arm_tried_less():
    # Equal means of 1/2, by 4 and by 2 counted pulls: 1/2 + sqrt(2 log 4 / n).
    wins, losses = jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])
    scores = bandits.ucb1(jax.random.key(0), wins, losses, jnp.array(3), jnp.array(1.0))
    np.testing.assert_allclose(scores, 0.5 + np.sqrt(2 * np.log(4) / np.array([4, 2])), rtol=1e-6)


def test_optimistic_thompson_nears_the_mode_with_more_samples():
    wins, losses = jnp.array([6.0, 2.0]), jnp.array([2.0, 6.0])  # modes 6/8 and 2/8

    def distance(samples):
        keys = jax.random.split(jax.random.key(0), 200)
        scores = jax.vmap(lambda key: bandits.optimistic_thompson(key, wins, losses, 9, samples))(keys)
        return jnp.square(scores - jnp.array([0.75, 0.25])).sum(-1).mean()

    # One sample is Thompson's: variance 7 x 3 / (100 x 11) of either arm, and the mean is 0.05 from the mode.
    np.testing.assert_allclose(distance(1.0), 2 * (21 / 1100 + 0.05**2), rtol=0.25)
    # The best of n has a log-density 1 / n below the mode's in the mean, where it is a parabola in two
    # dimensions; there a sample of the posterior has 1.
    assert distance(20.0) < 0.15 * distance(1.0)
