"""The two references for meta-learning: pre-training on all tasks, and learning from scratch."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, parallel, rollouts
from tests import small

OPTIONS = dict(num_episodes=3, num_inner_steps=2, inner_learning_rate=0.1)


@pytest.fixture(scope="module")
def maml():
    return algorithms.maml(small.family(), small.policy(), optimizer=optax.sgd(1.0), **OPTIONS)


@pytest.fixture(scope="module")
def pretrain():
    return algorithms.pretrain(small.family(), small.policy(), optimizer=optax.sgd(1.0), **OPTIONS)


@pytest.fixture(scope="module")
def scratch():
    return algorithms.scratch(small.family(), small.policy(), **OPTIONS)


@pytest.fixture(scope="module")
def updated(maml, pretrain, scratch):
    """Of each: its state before and after an update, and the metrics."""
    tasks, found = small.sample_tasks(jax.random.key(1)), {}
    for name, algorithm in {"maml": maml, "pretrain": pretrain, "scratch": scratch}.items():
        before = algorithm.init(jax.random.key(0))
        found[name] = (before, *jax.jit(algorithm.update)(before, tasks, jax.random.key(2)))
    return found


def test_signatures_are_those_of_maml():
    names = {name: list(inspect.signature(factory).parameters) for name, factory in algorithms.REGISTRY.items()}
    assert names["pretrain"] == names["maml"]
    meaningless = {"optimizer", "first_order", "outer_surrogate", "outer_epochs"}
    assert names["scratch"] == [name for name in names["maml"] if name not in meaningless]
    maml = inspect.signature(algorithms.maml).parameters
    for factory in (algorithms.pretrain, algorithms.scratch):
        for parameter in inspect.signature(factory).parameters.values():
            assert parameter.default == maml[parameter.name].default


def test_arguments_are_checked_as_mamls_are():
    with pytest.raises(ValueError, match="num_episodes.*got 0"):
        algorithms.scratch(small.family(), small.policy(), num_episodes=0)
    with pytest.raises(ValueError, match="inner_learning_rate.*got -1"):
        algorithms.pretrain(small.family(), small.policy(), optimizer=optax.sgd(1.0), inner_learning_rate=-1)
    with pytest.raises(TypeError, match="optimizer"):
        algorithms.scratch(small.family(), small.policy(), optimizer=optax.sgd(1.0))


def test_equal_experience_per_update(updated):
    steps = {name: int(metrics["env_steps"]) for name, (_, _, metrics) in updated.items()}
    # 4 tasks, 2 inner steps and once more, 3 episodes of 5 steps; none reaches its goal.
    assert steps == dict.fromkeys(("maml", "pretrain", "scratch"), 4 * 3 * 3 * 5)


def test_pretrain_trains_without_the_inner_loop(updated):
    """Its update is the policy gradient over all tasks, on three times the episodes."""
    before, after, metrics = updated["pretrain"]
    plain = algorithms.maml(
        small.family(), small.policy(), optimizer=optax.sgd(1.0), **OPTIONS | dict(num_inner_steps=0, num_episodes=9)
    )
    expected, _ = jax.jit(plain.update)(before, small.sample_tasks(jax.random.key(1)), jax.random.key(2))
    small.assert_trees_close(after.params, expected.params, rtol=1e-6, atol=1e-7)
    moved = [jnp.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True)]
    assert max(moved) > 1e-3
    assert metrics["return_before"] == metrics["return_after"]


def test_pretrain_adapts_as_maml_does(maml, pretrain, updated):
    params, task = updated["pretrain"][1].params, small.sample_tasks(jax.random.key(3))[0]
    ours, expected = (jax.jit(a.adapt)(params, task, jax.random.key(4)) for a in (pretrain, maml))
    assert small.bits(ours) == small.bits(expected)
    assert ours[1].returns.shape == (2,)
    assert small.bits(ours[0].params) != small.bits(params)


def test_scratch_learns_nothing_from_training(updated):
    before, after, metrics = updated["scratch"]
    assert small.bits(after.params) == small.bits(before.params)
    assert after.step == 1
    assert np.isfinite(metrics["return_after"])


def test_scratch_adapts_a_fresh_policy_for_every_key(scratch, maml):
    task, adapt = small.sample_tasks(jax.random.key(3))[0], jax.jit(scratch.adapt, static_argnums=3)
    policy = small.policy()
    given = [policy.init(jax.random.key(seed)) for seed in (0, 1)]
    keys = [jax.random.key(seed) for seed in (5, 6)]
    # The parameters it is given do not matter; the key does.
    fresh = [adapt(params, task, key, 0)[0].params for params in given for key in keys]
    assert small.bits(fresh[0]) == small.bits(fresh[2]) != small.bits(fresh[1])
    assert small.bits(fresh[1]) == small.bits(fresh[3])
    # From there on it is MAML's inner loop.
    adapted, info = adapt(given[0], task, keys[0], 2)
    assert info.returns.shape == (2,)
    assert small.bits(adapted.params) != small.bits(fresh[0])


def test_scratch_differs_between_the_tasks_of_a_batch(scratch):
    tasks, keys = small.sample_tasks(jax.random.key(0)), parallel.task_keys(jax.random.key(1), small.NUM_TASKS)
    params = small.policy().init(jax.random.key(2))
    adapted, _ = jax.vmap(lambda task, key: scratch.adapt(params, task, key, 0))(tasks, keys)
    kernels = np.asarray(adapted.params["policy"][0].kernel)
    assert len({kernel.tobytes() for kernel in kernels}) == small.NUM_TASKS
    rollout = rollouts.batch(
        small.family().env, scratch.policy, jax.tree.map(lambda x: x[0], adapted), tasks[0], keys[0], 2
    )
    assert np.isfinite(rollouts.returns(rollout)).all()
