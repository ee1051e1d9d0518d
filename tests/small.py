"""What the tests of the engine share: programs that compile in a second or two, and ways to look at them."""

import contextlib
import functools
import inspect
import json
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jmeta import algorithms, optimizers, parallel, policies, tasks, training
from jmeta.cli import run
from jmeta.envs import probes
from jmeta.runs import config as configs
from jmeta.types import MetaAlgorithm, MetaState, TaskFamily

NUM_TASKS = 4


@functools.cache
def family():
    return tasks.point_goal(horizon=5)


@functools.cache
def policy():
    """With a critic and a context, for the algorithms that want one."""
    return policies.mlp(family().env.spec, hidden=(8,), critic=True, context_size=2)


@functools.cache
def algorithm(name):
    """Any algorithm of the registry, at its defaults but for the size."""
    optimizer = optimizers.adam(learning_rate=0.01)
    small = {"optimizer": optimizer, "num_episodes": 3, "num_perturbations": 2, "minibatches": 2}
    factory = algorithms.REGISTRY[name]
    known = inspect.signature(factory).parameters
    return factory(family(), policy(), **{k: v for k, v in small.items() if k in known})


def sample_tasks(key, num=NUM_TASKS):
    return jax.vmap(family().sample)(jax.random.split(key, num))


def drifting():
    """An algorithm that compiles in no time: parameters drift to the tasks, with noise and momentum."""

    def init(key):
        params = jax.random.normal(key, (3,))
        return MetaState(params, jnp.zeros(3), jnp.zeros((), jnp.int32))

    def update(state, tasks, key):
        def pull(params, task, key):
            return task - params + 0.1 * jax.random.normal(key, (3,))

        keys = parallel.task_keys(key, tasks.shape[0])
        force = parallel.mean_over_tasks(pull, state.params, tasks, keys)
        momentum = 0.9 * state.opt_state + force
        metrics = {
            "return_before": state.params.sum(),
            "return_after": state.params.sum() + tasks.mean(),
            "env_steps": jnp.int32(7),
        }
        return MetaState(state.params + 0.1 * momentum, momentum, state.step + 1), metrics

    return MetaAlgorithm(init, update, None, None)


NUMBERS = TaskFamily(
    "numbers",
    probes.constant_reward(),
    lambda key: jax.random.normal(key, (3,)),
    lambda key: jnp.full(3, jnp.nan),
)


class Chunks:
    """Compiled meta-iterations of an algorithm on some devices, and states to start them from."""

    def __init__(self, algorithm, *, devices, length=2):
        self.mesh = parallel.task_mesh(jax.devices()[:devices])
        self.chunk = training.compile_chunk(algorithm, family(), num_tasks=NUM_TASKS, length=length)
        self._init = jax.jit(algorithm.init)

    def start(self, seed=0):
        key_init, key_run = jax.random.split(jax.random.key(seed))
        with jax.set_mesh(self.mesh):
            return parallel.replicate(training.TrainState(self._init(key_init), key_run), self.mesh)

    def __call__(self, state, count):
        """Leaves `state` usable: the compiled call is given a copy."""
        with jax.set_mesh(self.mesh):
            return self.chunk(jax.tree.map(jnp.copy, state), jnp.int32(count))


class Trained(NamedTuple):
    """An algorithm after some iterations on two devices, in chunks of 2, 1 and 2."""

    algorithm: Any
    chunks: Chunks
    states: list[Any]  # before, between and after the chunks
    metrics: dict[str, Any]  # of the first chunk, [2]
    compiled: list[list[str]]  # programs compiled by each chunk


@functools.cache
def trained(name):
    chunks = Chunks(algorithm(name), devices=2)
    states, metrics, compiled = [chunks.start()], [], []
    for count in (2, 1, 2):
        with compilations() as names:
            state, measured = chunks(states[-1], count)
        states.append(state)
        metrics.append(jax.device_get(measured))
        compiled.append(names)
    return Trained(algorithm(name), chunks, states, metrics[0], compiled)


@functools.cache
def adapt(name):
    """The jitted `adapt` of an algorithm, its number of steps static."""
    return jax.jit(algorithm(name).adapt, static_argnums=3)


@contextlib.contextmanager
def compiled_once():
    """Within it, commands with equal components get the same objects, whose programs are compiled already."""
    build, known = configs.build, {}

    def remembered(config):
        parts = config.algorithm, config.family, config.policy, config.training.iterations
        if (key := json.dumps(parts)) not in known:
            known[key] = build(config)
        return known[key]

    with mock.patch.object(configs, "build", remembered), mock.patch.object(run, "build", remembered):
        yield


@contextlib.contextmanager
def compilations():
    """Collects the names of the programs that JAX compiles within the block."""
    found = []

    def listen(event, duration, **labels):
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(labels.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def bits(tree):
    """The leaves of a tree as bytes; keys as their numbers."""

    def one(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return [one(leaf) for leaf in jax.tree.leaves(tree)]


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected)
