"""Evaluation: returns after every number of steps, on fresh tasks, with intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import algorithms, evaluation, parallel, policies
from jmeta.envs import probes
from jmeta.types import Adapted, AdaptInfo, MetaAlgorithm, MetaState, TaskFamily
from tests import small


@pytest.fixture(scope="module")
def maml():
    algorithm = small.algorithm("maml")
    params = algorithm.init(jax.random.key(0)).params

    def evaluate(key=0, **options):
        options = {"num_tasks": 4, "num_steps": 2, "num_episodes": 3} | options
        return evaluation.evaluate(algorithm, small.family(), params, jax.random.key(key), **options)

    return evaluate


@pytest.fixture(scope="module")
def result(maml):
    return maml()


def goal_family():
    """One step of reward -(action - task)^2; training tasks are 1, held-out ones -2."""
    env = probes.action_reward()
    return TaskFamily("goal", env, lambda key: jnp.float32(1), lambda key: jnp.float32(-2))


def told(family, tasks_seen=None):
    """Acts exactly as its parameters say; each step of adaptation moves them half way to the task."""
    policy = policies.mlp(family.env.spec, hidden=(1,), init_log_std=-20, min_log_std=-20)

    def params_of(mean):
        params = jax.tree.map(jnp.zeros_like, policy.init(jax.random.key(0)))
        hidden, last = params["policy"]
        return params | {"policy": (hidden, last._replace(bias=mean[None])), "log_std": jnp.full(1, -20.0)}

    def adapt(params, task, key, num_steps=1, step_scale=None):
        del key
        scale = 1 if step_scale is None else step_scale
        means = [params]
        for _ in range(num_steps):
            means.append(means[-1] + scale * (task - means[-1]) / 2)
        means = jnp.stack(means)
        path = Adapted(jax.vmap(params_of)(means[:-1]), ())
        return Adapted(params_of(means[-1]), ()), AdaptInfo(-((means[:-1] - task) ** 2), (), path)

    init = lambda key: MetaState(jnp.float32(0), (), jnp.int32(0))  # noqa: E731
    return MetaAlgorithm(init, None, adapt, policy)


def test_shapes_and_order(result):
    assert result.returns.shape == (4, 3)
    assert result.num_tasks == 4
    assert result.steps == [0, 1, 2]
    assert result.episode_returns.shape == result.episode_lengths.shape == (4, 3, 3)
    assert result.episode_measures["success"].shape == (4, 3, 3)
    assert len(result.return_mean) == len(result.return_low) == len(result.return_high) == 3
    np.testing.assert_allclose(result.return_mean, result.returns.mean(0), rtol=1e-6)
    for low, mean, high in zip(result.return_low, result.return_mean, result.return_high, strict=True):
        assert low < mean < high


def test_a_key_decides_everything(maml, result):
    np.testing.assert_array_equal(maml().returns, result.returns)
    assert not np.isin(maml(key=1).returns, result.returns).any()
    assert len(set(result.returns[:, 0].tolist())) == 4  # tasks differ


def test_two_devices_give_the_same(maml, result):
    with jax.set_mesh(parallel.task_mesh(jax.devices()[:2])):
        np.testing.assert_allclose(maml().returns, result.returns, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heldout", "task"), [(False, 1), (True, -2)])
def test_returns_after_each_step_are_of_the_right_policy(heldout, task):
    # From 0 half way to the task each time: what is left is task, task / 2, task / 4, and the return -left^2.
    family = goal_family()
    result = evaluation.evaluate(
        told(family),
        family,
        jnp.float32(0),
        jax.random.key(0),
        num_tasks=2,
        num_steps=2,
        num_episodes=2,
        heldout=heldout,
    )
    expected = [-(task**2), -(task**2) / 4, -(task**2) / 16]
    np.testing.assert_allclose(result.returns, [expected, expected], rtol=1e-4)
    # Equal samples have an interval of no width.
    np.testing.assert_allclose(result.return_low, result.return_high, rtol=1e-6)


def test_no_adaptation_measures_the_meta_policy():
    family = goal_family()
    result = evaluation.evaluate(
        told(family), family, jnp.float32(3), jax.random.key(0), num_tasks=1, num_steps=0, num_episodes=2
    )
    np.testing.assert_allclose(result.returns, [[-((3 - 1) ** 2)]], rtol=1e-4)
    assert result.steps == [0]
    assert np.isnan(result.return_low).all() and np.isnan(result.return_high).all()


def test_a_constant_reward_is_the_return():
    # Reward 1 a step for 7 steps, whatever the policy does.
    family = TaskFamily("constant", probes.time_limit(horizon=7), lambda key: (), lambda key: ())
    family = family._replace(sample=lambda key: jnp.zeros(()), sample_heldout=lambda key: jnp.zeros(()))
    algorithm = algorithms.scratch(family, policies.mlp(family.env.spec, hidden=(4,)), num_episodes=2)
    params = algorithm.init(jax.random.key(0)).params
    result = evaluation.evaluate(
        algorithm, family, params, jax.random.key(1), num_tasks=2, num_steps=1, num_episodes=2
    )
    np.testing.assert_array_equal(result.returns, np.full((2, 2), 7.0))
    assert result.return_mean == result.return_low == result.return_high == [7.0, 7.0]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_steps", -1, "num_steps must be at least 0, got -1"),
        ("num_episodes", 0, "num_episodes must be at least 1, got 0"),
        ("num_tasks", 0, "num_tasks must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(maml, argument, value, message):
    with pytest.raises(ValueError, match=message):
        maml(**{argument: value})


def test_the_optimum_is_that_of_the_same_tasks():
    family = goal_family()
    params = jnp.float32(0)
    known = family._replace(optimal_return=lambda task: 10 * task)
    for heldout, expected in ((False, 10.0), (True, -20.0)):
        result = evaluation.evaluate(
            told(known), known, params, jax.random.key(0), num_tasks=2, num_steps=1, heldout=heldout
        )
        assert result.optimal_mean == expected
    unknown = evaluation.evaluate(told(family), family, params, jax.random.key(0), num_tasks=2, num_steps=1)
    assert unknown.optimal_mean is None


def test_more_steps_than_a_memory_holds_are_refused():
    algorithm = told(goal_family())._replace(trial_steps=1, max_adapt_steps=2)
    assert evaluation.adaptation_steps(algorithm, None) == 1
    assert evaluation.adaptation_steps(told(goal_family()), None) == 3
    with pytest.raises(ValueError, match="num_steps must be at most 2, the room of the memory, got 3"):
        evaluation.evaluate(algorithm, goal_family(), jnp.float32(0), jax.random.key(0), num_steps=3)
