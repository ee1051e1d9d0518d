"""The two references for meta-learning: pre-training on all tasks, and learning from scratch."""

import inspect

import jax
import numpy as np
import optax
import pytest

from jmeta import algorithms, optimizers, parallel
from tests import small

TASK = small.sample_tasks(jax.random.key(3), 1)[0]


def test_signatures_are_those_of_maml():
    parameters = {
        name: inspect.signature(factory).parameters for name, factory in algorithms.REGISTRY.items()
    }
    maml = parameters["maml"]
    meaningless = {"optimizer", "first_order", "differentiation", "outer_surrogate", "outer_epochs"}
    undifferentiated = {"first_order", "differentiation"}
    assert list(parameters["pretrain"]) == [name for name in maml if name not in undifferentiated]
    assert list(parameters["scratch"]) == [name for name in maml if name not in meaningless]
    for name in ("pretrain", "scratch"):
        assert all(parameter.default == maml[key].default for key, parameter in parameters[name].items())


def test_arguments_are_checked_as_mamls_are():
    with pytest.raises(ValueError, match="num_episodes.*got 0"):
        algorithms.scratch(small.family(), small.policy(), num_episodes=0)
    with pytest.raises(ValueError, match="inner_learning_rate.*got -1"):
        algorithms.pretrain(small.family(), small.policy(), optimizer=optax.sgd(1.0), inner_learning_rate=-1)
    with pytest.raises(TypeError, match="optimizer"):
        algorithms.scratch(small.family(), small.policy(), optimizer=optax.sgd(1.0))


@pytest.mark.parametrize("name", ["maml", "pretrain", "scratch"])
def test_equal_experience_per_update(name):
    # 4 tasks, one inner step and once more, 3 episodes of 5 steps; none reaches its goal.
    np.testing.assert_array_equal(small.trained(name).metrics["env_steps"], 4 * 2 * 3 * 5)


def test_pretrain_trains_without_the_inner_loop():
    """Its update is that of MAML with no inner step and twice the episodes."""
    optimizer = optimizers.adam(learning_rate=0.01)
    maml = algorithms.maml(
        small.family(), small.policy(), optimizer=optimizer, num_inner_steps=0, num_episodes=6
    )
    plain = small.Chunks(maml, devices=2)
    before, after = small.trained("pretrain").states[:2]
    assert small.bits(plain(plain.start(), 2)[0]) == small.bits(after)
    # Adam's first steps are as long as its learning rate.
    moved = np.abs(np.asarray(after.meta.params["policy"][-1].bias - before.meta.params["policy"][-1].bias))
    assert 0.005 < moved.max() < 0.021
    metrics = small.trained("pretrain").metrics
    np.testing.assert_array_equal(metrics["return_before"], metrics["return_after"])


def test_pretrain_adapts_as_maml_does():
    params = small.policy().init(jax.random.key(0))
    ours, expected = (small.adapt(name)(params, TASK, jax.random.key(4), 2) for name in ("pretrain", "maml"))
    assert small.bits(ours) == small.bits(expected)
    assert small.bits(ours[0].params) != small.bits(params)


def test_scratch_learns_nothing_from_training():
    scratch = small.trained("scratch")
    for state in scratch.states[1:]:
        assert small.bits(state.meta.params) == small.bits(scratch.states[0].meta.params)
    # What it reports still comes from adapting.
    assert (scratch.metrics["return_before"] != scratch.metrics["return_after"]).all()


def test_scratch_adapts_a_fresh_policy_for_every_key():
    given = [small.policy().init(jax.random.key(seed)) for seed in (0, 1)]
    keys = [jax.random.key(seed) for seed in (5, 6)]
    # The parameters it is given do not matter; the key does.
    adapted = [small.adapt("scratch")(params, TASK, key, 2) for params in given for key in keys]
    assert small.bits(adapted[0]) == small.bits(adapted[2]) != small.bits(adapted[1])
    assert small.bits(adapted[1]) == small.bits(adapted[3])


def test_scratch_draws_a_policy_for_every_task_of_a_batch():
    keys = parallel.task_keys(jax.random.key(1), small.NUM_TASKS)
    params, adapt = small.policy().init(jax.random.key(2)), small.adapt("scratch")
    fresh = [adapt(params, TASK, key, 0)[0].params["policy"][0].kernel for key in keys]
    assert len({np.asarray(kernel).tobytes() for kernel in fresh}) == small.NUM_TASKS
    assert all(np.abs(kernel - params["policy"][0].kernel).max() > 0.1 for kernel in fresh)
