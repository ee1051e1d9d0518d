"""The oracle: what it is told, and that it learns as from observations that contain the task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import optimizers, policies
from jmeta.algorithms import maml, oracle
from jmeta.types import Env
from tests import small

OPTIMIZER = optimizers.adam(learning_rate=0.01)


def told_family():
    """The small family, the task behind its observations."""
    family = small.family()
    env = family.env

    def reset(key, task):
        state, timestep = env.reset(key, task)
        return state, timestep._replace(obs=jnp.concatenate([timestep.obs, task]))

    def step(key, state, action, task):
        state, timestep = env.step(key, state, action, task)
        return state, timestep._replace(obs=jnp.concatenate([timestep.obs, task]))

    return family._replace(
        env=Env(reset, step, dataclasses.replace(env.spec, obs_size=env.spec.obs_size + 2))
    )


def test_an_update_is_that_of_joint_training_on_observations_with_the_task():
    spec = small.family().env.spec
    told = told_family()
    common = {"optimizer": OPTIMIZER, "baseline": "none", "outer_epochs": 2}
    algorithm = oracle(
        small.family(), policies.mlp(spec, hidden=(8,), context_size=2), num_episodes=2, **common
    )
    expected = maml(
        told, policies.mlp(told.env.spec, hidden=(8,)), num_inner_steps=0, num_episodes=4, **common
    )
    tasks = small.sample_tasks(jax.random.key(0))
    found, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(1)), tasks, jax.random.key(2))
    other, others = jax.jit(expected.update)(expected.init(jax.random.key(1)), tasks, jax.random.key(2))
    np.testing.assert_array_equal(found.params.pop("context"), 0)  # no meta-parameter
    small.assert_trees_close(found.params, other.params, atol=1e-6)
    for name in ("return_after", "gradient_norm", "loss", "kl", "env_steps"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_steps", [0, 2])
def test_adaptation_is_being_told(num_steps):
    algorithm = small.algorithm("oracle")
    params = small.trained("oracle").states[-1].meta.params
    task = small.sample_tasks(jax.random.key(5), 1)[0]
    adapted, info = algorithm.adapt(params, task, jax.random.key(6), num_steps, 30.0)
    np.testing.assert_array_equal(adapted.params["context"], task)
    expected = params | {"context": task}
    small.assert_trees_close(adapted.params, expected, atol=0)
    for step in range(num_steps):
        before = jax.tree.map(lambda x, step=step: x[step], info.path.params)
        small.assert_trees_close(before, expected, atol=0)


@pytest.mark.parametrize(("size", "found"), [(0, "none"), (3, "3")])
def test_a_context_of_another_length_is_refused(size, found):
    policy = policies.mlp(small.family().env.spec, hidden=(8,), context_size=size)
    with pytest.raises(ValueError, match=rf"context of 2 numbers.*context_size=2\), got {found}"):
        oracle(small.family(), policy, optimizer=OPTIMIZER)
