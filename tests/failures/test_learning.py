"""Learning that used to go wrong without a word."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, parallel, policies, tasks
from jmeta.algorithms.memory.rl2 import with_advantages
from jmeta.envs.point_mass import point_mass
from jmeta.estimators import PolicyGradientBatch
from jmeta.inner import policy_gradient
from jmeta.types import (
    Adapted,
    Continuous,
    Discrete,
    Env,
    EnvSpec,
    PolicyInput,
    Rollout,
    TaskFamily,
    TimeStep,
)
from tests import small

HORIZON = 5


def point(reward, *, horizon=HORIZON, terminated=None):
    """A point in the plane whose task is a number in [0, 1]."""
    env = point_mass(horizon=horizon, reward=reward, terminated=terminated)
    return TaskFamily("point", env, jax.random.uniform, jax.random.uniform)


def make(name, family, **options):
    """A tiny algorithm; arguments that it does not have are left out."""
    policy = policies.mlp(family.env.spec, hidden=(4,), critic=name == "rl2")
    settings = {"optimizer": optax.sgd(0.1), "num_episodes": 3, "epochs": 1, "minibatches": 1} | options
    factory = algorithms.REGISTRY[name]
    known = inspect.signature(factory).parameters
    return factory(family, policy, **{key: value for key, value in settings.items() if key in known})


def first_steps(family, tasks, **options):
    """The largest changes of a parameter by one inner step on each of some tasks."""
    algorithm = make("maml", family, num_episodes=4, **options)
    params = algorithm.init(jax.random.key(0)).params

    @jax.jit
    def largest(task):
        adapted, _ = algorithm.adapt(params, task, jax.random.key(1), 1)
        changes = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), adapted.params, params)
        return jnp.stack(jax.tree.leaves(changes)).max()

    return [float(largest(task)) for task in tasks]


# -- batches without a signal -------------------------------------------------------------------------


def test_a_batch_without_any_reward_is_learned_from_without_skipping():
    family = tasks.sparse_point_goal(horizon=HORIZON)  # the goal is out of reach
    algorithm = make("meta-gradient", family)
    state = algorithm.init(jax.random.key(0))
    batch = jax.vmap(family.sample)(jax.random.split(jax.random.key(1), 4))
    new, metrics = jax.jit(algorithm.update)(state, batch, jax.random.key(2))
    assert metrics["skipped"] == 0 and metrics["tasks_lost"] == 0
    assert np.isfinite(metrics["gradient_norm"])


@pytest.mark.parametrize("baseline", ["linear", "none"])
def test_equal_returns_give_no_step(baseline):
    family = point(lambda position, reward: reward)
    assert first_steps(family, (1.0, -1000.0, 0.0), baseline=baseline) == [0, 0, 0]


def test_a_reward_that_differs_a_little_is_a_signal_of_the_same_size():
    steps = first_steps(point(lambda position, size: 1 + size * position[0]), (1.0, 1e-2))
    np.testing.assert_allclose(steps[1], steps[0], rtol=0.05)


def test_trials_with_equal_rewards_have_no_advantage():
    length, num = 6, 4
    zeros = jnp.zeros((num, length))
    reward = jnp.tile(jnp.array([1.0, 2, 0, 1, 1, 3]), (num, 1))
    trials = Rollout(
        inputs=PolicyInput(
            zeros[..., None], zeros[..., None], zeros, zeros > 0, (zeros + jnp.arange(6)) == 0
        ),
        action=zeros.astype(int),
        log_prob=zeros,
        reward=reward,
        terminated=zeros > 0,
        mask=zeros + 1,
        value=jax.random.normal(jax.random.key(0), (num, length)),
        last_obs=zeros[:, :1, None],
        last_value=zeros[:, :1],
    )
    options = {"horizon": length, "discount": 0.9, "gae_lambda": 0.5, "normalize_advantages": True}
    np.testing.assert_array_equal(with_advantages(trials, **options).advantage, 0)
    varied = trials._replace(reward=reward.at[0, 2].add(0.1))
    assert np.abs(with_advantages(varied, **options).advantage).max() > 0.5


# -- tasks that explode -------------------------------------------------------------------------------


def exploding(where):
    """A point task in `where` gets a NaN reward and terminates."""

    def reward(position, task):
        return jnp.where(where(task), jnp.nan, -jnp.square(position - task).sum())

    return point(reward, terminated=lambda position, task: where(task))


@pytest.mark.parametrize("name", ["maml", "e-maml", "es-maml", "rl2"])
def test_the_others_are_learned_from_as_if_an_exploding_task_were_not_there(name):
    family = exploding(lambda task: task > 0.9)
    algorithm = make(name, family, num_perturbations=2)
    state = algorithm.init(jax.random.key(0))
    healthy, update = jnp.linspace(0, 0.8, 4), jax.jit(algorithm.update)
    expected, before = update(state, healthy, jax.random.key(1))
    found, metrics = update(state, jnp.append(healthy, jnp.array([1.0, 0.95])), jax.random.key(1))
    assert (before["tasks_lost"], metrics["tasks_lost"]) == (0, 2)
    assert metrics["skipped"] == 0
    small.assert_trees_close(found.params, expected.params, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(value).all() for value in metrics.values())
    for metric in ("return_before", "return_after", "loss"):
        if metric in metrics:
            np.testing.assert_allclose(metrics[metric], before[metric], rtol=1e-4)


@pytest.mark.parametrize("name", ["maml", "rl2"])
def test_an_update_without_any_healthy_task_is_skipped_and_counted(name):
    algorithm = make(name, exploding(lambda task: task > -1))
    state = algorithm.init(jax.random.key(0))
    new, metrics = jax.jit(algorithm.update)(state, jnp.linspace(0, 1, 3), jax.random.key(1))
    assert metrics["tasks_lost"] == 3 and metrics["skipped"] == 1
    small.assert_trees_close(new.params, state.params)


def test_observation_statistics_know_nothing_of_an_exploding_task():
    family = exploding(lambda task: task > 0.9)
    policy = policies.mlp(family.env.spec, hidden=(4,), normalize_observations=True)
    algorithm = algorithms.maml(family, policy, optimizer=optax.sgd(0.0), num_episodes=2)
    state, update = algorithm.init(jax.random.key(0)), jax.jit(algorithm.update)

    def observed(task):
        return update(state, jnp.array([0.3, task]), jax.random.key(1))[0].params.statistics.num

    assert observed(1.0) == observed(0.4) / 2


# -- baselines ----------------------------------------------------------------------------------------


def test_a_baseline_of_many_features_does_not_explain_the_signal_away():
    """The step with the baseline points where the step of an exact advantage does."""
    size, num_episodes, horizon = 784, 20, 10

    def timestep(key, reward):
        return TimeStep(jax.random.normal(key, (size,)), reward, jnp.array(False))

    env = Env(
        lambda key, task: (jnp.zeros(()), timestep(key, jnp.zeros(()))),
        lambda key, state, action, task: (state, timestep(key, action[0])),
        EnvSpec(size, Continuous(1), horizon, terminates=False),
    )
    family = TaskFamily("wide", env, jax.random.uniform, jax.random.uniform)
    policy = policies.mlp(env.spec, hidden=(4,))
    params = policy.init(jax.random.key(0))

    def step(baseline):
        learner = policy_gradient.learner(
            family,
            policy,
            surrogate="ratio",
            outer_surrogate="ratio",
            num_episodes=num_episodes,
            discount=0.0,  # the reward of a step is its action: all that is to be learned from
            gae_lambda=1.0,
            baseline=baseline,
            normalize_advantages=True,
        )

        def gradient(key):
            return learner.gradient(params, learner.collect(Adapted(params, ()), 0.5, key))

        leaves = jax.tree.leaves(jax.jit(gradient)(jax.random.key(1)))
        return np.concatenate([np.ravel(leaf) for leaf in leaves])

    with_baseline, without = step("linear"), step("none")
    cosine = with_baseline @ without / np.linalg.norm(with_baseline) / np.linalg.norm(without)
    assert cosine > 0.95


# -- lengths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["maml", "meta-gradient"])
def test_an_inner_step_does_not_depend_on_a_horizon_that_no_episode_reaches(name):
    """Episodes end after three steps of 6 or of 60."""

    def step(horizon):
        def timestep(taken, action, task):
            reward = action.astype(float) + 0.1 * taken
            return TimeStep(jnp.ones(1) * taken, reward, taken >= 3)

        def advance(key, taken, action, task):
            return taken + 1, timestep(taken + 1, action, task)

        def reset(key, task):
            return jnp.zeros(()), timestep(jnp.zeros(()), jnp.zeros((), int), task)

        env = Env(reset, advance, EnvSpec(1, Discrete(2), horizon))
        family = TaskFamily("short", env, jax.random.uniform, jax.random.uniform)
        algorithm = make(name, family, num_episodes=200)
        params = algorithm.init(jax.random.key(0)).params
        adapted, _ = jax.jit(lambda key: algorithm.adapt(params, 0.5, key, 1))(jax.random.key(1))
        return jnp.sqrt(
            sum(
                jnp.square(a - b).sum()
                for a, b in zip(*map(jax.tree.leaves, (adapted.params, params)), strict=True)
            )
        )

    np.testing.assert_allclose(step(60), step(6), rtol=0.3)


def test_episodes_are_weighed_by_the_length_of_the_others():
    mask = jnp.array([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    batch = PolicyGradientBatch(*[mask] * len(PolicyGradientBatch._fields))
    weight = policy_gradient.weigh_by_length(batch, terminates=True).mask[:, 0]
    np.testing.assert_allclose(weight, 4 / np.array([2.5, 1.5, 3.0]), rtol=1e-6)
    assert policy_gradient.weigh_by_length(batch, terminates=False) is batch


# -- any number of tasks on any number of devices ------------------------------------------------------


@pytest.mark.parametrize("name", ["maml", "rl2"])
def test_three_tasks_on_two_devices_are_three_tasks_on_one(name):
    algorithm = make(name, point(lambda position, task: -jnp.square(position - task).sum()))
    state, batch = algorithm.init(jax.random.key(0)), jnp.linspace(0, 1, 3)
    results = []
    for devices in (1, 2):
        mesh = parallel.task_mesh(jax.devices()[:devices])
        with jax.set_mesh(mesh):
            results.append(jax.device_get(jax.jit(algorithm.update)(state, batch, jax.random.key(1))))
    small.assert_trees_close(results[1][0].params, results[0][0].params, rtol=1e-5, atol=1e-5)
    small.assert_trees_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)


def test_a_point_at_its_goal_has_a_finite_derivative():
    def returned(offset):
        family = tasks.point_goal(horizon=2)
        state, _ = family.env.reset(jax.random.key(0), jnp.zeros(2))
        return family.env.step(jax.random.key(1), state, offset * jnp.ones(2), jnp.zeros(2))[1].reward

    assert jax.grad(returned)(0.0) == 0
    np.testing.assert_allclose(jax.grad(returned)(0.5), -0.1 * np.sqrt(2), rtol=1e-5)


# -- second examples of the same mistakes --------------------------------------------------------------


def test_the_credit_of_e_maml_does_not_depend_on_a_constant_reward():
    """Rewards differ between tasks and not within: no signal for a step, and one for exploration."""

    def gradient_norm(offset):
        algorithm = make("e-maml", point(lambda position, task: offset + task), exploration_weight=1.0)
        state = algorithm.init(jax.random.key(0))
        _, metrics = jax.jit(algorithm.update)(state, jnp.array([0.0, 0.0, 1.0]), jax.random.key(1))
        return metrics["gradient_norm"]

    assert gradient_norm(0.0) > 0.01
    np.testing.assert_allclose(gradient_norm(1.0), gradient_norm(0.0), rtol=1e-3)


def test_the_penalty_of_promp_does_not_depend_on_a_horizon_that_no_episode_reaches():
    def moved(horizon):
        family = point(
            lambda position, task: -jnp.square(position - task).sum(),
            horizon=horizon,
            terminated=lambda position, task: jnp.abs(position).max() > 0.01,
        )
        algorithm = make("promp", family, num_episodes=10, outer_epochs=2, kl_penalty=5.0)
        algorithm = algorithm._replace(update=jax.jit(algorithm.update))
        state = algorithm.init(jax.random.key(0))
        _, metrics = algorithm.update(state, jnp.linspace(0, 1, 3), jax.random.key(1))
        return metrics["kl"]

    # The step of the outer `sgd` shrinks with the horizon; the penalty must shrink with it.
    assert moved(60) < moved(6) * 1.5


def test_a_lost_trial_does_not_close_all_actions_of_its_place():
    """Actions are closed by an observation, so zeros in place of a lost trial are no inputs of the policy."""
    ones = jnp.ones(3)

    def timestep(reward):
        return TimeStep(ones, reward, jnp.array(False))

    env = Env(
        lambda key, task: (jnp.zeros(()), timestep(jnp.zeros(()))),
        lambda key, state, action, task: (state, timestep(jnp.where(task > 0.9, jnp.nan, action * 1.0))),
        EnvSpec(3, Discrete(3), 4, terminates=False),
    )
    family = TaskFamily("masked", env, jax.random.uniform, jax.random.uniform)
    policy = policies.mlp(env.spec, hidden=(4,), critic=True)

    def closing(run):
        def step(params, carry, inputs):
            carry, output = run(params, carry, inputs)
            return carry, output._replace(distribution=output.distribution + jnp.log(inputs.obs))

        return step

    policy = policy._replace(step=closing(policy.step), unroll=closing(policy.unroll))
    algorithm = algorithms.rl2(family, policy, optimizer=optax.sgd(0.1), minibatches=1, epochs=1)
    state = algorithm.init(jax.random.key(0))
    new, metrics = jax.jit(algorithm.update)(state, jnp.array([0.1, 1.0, 0.3]), jax.random.key(1))
    assert (metrics["tasks_lost"], metrics["skipped"]) == (1, 0)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (new.params, state.params)), strict=True))


def test_meta_gradients_take_an_environment_of_any_types():
    def timestep(reward):
        return TimeStep(jnp.ones(2, jnp.int32), reward.astype(jnp.float16), jnp.zeros(()))

    env = Env(
        lambda key, task: (jnp.zeros(()), timestep(jnp.zeros(()))),
        lambda key, state, action, task: (state, timestep(action[0])),
        EnvSpec(2, Continuous(1), 3),
    )
    algorithm = make("meta-gradient", TaskFamily("integers", env, jax.random.uniform, jax.random.uniform))
    state = algorithm.init(jax.random.key(0))
    jax.eval_shape(algorithm.update, state, jnp.zeros(2), jax.random.key(0))
