"""Environments, tasks and policies as users have them."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, distributions, envs, evaluate, optimizers, policies, training
from jmeta import tasks as jmeta_tasks
from jmeta.conformance import conform
from jmeta.envs import probes
from jmeta.envs.tabular_mdp import TabularTask
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


@pytest.mark.unmeasured
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


def closing_one_arm(policy):
    """The same policy, which never plays the last arm."""

    def close(apply):
        def closed(params, carry, inputs):
            carry, output = apply(params, carry, inputs)
            return carry, output._replace(distribution=output.distribution.at[..., -1].set(-jnp.inf))

        return closed

    return policy._replace(step=close(policy.step), unroll=close(policy.unroll))


@pytest.mark.parametrize("name", ["maml by trpo", "promp", "e-maml", "rl2"])
def test_an_action_may_be_closed(name):
    family = jmeta_tasks.bandit(num_arms=3, num_pulls=4)
    options = {"optimizer": optax.adam(0.1)}
    if name == "rl2":
        policy = policies.gru(family.env.spec, size=4)
        options |= {"epochs": 1, "minibatches": 1}
    else:
        policy = policies.mlp(family.env.spec, hidden=(4,))
        options |= {"num_episodes": 3}
    if name == "maml by trpo":
        name, options["optimizer"] = "maml", optimizers.trpo()
    algorithm = algorithms.REGISTRY[name](family, closing_one_arm(policy), **options)
    records = []
    training.train(
        algorithm,
        family,
        iterations=2,
        num_tasks=4,
        log_every=1,
        callback=lambda progress: records.append(progress.metrics),
    )
    for metrics in records:
        assert metrics["skipped"] == 0 and metrics["tasks_lost"] == 0
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["gradient_norm"] > 0
    if name == "rl2":  # at first, two arms of about equal probability
        assert abs(records[0]["entropy"] - np.log(2)) < 0.01


RECURRENT = {"gru": {}, "lstm": {}, "mann": {"num_slots": 3}, "snail": {}, "transformer": {}}


@pytest.mark.parametrize("name", RECURRENT)
def test_every_memory_can_scale_rewards_and_normalize_observations(name):
    spec = EnvSpec(2, Discrete(2), horizon=3, trial_episodes=1)
    make = functools.partial(policies.REGISTRY[name], spec, size=4, **RECURRENT[name])
    plain, scaled, normalized = make(), make(reward_scale=1000.0), make(normalize_observations=True)
    params = plain.init(jax.random.key(0))
    obs = 50.0 + 3.0 * jax.random.normal(jax.random.key(1), (3, 2))
    none = jnp.zeros(3, bool)
    inputs = PolicyInput(obs, jnp.zeros((3, 2)), jnp.array([0.0, 0.3, 0.9]), none, none)

    def unroll(policy, params, inputs):
        return policy.unroll(params, policy.initial_carry(), inputs)[1]

    @jax.jit
    def all_of_them(params):
        small = inputs._replace(prev_reward=inputs.prev_reward / 1000.0)
        observed = normalized.observe(normalized.init(jax.random.key(0)), obs, jnp.array([1.0, 1.0, 0.0]))
        seen = observed._replace(policy=params)
        by_hand = inputs._replace(obs=jnp.clip((obs - obs[:2].mean(0)) / obs[:2].std(0), -10, 10))
        steps = jax.lax.scan(lambda c, x: normalized.step(seen, c, x), normalized.initial_carry(), inputs)[1]
        return (
            (unroll(scaled, params, small), unroll(plain, params, inputs)),
            (unroll(normalized, seen, inputs), unroll(plain, params, by_hand)),
            (steps, unroll(normalized, seen, inputs)),
        )

    for one, other in all_of_them(params):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, other)


def test_rl2_updates_the_statistics_of_observations():
    family = counting()
    policy = policies.gru(family.env.spec, size=4, normalize_observations=True)
    algorithm = algorithms.rl2(family, policy, optimizer=optax.adam(0.1), epochs=1, minibatches=1)
    state = training.train(algorithm, family, iterations=2, num_tasks=2)
    statistics = state.params.statistics
    # Two trials of two episodes an iteration; two steps, from the observations 0 and 1, and then the end.
    assert statistics.num == 2 * 2 * 2 * 2
    np.testing.assert_allclose(statistics.mean, [0.5], rtol=1e-6)
    np.testing.assert_allclose(statistics.sum_of_squares / statistics.num, [0.25], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_the_scale_of_rewards_is_positive_and_finite(scale):
    with pytest.raises(ValueError, match="reward_scale must be positive and finite, got"):
        policies.lstm(EnvSpec(1, Discrete(2), horizon=2), reward_scale=scale)


# Exits with an error if brax cannot be imported, or if the environment is another one afterwards.
IMPORT_BRAX = """
import os
before = dict(os.environ)
from jmeta.envs import brax
brax._import_brax_envs()
assert os.environ.get("MUJOCO_GL") == before.get("MUJOCO_GL"), os.environ["MUJOCO_GL"]
assert os.environ.get("PYOPENGL_PLATFORM") == before.get("PYOPENGL_PLATFORM")
"""


@pytest.mark.parametrize("library", ["osmesa", "no-such-library"])
def test_brax_is_imported_whatever_renders(library):
    command = [sys.executable, "-c", IMPORT_BRAX]
    run = subprocess.run(command, env=os.environ | {"MUJOCO_GL": library}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_numbers_of_families_and_policies_may_be_traced_and_are_finite_otherwise():
    spec = EnvSpec(1, Continuous(1), horizon=2)

    def reward_of(std):
        env = envs.tabular_mdp(num_states=1, num_actions=1, horizon=1, reward_std=std)
        task = TabularTask(jnp.ones((1, 1, 1)), jnp.zeros((1, 1)))
        return env.step(jax.random.key(0), jnp.int32(0), jnp.int32(0), task)[1].reward

    rewards = jax.vmap(reward_of)(jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(rewards[2] - rewards[0], 2 * (rewards[1] - rewards[0]), rtol=1e-6)

    def log_std_of(init_log_std):
        return policies.mlp(spec, hidden=(), init_log_std=init_log_std).init(jax.random.key(0))["log_std"]

    np.testing.assert_allclose(jax.vmap(log_std_of)(jnp.array([-1.0, 0.0])), [[-1.0], [0.0]])
    for refused in (
        lambda x: policies.mlp(spec, init_log_std=x),
        lambda x: policies.tabular(EnvSpec(1, Discrete(2), 2), epsilon=x),
        lambda x: policies.tabular(EnvSpec(1, Discrete(2), 2), init_value=x),
        lambda x: envs.tabular_mdp(num_states=1, num_actions=1, horizon=1, reward_std=x),
        lambda x: envs.discretize_actions(probes.action_reward(), bins=2, high=x),
        lambda x: jmeta_tasks.half_cheetah_velocity(max_velocity=x),
        lambda x: jmeta_tasks.hopper_parameters(log_scale_limit=x),
        lambda x: jmeta_tasks.random_mdp(shared=x),
    ):
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match=rf" must be .*, got {value}"):
                refused(value)


def test_an_observation_that_is_too_large_does_not_stay_in_the_statistics():
    policy = policies.mlp(EnvSpec(2, Discrete(2), 2), hidden=(), normalize_observations=True)
    params = policy.init(jax.random.key(0))
    rows = jnp.array([[0.0, 2.0], [jnp.nan, 1.0], [1e30, 1.0], [2.0, 4.0]])
    statistics = policy.observe(params, rows, jnp.ones(4)).statistics
    assert statistics.num == 2
    np.testing.assert_allclose(statistics.mean, [1.0, 3.0])
    np.testing.assert_allclose(statistics.sum_of_squares, [2.0, 2.0])


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        yield


ROBOTS = ("ant", "half-cheetah", "hopper", "humanoid", "walker2d")  # brax promotes, and is slow to trace


@pytest.mark.parametrize("name", [name for name in jmeta_tasks.REGISTRY if not name.startswith(ROBOTS)])
def test_families_promote_no_type_and_no_rank(strict, name):
    conform(jmeta_tasks.REGISTRY[name]())
    conform(envs.hold_reset(jmeta_tasks.REGISTRY[name]()))


@pytest.mark.unmeasured
@pytest.mark.parametrize("action", [Continuous(2), Discrete(3)], ids=["continuous", "discrete"])
@pytest.mark.parametrize("name", policies.REGISTRY)
def test_policies_promote_no_type_and_no_rank(strict, name, action):
    if name == "tabular" and isinstance(action, Continuous):
        pytest.skip("its actions are discrete")
    spec = EnvSpec(2, action, horizon=3, trial_episodes=1)
    options = {
        "tabular": {},
        "mlp": {"critic": True, "context_size": 2, "normalize_observations": True},
    }.get(name, {"separate_critic": True, "normalize_observations": True, "reward_scale": 2.0})
    policy = policies.REGISTRY[name](spec, **options)

    def everything():
        params, none = policy.init(jax.random.key(0)), jnp.zeros(3, bool)
        size = 2 if isinstance(action, Continuous) else 3
        inputs = PolicyInput(jnp.zeros((3, 2)), jnp.zeros((3, size)), jnp.zeros(3), none, none)
        policy.step(params, policy.initial_carry(), jax.tree.map(lambda x: x[0], inputs))

        def loss(params):
            output = policy.unroll(params, policy.initial_carry(), inputs)[1]
            of, seen = policy.distribution, output.distribution
            actions = jax.vmap(of.sample)(jax.random.split(jax.random.key(0), 3), seen)
            terms = (
                jax.vmap(of.log_prob)(seen, actions),
                jax.vmap(of.entropy)(seen),
                jax.vmap(of.kl)(seen, seen),
                output.value,
            )
            return sum(term.sum() for term in terms)

        jax.jvp(jax.grad(loss), (params,), (params,))
        return policy.observe(params, inputs.obs, jnp.ones(3))

    jax.eval_shape(everything)


def test_closed_actions_give_no_nan_anywhere_on_the_way(strict):
    logits = jnp.array([0.0, 1.0, -jnp.inf])

    def all_of_it(logits):
        of = distributions.Categorical
        return of.entropy(logits) + of.kl(logits, 2 * logits) + of.log_prob(logits, jnp.int32(1))

    assert np.isfinite(jax.hessian(all_of_it)(logits)).all()
