"""Random decision processes: their distribution, what tasks have in common, and the published optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jmeta import tasks

S, A = 10, 5


def sampled(num, seed=0, **options):
    family = tasks.random_mdp(**options)
    draw = jax.jit(lambda: jax.vmap(family.sample)(jax.random.split(jax.random.key(seed), num)))
    return jax.tree.map(np.asarray, draw())


@pytest.fixture(scope="module")
def independent():
    return sampled(4000)


def is_standard(values):
    """Kolmogorov-Smirnov against N(0, 1)."""
    return scipy.stats.kstest(values.ravel(), "norm").pvalue > 1e-3


def test_transitions_are_dirichlet(independent):
    rows = independent.transition.reshape(-1, S)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
    # Dirichlet(1, ..., 1) of ten: each is Beta(1, 9), of variance 0.1 * 0.9 / 11, and two have the covariance
    # -0.1 * 0.1 / 11. With 200,000 rows the standard error of a mean is 0.0002, of a second moment below it.
    np.testing.assert_allclose(rows.mean(0), 0.1, atol=1e-3)
    expected = (np.diag(np.full(S, 0.1)) - 0.01) / 11
    np.testing.assert_allclose(np.cov(rows.T), expected, atol=2e-4)
    assert scipy.stats.kstest(rows[::20, 0], scipy.stats.beta(1, 9).cdf).pvalue > 1e-3


def test_uniform_transitions_are_another_distribution():
    rows = sampled(400, transitions="uniform").transition.reshape(-1, S)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
    # U[0, 1] over the sum of ten of them: no more than 1 over 1 + the sum of nine, which is seldom below 2.
    assert rows.max() < 0.5
    numpy = np.random.default_rng(0).uniform(size=(20_000, S))
    numpy /= numpy.sum(1, keepdims=True)
    assert scipy.stats.ks_2samp(rows[:, 0], numpy[:, 0]).pvalue > 1e-3


def test_mean_rewards_are_normal_around_one(independent):
    assert independent.reward.shape == (4000, S, A)
    assert is_standard(independent.reward[::4] - 1)
    np.testing.assert_allclose(np.corrcoef(independent.reward.reshape(4000, -1).T), np.eye(S * A), atol=0.08)


@pytest.mark.parametrize("shared", [0.0, 0.6, 0.9])
def test_rewards_keep_their_distribution(shared):
    """Over the states and actions of one large process, whose common part is a draw too."""
    task = sampled(1, num_states=80, num_actions=50, shared=shared)
    assert is_standard(task.reward - 1)
    np.testing.assert_allclose(task.transition.sum(-1), 1, rtol=1e-5)


def test_shared_makes_tasks_alike():
    shared = 0.8
    task = sampled(2000, shared=shared)
    reward = task.reward.reshape(2000, -1)
    # Around the common part rewards have variance 1 - 0.64, to sqrt(2 / 2000) = 3 %; four of them.
    np.testing.assert_allclose(reward.var(0), 0.36, rtol=0.13)
    common = (reward.mean(0) - 1) / shared
    assert is_standard(common)  # a draw of 50
    # 0.8 of a common table, and 0.2 of tables of mean 0.1.
    transition = task.transition.reshape(2000, -1, S)
    common = (transition.mean(0) - 0.02) / 0.8
    np.testing.assert_allclose(common.sum(-1), 1, rtol=1e-4)
    assert common.std() > 0.05
    np.testing.assert_allclose(transition.var(0), 0.04 * 0.09 / 11, rtol=0.25)


def test_the_common_part_is_that_of_the_library_not_of_the_key():
    first, second = sampled(500, seed=1, shared=0.9), sampled(500, seed=2, shared=0.9)
    # Means of 500 of variance 0.19: standard error 0.02 each.
    np.testing.assert_allclose(first.reward.mean(0), second.reward.mean(0), atol=0.12)
    assert np.abs(first.reward - second.reward).min(0).max() > 0  # but no task is another


def test_the_optimum_is_the_published_one(independent):
    """21.83 ± 0.06 an episode, by an independent value iteration over 1,500 processes."""
    family = tasks.random_mdp()
    optimum = np.asarray(jax.jit(jax.vmap(family.optimal_return))(independent))
    error = optimum.std() / np.sqrt(len(optimum))
    assert error < 0.06
    np.testing.assert_allclose(optimum.mean(), 21.83, atol=2 * np.hypot(0.06, error))


def test_optimal_return_is_that_of_every_policy_tried():
    """Two states and two actions: the best of all deterministic policies that know the time."""
    family = tasks.random_mdp(num_states=2, num_actions=2, horizon=2)
    task = family.sample(jax.random.key(3))
    transition, reward = np.asarray(task.transition), np.asarray(task.reward)
    returns = [
        reward[0, first] + transition[0, first] @ [reward[0, in_0], reward[1, in_1]]
        for first in range(2)
        for in_0 in range(2)
        for in_1 in range(2)
    ]
    np.testing.assert_allclose(family.optimal_return(task), max(returns), rtol=1e-6)
    assert max(returns) > min(returns)


@pytest.fixture(scope="module")
def stepped():
    """(task, state, action) -> next states and rewards of many steps with the same random numbers."""
    env, keys = tasks.random_mdp().env, jax.random.split(jax.random.key(1), 2000)

    def many(task, state, action):
        next_states, time_steps = jax.vmap(lambda key: env.step(key, state, action, task))(keys)
        return next_states, time_steps.reward

    return jax.jit(jax.vmap(many, in_axes=(None, 0, 0)))


def test_every_number_of_a_task_changes_a_transition_or_a_reward(stepped):
    task = tasks.random_mdp().sample(jax.random.key(0))
    states, actions = (jnp.asarray(x.ravel()) for x in np.indices((S, A)))
    next_states, rewards = (np.asarray(x) for x in stepped(task, states, actions))  # [S A, 2000]
    _, raised = stepped(task._replace(reward=task.reward + 0.25), states, actions)
    np.testing.assert_allclose(raised - rewards, 0.25, atol=1e-5)
    for following in range(S):  # a row need not sum to one
        likelier = task._replace(transition=task.transition.at[..., following].add(0.25))
        changed, _ = (np.asarray(x) for x in stepped(likelier, states, actions))
        counts = (changed == following).sum(1) - (next_states == following).sum(1)
        assert (counts > 0).all()


def test_rewards_are_noisy_and_transitions_follow_the_table(stepped):
    task = tasks.random_mdp().sample(jax.random.key(0))
    next_states, rewards = (np.asarray(x)[0] for x in stepped(task, jnp.array([4]), jnp.array([2])))
    assert is_standard(rewards - task.reward[4, 2])
    frequencies = np.bincount(next_states, minlength=S) / 2000
    # Standard error at most sqrt(1/4 / 2000) = 0.011; four of them.
    np.testing.assert_allclose(frequencies, task.transition[4, 2], atol=0.045)
    assert abs(np.corrcoef(next_states, rewards)[0, 1]) < 0.09  # four of 1 / sqrt(2000)


def test_episodes_start_in_state_zero_and_have_the_published_size():
    family = tasks.random_mdp()
    spec = family.env.spec
    assert (spec.obs_size, spec.action.num, spec.horizon) == (S, A, 10)
    for seed in range(3):
        state, first = family.env.reset(jax.random.key(seed), family.sample(jax.random.key(seed)))
        assert state == 0 and first.obs.argmax() == 0 and first.obs.sum() == 1
        assert first.reward == 0 and not first.terminated


def test_there_is_no_heldout_split():
    family = tasks.random_mdp()
    assert family.name == "random-mdp" and family.sample_heldout is family.sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transitions": "gamma"}, "transitions must be one of dirichlet, uniform, got 'gamma'"),
        ({"shared": 1.0}, r"shared must be in \[0, 1\), got 1.0"),
        ({"shared": -0.1}, r"shared must be in \[0, 1\), got -0.1"),
        ({"num_states": 0}, "num_states must be at least 1, got 0"),
    ],
)
def test_arguments_are_validated(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.random_mdp(**options)
