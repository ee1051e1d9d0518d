"""Strategies for random MDPs: the planner, UCRL2's confidence set and Q-learning against known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.classical import mdps
from jmeta import tasks
from jmeta.envs.tabular_mdp import TabularTask, finite_horizon_value, tabular_mdp

FAMILY = tasks.random_mdp()
TASK = FAMILY.sample(jax.random.key(0))
HORIZON = 10


def rewards(strategy, task, parameter=0.0, num_tasks=50, episodes=3, family=FAMILY):
    batch = jax.tree.map(lambda x: jnp.tile(x, (num_tasks, *(1,) * x.ndim)), task)
    keys = jax.random.split(jax.random.key(1), num_tasks)
    return np.asarray(mdps.episode_rewards(strategy, family, episodes, parameter, batch, keys))


def planned(strategy, counts, parameter=0.0, horizon=HORIZON, key=None):
    return strategy(jax.random.key(0) if key is None else key, counts, 0, horizon, parameter)


@pytest.fixture(scope="module")
def counts():
    """What is remembered of 60 steps at random in `TASK`."""
    seen = mdps.no_counts(10, 5, 0.0)
    rng = np.random.default_rng(0)
    for state, action, following in rng.integers([10, 5, 10], size=(60, 3)):
        seen = mdps.count(seen, state, action, TASK.reward[state, action], following, 0.0)
    return seen


def test_the_planner_finds_the_optimal_value():
    scores = mdps.solve(TASK.transition, TASK.reward, HORIZON)
    assert scores.shape == (HORIZON, 10, 5)
    for step in (0, HORIZON - 1):
        expected = finite_horizon_value(TASK, HORIZON - step)
        np.testing.assert_allclose(scores[step].max(-1), expected, rtol=1e-5)


def test_all_exploration_is_random():
    explored = rewards(mdps.Strategy(mdps.epsilon_greedy), TASK, parameter=1.0)
    np.testing.assert_array_equal(explored, rewards(mdps.Strategy(mdps.random), TASK))


def test_the_family_is_what_is_played():
    # Another horizon, and 2 for every step without noise.
    env = tabular_mdp(num_states=10, num_actions=5, horizon=4)
    task = TASK._replace(reward=jnp.full((10, 5), 2.0))
    strategy = mdps.Strategy(mdps.greedy)
    found = rewards(strategy, task, num_tasks=2, family=FAMILY._replace(env=env))
    np.testing.assert_array_equal(found, np.full((2, 3), 8.0))


def test_one_optimistic_sample_is_posterior_sampling_and_more_promise_more(counts):
    def promised(strategy, samples):
        keys = jax.random.split(jax.random.key(3), 200)
        run = jax.jit(jax.vmap(lambda key: planned(strategy, counts, samples, key=key)))
        return np.asarray(run(keys))

    psrl, one, five = (promised(*x) for x in ((mdps.psrl, 0.0), (mdps.opsrl, 1.0), (mdps.opsrl, 5.0)))
    error = np.sqrt((psrl.var(0) + one.var(0)) / 200)
    assert (np.abs(psrl.mean(0) - one.mean(0)) < 5 * error).all()  # of 500 scores
    assert (five.mean(0) > one.mean(0) + 5 * error).all()


def test_without_a_confidence_set_ucrl2_is_greedy(counts):
    greedy = planned(mdps.greedy, counts)
    np.testing.assert_allclose(planned(mdps.ucrl2, counts), greedy, rtol=1e-4, atol=1e-4)
    assert (planned(mdps.ucrl2, counts, 0.1) > greedy).all()


def test_beb_by_hand():
    seen = mdps.no_counts(1, 1, 0.0)
    for reward in (2.0, 4.0):
        seen = mdps.count(seen, 0, 0, reward, 0, 0.0)
    scores = planned(mdps.beb, seen, 0.25, horizon=2)
    # N(0, 1) and two rewards: (2 + 4) / 3 = 2, with the bonus 1 / (2 + 2); that is the last step's.
    # Before it the bonus of transitions once, 2 x 2^3 x 0.25 / (1 + 1 + 2) = 1, and the value that follows.
    np.testing.assert_allclose(scores.ravel(), [2.25 + 1.0 + 2.25, 2.25], rtol=1e-6)


def test_bayes_greedy_by_hand():
    seen = mdps.no_counts(2, 2, 0.0)
    seen = mdps.count(seen, 0, 1, 4.0, 1, 0.0)
    scores = planned(mdps.bayes_greedy, seen, horizon=2)
    # N(1, 1) and one reward: (1 + 4) / 2; elsewhere 1. Dirichlet(1, 1) and one visit of state 1: 1/3, 2/3.
    np.testing.assert_allclose(scores[1], [[1, 2.5], [1, 1]], rtol=1e-6)
    # The values that follow are 2.5 in state 0 and 1 in state 1: half of each, or 2.5 / 3 + 2 / 3.
    np.testing.assert_allclose(scores[0], [[2.75, 4.0], [2.75, 2.75]], rtol=1e-6)


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


def test_q_learning_acts_on_what_it_has_just_learned():
    task = TabularTask(jnp.ones((1, 2, 1)), jnp.array([[-1.0, 10.0]]))
    family = FAMILY._replace(env=tabular_mdp(num_states=1, num_actions=2, horizon=HORIZON))
    strategy = mdps.STRATEGIES["q_learning"]
    found = rewards(strategy, task, (0.0, 0.5, 0.0), family=family)
    # Either action at the first step: the worse one has a value below 0 at the second, and is left.
    assert set(found[:, 0]) == {100.0, 9 * 10.0 - 1.0}
    np.testing.assert_array_equal(found[:, 1:], 100.0)
    # Half of a fifth of the steps explore in vain: 0.9 x 10 - 0.1 a step. Four standard errors of 1,000.
    explored = rewards(strategy, task, (0.0, 0.5, 0.2), family=family)[:, 1:]
    np.testing.assert_allclose(explored.mean(), 89, atol=4 * 10 * 11 * 0.3 / np.sqrt(1000))
