"""Reptile's step, by hand."""

import jax
import numpy as np
import optax
import pytest

from jmeta import parallel, policies
from jmeta.algorithms import reptile
from tests import oracle, small
from tests.algorithms import exact

RATE = 0.3


def make(**options):
    return reptile(
        small.family(),
        policies.mlp(small.family().env.spec, hidden=(4,)),
        optimizer=optax.sgd(RATE),
        num_episodes=3,
        num_inner_steps=2,
        **options,
    )


@pytest.fixture(scope="module")
def batched():
    return make()


@pytest.fixture(scope="module")
def state(batched):
    return batched.init(jax.random.key(0))


@pytest.fixture(scope="module")
def moved(batched, state):
    """A new state and the metrics of one update of the four tasks together."""
    return jax.jit(batched.update)(state, small.sample_tasks(jax.random.key(1)), jax.random.key(2))


def mean_of_adapted(algorithm, params, tasks, key):
    """Of the parameters adapted to each task, with the keys that an update uses."""
    keys = [exact.task_key(key, len(tasks), i) for i in range(len(tasks))]
    adapt = jax.jit(algorithm.adapt)
    adapted = [adapt(params, task, key)[0].params for task, key in zip(tasks, keys, strict=True)]
    return jax.tree.map(lambda *x: np.mean(x, axis=0), *adapted)


def test_an_update_moves_toward_the_mean_of_the_adapted_parameters(batched, state, moved):
    tasks, key = small.sample_tasks(jax.random.key(1)), jax.random.key(2)
    mean = mean_of_adapted(batched, state.params, tasks, key)
    expected = jax.tree.map(lambda old, new: old + RATE * (new - old), state.params, mean)
    new, metrics = moved
    small.assert_trees_close(new.params, expected, rtol=1e-5, atol=1e-6)
    norm = optax.tree.norm(jax.tree.map(np.subtract, state.params, mean))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    assert norm > 0.01


def test_an_update_moves_toward_the_exact_adapted_parameters(enumerated):
    moved, _ = exact.update(exact.make(reptile, optimizer=optax.sgd(RATE), num_inner_steps=3).algorithm)
    adapted = oracle.adapted(oracle.THETA, exact.STEP_SIZE, 3)
    np.testing.assert_allclose(-moved, RATE * (adapted - oracle.THETA), rtol=1e-9)


@pytest.mark.parametrize("devices", [1, 2])
def test_serial_is_a_loop_of_updates_on_one_task_on_any_number_of_devices(batched, state, moved, devices):
    tasks, key = small.sample_tasks(jax.random.key(1)), jax.random.key(2)
    with jax.set_mesh(parallel.task_mesh(jax.devices()[:devices])):
        update = jax.jit(batched.update)
        expected, metrics = state, []
        for index, one in enumerate(parallel.task_keys(key, small.NUM_TASKS)):
            expected, found = update(expected, tasks[index : index + 1], one)
            metrics.append(found)
        ours, reported = jax.jit(make(serial=True).update)(state, tasks, key)
    small.assert_trees_close(
        jax.device_get(ours.params), jax.device_get(expected.params), rtol=1e-5, atol=1e-6
    )
    assert ours.step == 1
    assert reported["env_steps"] == sum(found["env_steps"] for found in metrics)
    np.testing.assert_allclose(
        reported["return_before"], np.mean([found["return_before"] for found in metrics]), rtol=1e-5
    )
    together = jax.tree.map(np.subtract, moved[0].params, jax.device_get(ours.params))
    assert optax.tree.norm(together) > 1e-3
