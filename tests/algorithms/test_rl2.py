"""RL²: what a trial's advantages hold, truncated back-propagation, and learning a bandit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jmeta import distributions, parallel, policies, tasks
from jmeta.algorithms import rl2
from jmeta.algorithms.memory.rl2 import collect_trial
from jmeta.optimizers import adam, trpo
from jmeta.presets import preset
from jmeta.runs.config import build
from jmeta.types import Policy, PolicyOutput, TaskFamily
from tests.test_rollouts import countdown


def constant_policy(value):
    """Uniform over three actions, with one value for everything."""

    def apply(params, carry, inputs):
        shape = inputs.obs.shape[:-1]
        return carry, PolicyOutput(jnp.zeros((*shape, 3)), jnp.full(shape, value))

    return Policy(lambda key: (), lambda: (), apply, apply, distributions.Categorical, has_critic=True)


def collected(value, **options):
    """Two episodes of the countdown that end at their second step: rewards 1, 2, 1, 2."""
    family = TaskFamily("countdown", countdown(), None, None)
    settings = {"num_episodes": 2, "discount": 0.5, "gae_lambda": 1.0}
    run = jax.jit(
        lambda key: collect_trial(family, constant_policy(value), (), jnp.int32(2), key, **settings | options)
    )
    return run(jax.random.key(0))


def test_returns_run_across_episodes_and_stop_at_the_end_of_the_trial():
    steps, returns = collected(0.0)
    # Backwards: 2, 1 + 2 / 2 = 2, 2 + 2 / 2 = 3, 1 + 3 / 2 = 2.5.
    np.testing.assert_allclose(steps.target[:4], [2.5, 3, 2, 2])
    np.testing.assert_array_equal(steps.target[4:], 0)
    np.testing.assert_array_equal(steps.mask, [1] * 4 + [0] * 8)
    np.testing.assert_array_equal(returns, [3, 3])


def test_the_critic_is_asked_within_the_trial_and_not_after_it():
    steps, _ = collected(4.0, gae_lambda=0.0)
    # r + 4 / 2 - 4 while the trial goes on, through the end of an episode; r - 4 at its end.
    np.testing.assert_allclose(steps.advantage[:4], [1 + 2 - 4, 2 + 2 - 4, 1 + 2 - 4, 2 - 4])


def test_the_end_of_a_full_length_trial_is_its_end_too():
    """Two episodes of the countdown from 100, which the horizon of six ends: nothing follows them."""
    family = TaskFamily("countdown", countdown(), None, None)
    options = {"num_episodes": 2, "discount": 0.5, "gae_lambda": 0.0}
    run = jax.jit(lambda key: collect_trial(family, constant_policy(4.0), (), jnp.int32(100), key, **options))
    steps, _ = run(jax.random.key(0))
    assert steps.mask.sum() == 12
    # r + 4 / 2 - 4, at the end of the first episode too; r - 4 at the last step.
    np.testing.assert_allclose(steps.advantage[5], steps.reward[5] + 2 - 4)
    np.testing.assert_allclose(steps.advantage[11], steps.reward[11] - 4)


def make(**options):
    family = tasks.bandit(num_arms=3, num_pulls=6)
    policy = policies.gru(family.env.spec, size=8)
    return family, rl2(family, policy, **{"optimizer": adam(learning_rate=0.01)} | options)


def sampled(family, num):
    return jax.vmap(family.sample)(jax.random.split(jax.random.key(5), num))


def test_the_first_update_follows_the_policy_gradient():
    """One epoch of one minibatch, at the behaviour policy: the gradient of log-probability x advantage."""
    family, algorithm = make(
        optimizer=optax.sgd(1.0),
        epochs=1,
        minibatches=1,
        entropy_weight=0.0,
        value_weight=0.0,
        normalize_advantages=False,
    )
    state, batch, key = algorithm.init(jax.random.key(0)), sampled(family, 4), jax.random.key(1)
    new, _ = jax.jit(algorithm.update)(state, batch, key)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.split(key)[0], i))(jnp.arange(4))
    steps, _ = jax.vmap(
        lambda task, key: collect_trial(
            family,
            algorithm.policy,
            state.params,
            task,
            key,
            num_episodes=1,
            discount=0.99,
            gae_lambda=0.95,
        )
    )(batch, keys)

    def objective(params):
        def one(steps):
            _, output = algorithm.policy.unroll(params, algorithm.policy.initial_carry(), steps.inputs)
            log_prob = jax.vmap(algorithm.policy.distribution.log_prob)(output.distribution, steps.action)
            return (log_prob * steps.advantage).mean()

        return jax.vmap(one)(steps).mean()

    expected = jax.tree.map(jnp.add, state.params, jax.grad(objective)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)


def test_truncation_keeps_the_outputs_and_cuts_the_gradient():
    losses, params = {}, {}
    for unroll_length in (None, 6, 2):
        family, algorithm = make(
            optimizer=optax.sgd(0.1), epochs=1, minibatches=1, unroll_length=unroll_length
        )
        state = algorithm.init(jax.random.key(0))
        new, metrics = jax.jit(algorithm.update)(state, sampled(family, 4), jax.random.key(1))
        losses[unroll_length], params[unroll_length] = metrics["loss"], new.params
    np.testing.assert_allclose(losses[6], losses[None], rtol=1e-6)
    np.testing.assert_allclose(losses[2], losses[None], rtol=1e-5)  # the carries are the same
    recurrent = {length: np.asarray(p.core.recurrent) for length, p in params.items()}
    np.testing.assert_allclose(recurrent[6], recurrent[None], atol=1e-7)
    assert np.abs(recurrent[2] - recurrent[None]).max() > 1e-6


def test_adapting_is_playing_episodes():
    family = tasks.grid_goal(horizon=5)
    algorithm = rl2(family, policies.gru(family.env.spec, size=8), optimizer=adam())
    params = algorithm.init(jax.random.key(0)).params
    task = family.sample(jax.random.key(1))
    adapted, info = jax.jit(lambda key: algorithm.adapt(params, task, key))(jax.random.key(2))
    assert info.returns.shape == (3,)  # of the family's four episodes, all but the last
    assert np.abs(adapted.carry).max() > 0 and adapted.previous.done
    again, _ = jax.jit(lambda key: algorithm.adapt(params, task, key, 0))(jax.random.key(2))
    np.testing.assert_array_equal(again.carry, 0)


def test_no_more_episodes_than_the_memory_holds():
    family = tasks.grid_goal(horizon=5)
    policy = policies.snail(family.env.spec, size=2, max_steps=20)
    algorithm = rl2(family, policy, optimizer=adam())
    params, task = algorithm.init(jax.random.key(0)).params, family.sample(jax.random.key(1))
    assert (algorithm.trial_steps, algorithm.max_adapt_steps) == (3, 3)  # and one more to act
    with pytest.raises(ValueError, match="num_steps must be at most 3, got 4"):
        algorithm.adapt(params, task, jax.random.key(2), 4)
    unbounded = rl2(family, policies.gru(family.env.spec, size=2), optimizer=adam())
    assert (unbounded.trial_steps, unbounded.max_adapt_steps) == (3, None)


@pytest.mark.parametrize("policy", ["gru", "lstm", "mann", "snail", "transformer"])
@pytest.mark.parametrize(
    "family",
    [
        "ant-direction",
        "bandit",
        "grid-goal",
        "half-cheetah-velocity",
        "random-mdp",
        "recommendation",
        "sparse-point-goal",
    ],
)
def test_every_family_takes_every_memory(family, policy):
    """From the preset; traced, not run."""
    config = preset("rl2", family)
    made, _, algorithm = build(dataclasses.replace(config, policy={"name": policy}))

    def one_update(key):
        state = algorithm.init(key)
        batch = jax.vmap(made.sample)(jax.random.split(key, config.training.num_tasks))
        return state, algorithm.update(state, batch, key)

    state, (new, metrics) = jax.eval_shape(one_update, jax.random.key(0))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert metrics["return_trial"].shape == ()


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_episodes", 0, "num_episodes must be at least 1, got 0"),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("minibatches", 0, "minibatches must be at least 1, got 0"),
        ("clip", -0.1, "clip must not be negative, got -0.1"),
        ("entropy_weight", -1.0, "entropy_weight must not be negative, got -1.0"),
        ("discount", 1.5, r"discount must be in \[0, 1\], got 1.5"),
        ("unroll_length", 4, "unroll_length must divide the trial's 6 steps, got 4"),
        ("tasks_per_block", 0, "tasks_per_block must be at least 1 or None, got 0"),
    ],
)
def test_bad_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{argument: value})


def test_one_device_equals_two_with_a_memory():
    family = tasks.grid_goal(horizon=4)
    policy = policies.gru(family.env.spec, size=4)
    algorithm = rl2(family, policy, optimizer=adam(), minibatches=2, unroll_length=8)
    states = []
    for devices in (1, 2):
        mesh = parallel.task_mesh(jax.devices()[:devices])
        with jax.set_mesh(mesh):
            start = parallel.replicate(algorithm.init(jax.random.key(0)), mesh)
            states.append(jax.jit(algorithm.update)(start, sampled(family, 8), jax.random.key(1))[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states)


def test_policies_that_do_not_fit_are_refused():
    family = tasks.bandit(num_arms=3, num_pulls=6)
    with pytest.raises(ValueError, match="needs a policy with a critic"):
        rl2(family, policies.mlp(family.env.spec), optimizer=adam())
    with pytest.raises(ValueError, match="must be at least the trial's 6, got 5"):
        rl2(family, policies.snail(family.env.spec, size=2, max_steps=5), optimizer=adam())
    with pytest.raises(ValueError, match="optimizer of rl2 must do with gradients alone"):
        make(optimizer=trpo())


def test_minibatches_divide_the_tasks():
    family, algorithm = make(minibatches=4)
    with pytest.raises(ValueError, match="multiple of 4, for 1 devices and 4 minibatches, got 6"):
        jax.eval_shape(
            algorithm.update, algorithm.init(jax.random.key(0)), sampled(family, 6), jax.random.key(1)
        )


def test_learns_to_explore():
    """Two arms, one always pays and one never, six pulls: guessing gives 3, one look before choosing 5.5."""
    family = tasks.bandit(num_arms=2, num_pulls=6)

    def sample(key):
        return jnp.roll(jnp.array([0.0, 1.0]), jax.random.bernoulli(key).astype(int))

    family = family._replace(sample=sample)
    algorithm = rl2(
        family, policies.gru(family.env.spec, size=16), optimizer=adam(learning_rate=0.02), entropy_weight=0.0
    )

    def learn(key):
        def step(state, key):
            key_tasks, key_update = jax.random.split(key)
            batch = jax.vmap(sample)(jax.random.split(key_tasks, 64))
            return algorithm.update(state, batch, key_update)

        return jax.lax.scan(step, algorithm.init(key), jax.random.split(key, 60))[1]["return_trial"]

    returns = np.asarray(jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(0), 4)))
    np.testing.assert_allclose(returns[:, 0].mean(), 3.0, atol=0.4)
    last = returns[:, -10:].mean(1)
    low, _ = scipy.stats.t.interval(0.99, 3, last.mean(), scipy.stats.sem(last))
    assert low > 5.0, last
    assert last.mean() < 5.7  # nobody can do better than 5.5
