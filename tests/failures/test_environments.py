"""Environments, tasks and policies as users have them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, evaluate, policies, training
from jmeta.conformance import conform
from jmeta.types import Continuous, Discrete, Env, EnvSpec, PolicyInput, TaskFamily, TimeStep


def counting(*, obs=float, reward=float, reset_reward=None, terminated=bool, task=True, action=None):
    """Counts the steps; pays the count, or minus the distance of an action to the task."""
    spec = EnvSpec(1, action or Continuous(1), horizon=3)

    def show(time, paid, dtype):
        end = jnp.asarray(time == 2, terminated)
        return TimeStep(jnp.asarray(time, obs)[None], jnp.asarray(paid, dtype), end)

    def reset(key, task):
        return jnp.int32(0), show(jnp.int32(0), 0, reset_reward or reward)

    def step(key, state, action, task):
        aim = task if isinstance(task, jax.Array) else 0.5
        error = jnp.abs(action.astype(float).sum() - aim)
        return state + 1, show(state + 1, 2 * state - jnp.round(error), reward)

    def sample(key):
        return jax.random.uniform(key) if task else ()

    return TaskFamily("counting", Env(reset, step, spec), sample, sample)


def maml(family):
    policy = policies.mlp(family.env.spec, hidden=(4,))
    return algorithms.maml(family, policy, optimizer=optax.adam(0.1), num_episodes=2)


def rl2(family):
    policy = policies.gru(family.env.spec, size=4)
    return algorithms.rl2(family, policy, optimizer=optax.adam(0.1), epochs=1, minibatches=1)


KINDS = [
    {"obs": jnp.int32},
    {"obs": jnp.uint8},
    {"obs": bool},
    {"obs": jnp.bfloat16},
    {"reward": jnp.int32},
    {"reward": jnp.float16},
    {"reset_reward": jnp.int32},
    {"reset_reward": jnp.float16},
    {"terminated": float},
    {"terminated": jnp.int32},
    {"task": False},
]


@pytest.mark.parametrize("make", [maml, rl2])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_environment_of_any_types_is_trained_on(make, kind):
    family = counting(**kind)
    algorithm = make(family)
    tasks = jax.vmap(conform(family).sample)(jax.random.split(jax.random.key(0)))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    after, metrics = jax.eval_shape(algorithm.update, state, tasks, jax.random.key(0))
    assert jax.tree.map(lambda x: x.dtype, after.params) == jax.tree.map(lambda x: x.dtype, state.params)
    assert metrics["return_after"].dtype == jnp.float32


@pytest.mark.parametrize("make", [maml, rl2])
def test_a_family_in_which_nothing_varies_is_trained_and_evaluated(make):
    family = counting(task=False, obs=jnp.uint8, reward=jnp.int32, terminated=float)
    family = family._replace(optimal_return=lambda task: 6.0)
    algorithm = make(family)
    state = training.train(algorithm, family, iterations=1, num_tasks=2)
    result = evaluate(algorithm, family, state.params, jax.random.key(0), num_tasks=3, num_episodes=1)
    assert result.returns.shape[0] == 3 and np.isfinite(result.returns).all()
    assert result.optimal_mean == 6.0


def test_a_memory_sees_the_reward_whatever_the_type_of_the_observation():
    policy = policies.gru(EnvSpec(1, Discrete(2), horizon=2), size=4)
    params = policy.init(jax.random.key(0))

    @jax.jit
    def output(obs, reward):
        zero = jnp.zeros((), bool)
        inputs = PolicyInput(obs, jnp.zeros(2), reward, zero, zero)
        return policy.step(params, policy.initial_carry(), inputs)[1].distribution

    expected = output(jnp.ones(1), 0.9)
    assert not np.allclose(expected, output(jnp.ones(1), 0.0))
    for dtype in (jnp.int32, jnp.uint8, bool):
        np.testing.assert_array_equal(output(jnp.ones(1, dtype), 0.9), expected)


def test_rl2_refuses_a_policy_without_derivatives():
    family = counting(action=Discrete(2))
    with pytest.raises(ValueError, match=r"derivatives, got one without \(tabular\?\)"):
        algorithms.rl2(family, policies.tabular(family.env.spec), optimizer=optax.adam(0.1))
