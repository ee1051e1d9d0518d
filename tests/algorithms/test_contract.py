"""What every algorithm of the registry promises. New algorithms are covered as they come."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import algorithms, parallel, rollouts
from jmeta.runs import checkpoints
from tests import memory, small

pytestmark = pytest.mark.unmeasured


def form(state):
    """All that a compiled program depends on."""
    return [(x.shape, x.dtype, getattr(x, "weak_type", False), x.sharding) for x in jax.tree.leaves(state)]


@pytest.fixture(scope="module", params=sorted(algorithms.REGISTRY))
def name(request):
    yield request.param
    memory.give_back()


@pytest.fixture(scope="module")
def trained(name):
    return small.trained(name)


@pytest.fixture(scope="module")
def params(trained):
    return jax.device_put(trained.states[-1].meta.params, jax.devices()[0])


def test_the_factory_takes_a_family_and_a_policy_and_the_rest_by_keyword(name):
    family, policy, *others = inspect.signature(algorithms.REGISTRY[name]).parameters.values()
    assert [family.name, policy.name] == ["family", "policy"]
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(parameter.annotation is not parameter.empty for parameter in (family, policy, *others))


def test_the_docstring_says_what_it_is(name):
    factory = algorithms.REGISTRY[name]
    doc = f"{inspect.getmodule(factory).__doc__} {inspect.getdoc(factory)}"
    assert re.search(r"arXiv|et al\.", doc), doc


def test_metrics_are_finite_and_complete(name, trained):
    expected = {"return_before", "return_after", "env_steps", "tasks_lost"}
    if name != "scratch":  # which has no optimizer
        expected |= {"outer_learning_rate", "skipped"}
    assert expected <= trained.metrics.keys()
    assert (trained.metrics["tasks_lost"] == 0).all()
    for key, values in trained.metrics.items():
        assert values.shape == (2,), key
        assert np.isfinite(values).all(), (key, values)
    assert (trained.metrics["env_steps"] > 0).all()


def test_updates_compile_once(trained):
    first, *later = trained.compiled
    assert len([name for name in first if "chunk" in name]) == 1
    assert later == [[], []]


def test_the_state_keeps_its_form(trained):
    assert form(trained.states[1]) == form(trained.states[0])
    assert jax.tree.structure(trained.states[1]) == jax.tree.structure(trained.states[0])


def test_steps_are_counted(trained):
    assert [int(state.meta.step) for state in trained.states] == [0, 2, 3, 5]


def test_a_checkpoint_continues_bit_for_bit(trained, tmp_path):
    state = trained.states[1]
    checkpoints.save(tmp_path, 2, state)
    restored = checkpoints.restore(tmp_path, 2, trained.chunks.start(seed=9))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert small.bits(restored) == small.bits(state)
    with small.compilations() as compiled:
        continued, _ = trained.chunks(restored, 1)
    assert small.bits(continued) == small.bits(trained.states[2])
    assert compiled == []


def test_a_seed_decides_everything(trained):
    again, metrics = trained.chunks(trained.chunks.start(seed=0), 2)
    assert small.bits(again) == small.bits(trained.states[1])
    assert small.bits(jax.device_get(metrics)) == small.bits(trained.metrics)
    other, metrics = trained.chunks(trained.chunks.start(seed=1), 2)
    assert small.bits(other.meta.params) != small.bits(again.meta.params)
    assert (np.asarray(metrics["return_after"]) != trained.metrics["return_after"]).all()


def test_state_and_metrics_are_whole_on_every_device(trained):
    """So each of several processes can read them."""
    returned = trained.chunks(trained.chunks.start(), 2)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(returned))


def test_one_device_equals_two(trained):
    alone = small.Chunks(trained.algorithm, devices=1)
    state, metrics = alone(alone.start(), 2)
    assert form(state) == form(alone.start())
    small.assert_trees_close(
        jax.device_get(state.meta.params), jax.device_get(trained.states[1].meta.params), atol=1e-5
    )
    small.assert_trees_close(jax.device_get(metrics), trained.metrics, rtol=1e-4, atol=1e-5)


def test_adapt_under_vmap_is_adapt_in_a_loop(name, params):
    tasks, keys = small.sample_tasks(jax.random.key(3), 3), jax.random.split(jax.random.key(4), 3)
    adapt = functools.partial(small.adapt(name), params)
    together = jax.vmap(lambda task, key: adapt(task, key, 2))(tasks, keys)
    one_by_one = [adapt(task, key, 2) for task, key in zip(tasks, keys, strict=True)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *one_by_one)
    small.assert_trees_close(together, expected, rtol=1e-4, atol=1e-5)
    returns = together[1].returns
    assert returns.shape == (3, 2) and np.isfinite(returns).all()
    assert len(set(returns[:, 0].tolist())) == 3  # of different tasks


def test_adapt_takes_a_number_of_steps(trained, params):
    task, key = small.sample_tasks(jax.random.key(5), 1)[0], jax.random.key(6)
    for num_steps in (0, 1, 3):
        adapt = functools.partial(trained.algorithm.adapt, num_steps=num_steps)
        _, info = jax.eval_shape(adapt, params, task, key)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(info)} == {num_steps}
    _, default = jax.eval_shape(trained.algorithm.adapt, params, task, key)
    assert default.returns.shape[0] >= 1


def test_the_policy_acts_as_adapted_after_no_steps(trained, params):
    env, policy = small.family().env, trained.algorithm.policy

    @jax.jit
    def act(task, key):
        adapted, _ = trained.algorithm.adapt(params, task, key, 0)
        return rollouts.returns(rollouts.batch(env, policy, adapted, task, key, 2))

    assert np.isfinite(act(small.sample_tasks(jax.random.key(5), 1)[0], jax.random.key(6))).all()


def test_update_needs_no_mesh(trained):
    """As in the README."""
    state = trained.states[0].meta
    update = jax.eval_shape(
        trained.algorithm.update, state, small.sample_tasks(jax.random.key(1)), jax.random.key(2)
    )
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (update[0], state)]
    assert shapes[0] == shapes[1]
    assert update[1].keys() == trained.metrics.keys()


def test_tasks_need_not_be_a_multiple_of_the_devices(trained):
    tasks = small.sample_tasks(jax.random.key(0), 3)
    with jax.set_mesh(parallel.task_mesh(jax.devices()[:2])):
        jax.eval_shape(trained.algorithm.update, trained.states[0].meta, tasks, jax.random.key(0))
