"""Algorithms on the oracle's two-state process, and what they are made of."""

import inspect
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jmeta import parallel
from jmeta.algorithms.gradient import outer
from jmeta.types import Rollout
from tests import oracle

STEP_SIZE = 2.0
# Few episodes, estimated as is usual; steps so small that the adapted policy still chooses.
SAMPLED = {
    "num_episodes": 6,
    "inner_learning_rate": 0.5,
    "baseline": "linear",
    "normalize_advantages": True,
}


class Made(NamedTuple):
    """An algorithm, and what its factory gave to `outer.algorithm`."""

    algorithm: Any
    parts: Any
    replaced: dict[str, Any]  # loss, gradient, prepare, report


def make(factory, *, policy=None, **options):
    """On the two-state process, without bias or baseline; an update is minus a gradient."""
    defaults = {
        "optimizer": optax.sgd(1.0),
        "inner_learning_rate": STEP_SIZE,
        "surrogate": "dice",
        "outer_surrogate": "ratio",
        "outer_epochs": 1,
        "discount": 1.0,
        "gae_lambda": 1.0,
        "baseline": "none",
        "normalize_advantages": False,
    }
    known = inspect.signature(factory).parameters
    defaults = {name: value for name, value in defaults.items() if name in known}
    with mock.patch.object(outer, "algorithm", wraps=outer.algorithm) as algorithm:
        made = factory(oracle.family(), policy or oracle.softmax_policy(), **defaults | options)
    (parts,), replaced = algorithm.call_args
    return Made(made, parts, replaced)


def every_episode(env, policy, adapted, task, key, num_episodes):
    """In place of `rollouts.batch`: all episodes, weighted in `mask` by their probability."""
    del env, task, key, num_episodes
    batch = oracle.enumerated_batch(oracle.THETA)
    output = jax.vmap(lambda inputs: policy.unroll(adapted.params, adapted.carry, inputs)[1])(batch.inputs)
    log_prob = jax.vmap(jax.vmap(policy.distribution.log_prob))(output.distribution, batch.action)
    likelihood_ratio = jnp.exp((log_prob - batch.log_prob).sum(1, keepdims=True))
    return Rollout(
        inputs=batch.inputs,
        action=batch.action,
        log_prob=log_prob,
        reward=batch.reward,
        terminated=batch.terminated,
        mask=batch.mask * likelihood_ratio,
        value=output.value,
        last_obs=batch.inputs.obs[:, -1],
        last_value=batch.last_value,
    )


def tasks(num):
    return jax.vmap(oracle.family().sample)(jax.random.split(jax.random.key(0), num))


def update(algorithm, params=None, *, num_tasks=1, seed=1):
    """The parameters before an update less those after it, and its metrics."""
    state = algorithm.init(jax.random.key(0))
    state = state if params is None else state._replace(params=params)
    new, metrics = jax.jit(algorithm.update)(state, tasks(num_tasks), jax.random.key(seed))
    return jax.tree.map(lambda old, new: np.asarray(old - new), state.params, new.params), metrics


def collect(made, params, *, seed=2):
    """Data of one task, and what else `loss` needs."""
    task = oracle.family().sample(jax.random.key(0))
    collected = jax.jit(lambda params, key: outer.collect(made.parts, params, task, key))(
        params, jax.random.key(seed)
    )
    prepare = made.replaced.get("prepare") or (lambda params, batch: ())
    extra = prepare(params, outer.Batch(jax.tree.map(lambda x: x[None], collected), jnp.ones(1)))
    return collected, jax.tree.map(lambda x: x[0], extra)


def loss_of(made):
    """(params, data, extra) -> [], through the inner steps."""
    through = outer.meta_loss(made.parts, made.replaced.get("loss"))
    return lambda *args: through(*args)[0]


def differences(function, point, step=1e-5):
    """Central differences of a function of an array, shaped like the array."""
    point, result = np.asarray(point, float), []
    for index in np.ndindex(*point.shape):
        shift = np.zeros_like(point)
        shift[index] = step
        result.append((function(point + shift) - function(point - shift)) / (2 * step))
    return np.array(result).reshape(*point.shape, *np.shape(result[0]))


def assert_gradient_is_that_of_the_loss(made, *, rtol=1e-5, atol=1e-8):
    """On stored episodes, away from the parameters that sampled them. Returns the gradient."""
    params = made.algorithm.init(jax.random.key(0)).params
    (data, extra), loss = collect(made, params), loss_of(made)
    point, unravel = ravel_pytree(params)
    point += 0.05 * jnp.sin(1.0 + jnp.arange(point.size))  # logits all moved alike are the same policy
    flat = jax.jit(lambda point: loss(unravel(point), data, extra))
    gradient = jax.jit(jax.grad(flat))(point)
    np.testing.assert_allclose(gradient, differences(flat, point), rtol=rtol, atol=atol)
    assert np.abs(gradient).max() > 1e-3
    return unravel(gradient)


def task_key(key, num_tasks, index):
    """The key from which `adapt` gives what an update adapted on one of its tasks."""
    return jax.random.split(parallel.task_keys(key, num_tasks)[index])[0]
