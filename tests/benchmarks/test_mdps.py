"""Strategies for random MDPs: the planner, UCRL2's confidence set and Q-learning against known answers."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.classical import mdps
from jmeta import tasks
from jmeta.envs.tabular_mdp import TabularTask, finite_horizon_value

TASK = tasks.random_mdp().sample(jax.random.key(0))


def totals(strategy, task, parameter=0.0, num_tasks=50, episodes=3):
    batch = jax.tree.map(lambda x: jnp.tile(x, (num_tasks, *(1,) * x.ndim)), task)
    return np.asarray(mdps.total_reward(strategy, batch, jax.random.key(1), parameter, episodes))


def test_the_planner_finds_the_optimal_value():
    scores = mdps.solve(TASK.transition, TASK.reward)
    assert scores.shape == (mdps.HORIZON, 10, 5)
    for step in (0, mdps.HORIZON - 1):
        expected = finite_horizon_value(TASK, mdps.HORIZON - step)
        np.testing.assert_allclose(scores[step].max(-1), expected, rtol=1e-5)


def test_all_exploration_is_random():
    explored = totals(mdps.Strategy(mdps.epsilon_greedy), TASK, parameter=1.0)
    np.testing.assert_array_equal(explored, totals(mdps.Strategy(mdps.random), TASK))


def test_confidence_radii_by_hand():
    counts = mdps.no_counts(10, 5, 0.0)
    for following in (3, 3, 7, 10):  # the last is not seen
        counts = mdps.count(counts, 0, 0, 1.5, following, 0.0)
    reward, transition = mdps.confidence_radii(counts, 0.0)
    # S = 10, A = 5: sqrt(4 log(2 S A (0 + 2) / 0.05) / n), times S under the root for transitions.
    log = np.log(2 * 10 * 5 * 2 / 0.05)
    np.testing.assert_allclose(reward[0, :2], [np.sqrt(4 * log / n) for n in (4, 1)], rtol=1e-5)
    np.testing.assert_allclose(transition[0, :2], [np.sqrt(40 * log / n) for n in (3, 1)], rtol=1e-5)


def test_posterior_by_hand():
    counts = mdps.no_counts(2, 1, 0.0)
    for reward, following in ((2.0, 1), (4.0, 2)):  # the second next state is not seen
        counts = mdps.count(counts, 0, 0, reward, following, 0.0)
    # Dirichlet(1, 1) and one visit of state 1; N(1, 1) and two rewards: (1 + 2 + 4) / 3.
    transition, reward, std = mdps._posterior(counts, mean=1.0)
    np.testing.assert_allclose(transition[0, 0], [1 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose([reward[0, 0], std[0, 0]], [7 / 3, 3**-0.5], rtol=1e-6)
    # Next to no prior: what was seen.
    transition, reward, _ = mdps._posterior(counts, weight=1e-4)
    np.testing.assert_allclose(transition[0, 0], [0, 1], atol=1e-3)
    np.testing.assert_allclose(reward[:, 0], [3.0, 0.0], atol=1e-3)


def test_optimistic_transition_by_hand():
    estimate, value = jnp.array([[[0.2, 0.3, 0.5]]]), jnp.array([1.0, 3.0, 2.0])
    # The best state is 1. A radius of 0.6 moves 0.3 there: 0.2 from the worst, state 0, and 0.1 from state 2.
    found = mdps.optimistic_transition(estimate, jnp.array([[0.6]]), value)
    np.testing.assert_allclose(found, [[[0.0, 0.6, 0.4]]], atol=1e-6)


def test_optimistic_transitions_are_distributions_within_the_radius():
    key_value, key_radius = jax.random.split(jax.random.key(2))
    value = jax.random.normal(key_value, (10,))
    radius = jax.random.uniform(key_radius, (10, 5), maxval=3.0).at[0, 0].set(0.0)
    found = mdps.optimistic_transition(TASK.transition, radius, value)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
    assert (jnp.abs(found - TASK.transition).sum(-1) <= radius + 1e-5).all()
    best = value.argmax()
    np.testing.assert_allclose(
        found[..., best], jnp.minimum(TASK.transition[..., best] + radius / 2, 1.0), atol=1e-6
    )


def test_q_learning_update_by_hand():
    values = jnp.array([[0.0, 1.0], [2.0, 4.0]])
    # 1 + 0.5 (3 + 0.9 x 4 - 1) = 3.8
    found = mdps.update_values(values, 0, 1, 3.0, 1, (0.0, 0.5, 0.0))
    np.testing.assert_allclose(found, [[0.0, 3.8], [2.0, 4.0]], rtol=1e-6)
    np.testing.assert_array_equal(mdps.update_values(values, 0, 1, 3.0, 2, (0.0, 0.5, 0.0)), values)


def test_q_learning_finds_the_better_action():
    task = TabularTask(jnp.ones((1, 2, 1)), jnp.array([[0.0, 10.0]]))
    strategy = mdps.STRATEGIES["q_learning"]
    found = totals(strategy, task, parameter=(0.0, 0.5, 0.1), episodes=10)
    # Ties in the first episode; after it 100 an episode, but for half of a tenth of its steps.
    assert 850 < found.mean() < 1000
