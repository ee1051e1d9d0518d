"""Supervised adaptation: gradients by hand, its derivative, and data that repeats itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import distributions, policies, tasks
from jmeta.algorithms import maml, reptile
from jmeta.envs.regression import regression
from jmeta.inner import supervised
from jmeta.inner.loop import DIFFERENTIATIONS, inner_loop
from jmeta.types import Adapted, Continuous, Env, EnvSpec, Policy, PolicyOutput, TaskFamily, TimeStep

NOTHING = -40.0  # a log standard deviation: e^-40 is below the rounding of float64


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def plane():
    """Regression of task @ x, x [2] uniform in [-1, 1]."""
    env = regression(
        input_size=2,
        sample_input=lambda key: jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0),
        target=lambda x, task: task @ x,
    )
    return TaskFamily("plane", env, lambda key: jnp.array([1.0, -2.0]), lambda key: jnp.array([1.0, -2.0]))


def linear(log_std=NOTHING):
    """Predicts weights @ x + bias; params (weights [2], bias [], log_std [])."""

    def apply(params, carry, inputs):
        weights, bias, log_std = params
        mean = (inputs.obs @ weights + bias)[..., None]
        output = distributions.NormalParams(mean, jnp.broadcast_to(log_std, mean.shape))
        return carry, PolicyOutput(output, jnp.zeros(mean.shape[:-1]))

    params = (jnp.array([0.5, 0.3]), jnp.array(-0.2), jnp.array(log_std))
    return Policy(lambda key: params, lambda: (), apply, apply, distributions.DiagonalNormal)


def collected(policy, num_episodes, params):
    family = plane()
    learner = supervised.learner(family, policy, num_episodes=num_episodes)
    task = family.sample(jax.random.key(0))
    return learner, learner.collect(Adapted(params, ()), task, jax.random.key(1)), task


def test_gradient_of_a_linear_policy_by_hand():
    policy = linear()
    params = policy.init(jax.random.key(0))
    learner, batch, task = collected(policy, 5, params)
    inputs = np.asarray(batch.inputs.obs[:, 0])  # [5, 2]
    errors = inputs @ params[0] + params[1] - inputs @ task
    assert np.ptp(inputs, axis=0).min() > 0.1
    np.testing.assert_allclose(batch.reward[:, 0], -(errors**2), rtol=1e-9)
    np.testing.assert_allclose(learner.loss(params, batch), (errors**2).mean(), rtol=1e-9)
    # The mean of (w x + b - y)^2: 2 (w x + b - y) x for w, 2 (w x + b - y) for b.
    gradient = learner.gradient(params, batch)
    np.testing.assert_allclose(gradient[0], (2 * errors[:, None] * inputs).mean(0), rtol=1e-9)
    np.testing.assert_allclose(gradient[1], (2 * errors).mean(), rtol=1e-9)
    np.testing.assert_allclose(gradient[2], 0, atol=1e-12)


def test_gradient_of_one_hidden_layer_by_hand():
    spec = plane().env.spec
    policy = policies.mlp(spec, hidden=(4,), activation="relu", init_log_std=NOTHING, min_log_std=NOTHING)
    params = policy.init(jax.random.key(3))
    first, last = params["policy"]
    params["policy"] = (first, last._replace(kernel=100 * last.kernel))  # it starts at 0.01
    learner, batch, task = collected(policy, 6, params)
    gradient = learner.gradient(params, batch)["policy"]

    (kernel, bias), (last_kernel, last_bias) = jax.tree.map(np.asarray, params["policy"])
    inputs = np.asarray(batch.inputs.obs[:, 0])  # [6, 2]
    before = inputs @ kernel + bias
    hidden = np.maximum(before, 0)
    assert (before > 0).any(0).all() and (before < 0).any()
    slope = 2 * (hidden @ last_kernel + last_bias - (inputs @ task)[:, None]) / 6  # [6, 1]
    back = slope @ last_kernel.T * (before > 0)  # [6, 4]
    np.testing.assert_allclose(gradient[1].kernel, hidden.T @ slope, rtol=1e-9)
    np.testing.assert_allclose(gradient[1].bias, slope.sum(0), rtol=1e-9)
    np.testing.assert_allclose(gradient[0].kernel, inputs.T @ back, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient[0].bias, back.sum(0), rtol=1e-9, atol=1e-12)


def test_noise_is_reparametrised():
    """With noise of deviation s the expected loss has s^2 more, of derivative 2 s^2 in log s."""
    policy = linear(log_std=-0.5)
    params = policy.init(jax.random.key(0))
    learner, batch, _ = collected(policy, 20_000, params)
    # The derivative is 2 (e + s n) s n, with s^2 = 0.37 and an error e of variance about 2: deviation 2, and
    # over 20,000 samples 0.014. Four of them.
    np.testing.assert_allclose(learner.gradient(params, batch)[2], 2 * np.exp(-1.0), atol=0.06)


def test_the_derivative_goes_through_transitions():
    """A point starts at 0, moves by its action w twice, and pays its squared position."""

    def reset(key, task):
        del key, task
        return jnp.zeros(()), TimeStep(jnp.zeros(1), jnp.zeros(()), jnp.array(False))

    def step(key, state, action, task):
        del key, task
        state = state + action[0]
        return state, TimeStep(state[None], -jnp.square(state), jnp.array(False))

    family = TaskFamily(
        "point", Env(reset, step, EnvSpec(1, Continuous(1), 2)), lambda key: (), lambda key: ()
    )

    def apply(params, carry, inputs):
        mean = jnp.broadcast_to(params, (*inputs.obs.shape[:-1], 1))
        output = distributions.NormalParams(mean, jnp.full_like(mean, NOTHING))
        return carry, PolicyOutput(output, jnp.zeros(mean.shape[:-1]))

    policy = Policy(lambda key: jnp.array(0.3), lambda: (), apply, apply, distributions.DiagonalNormal)
    learner = supervised.learner(family, policy, num_episodes=2)
    batch = learner.collect(Adapted(jnp.array(0.3), ()), jnp.zeros(()), jax.random.key(0))
    # Positions w and 2 w, so the loss is w^2 + 4 w^2 and its derivative 10 w.
    np.testing.assert_allclose(learner.loss(jnp.array(0.3), batch), 5 * 0.09, rtol=1e-9)
    np.testing.assert_allclose(learner.gradient(jnp.array(0.3), batch), 10 * 0.3, rtol=1e-9)


@pytest.fixture(scope="module")
def learned(float64):
    """Two steps on five points of a sine each, by a smooth network."""
    family = tasks.sinusoid()
    policy = policies.mlp(family.env.spec, hidden=(6,), init_log_std=NOTHING, min_log_std=NOTHING)
    learner = supervised.learner(family, policy, num_episodes=5)

    def make(**options):
        return inner_loop(policy=policy, learner=learner, optimizer=optax.sgd(0.02), **options)

    params = policy.init(jax.random.key(0))
    params["policy"] = jax.tree.map(lambda leaf: leaf + 0.1, params["policy"])
    task = family.sample(jax.random.key(1))
    adapted, info = jax.jit(make().adapt, static_argnums=3)(params, task, jax.random.key(2), 2)
    post = learner.collect(adapted, task, jax.random.key(3))
    return learner, make, params, adapted.params, info, post


def test_replay_repeats_adapt(learned):
    _, make, params, adapted, info, _ = learned
    replayed = make().replay(params, info.data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), replayed, adapted)
    assert np.abs(adapted["policy"][0].kernel - params["policy"][0].kernel).max() > 1e-3
    np.testing.assert_allclose(info.returns, info.data.reward[..., 0].mean(-1), rtol=1e-12)


def test_data_are_the_same_points_for_any_parameters(learned):
    learner, _, params, _, info, _ = learned
    batch = jax.tree.map(lambda x: x[0], info.data)
    inputs = np.asarray(batch.inputs.obs[:, 0, 0])
    targets = batch.task.amplitude * np.sin(inputs - batch.task.phase)
    assert len(set(inputs.tolist())) == 5
    other = params | {"policy": jax.tree.map(lambda leaf: 0.5 * leaf - 0.2, params["policy"])}
    for one in (params, other):
        (kernel, bias), (last_kernel, last_bias) = one["policy"]
        predicted = (np.tanh(inputs[:, None] @ kernel + bias) @ last_kernel + last_bias)[:, 0]
        np.testing.assert_allclose(learner.loss(one, batch), ((predicted - targets) ** 2).mean(), rtol=1e-9)


def test_every_step_has_points_of_its_own(learned):
    *_, info, post = learned
    points = np.concatenate([info.data.inputs.obs.ravel(), post.inputs.obs.ravel()])
    assert len(set(points.tolist())) == 15


@pytest.mark.parametrize("differentiation", DIFFERENTIATIONS)
def test_meta_gradient_equals_finite_differences(learned, differentiation):
    learner, make, params, _, info, post = learned
    inner = make(differentiation=differentiation)
    flat, unravel = jax.flatten_util.ravel_pytree(params["policy"])

    @jax.jit
    def loss(flat):
        return learner.loss(inner.replay(params | {"policy": unravel(flat)}, info.data), post)

    gradient = jax.grad(loss)(flat)
    shifts = 1e-5 * jnp.eye(flat.size)
    differences = [(loss(flat + shift) - loss(flat - shift)) / 2e-5 for shift in shifts]
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-6)
    first_order = make(first_order=True)
    without = jax.grad(lambda p: learner.loss(first_order.replay(p, info.data), post))(params)
    without = jax.flatten_util.ravel_pytree(without["policy"])[0]
    assert np.abs(without - gradient).max() > 0.01 * np.abs(gradient).max()


@pytest.mark.parametrize("method", [maml, reptile])
def test_meta_learning_fits_sines(method):
    """A few updates: the error after adaptation falls. For reptile too, from far off."""
    family = tasks.sinusoid()
    policy = policies.mlp(family.env.spec, hidden=(8,), init_log_std=NOTHING, min_log_std=NOTHING)
    algorithm = method(
        family,
        policy,
        optimizer=optax.adam(0.02),
        inner="supervised",
        inner_learning_rate=0.01,
        num_episodes=10,
    )
    state = algorithm.init(jax.random.key(0))
    last = state.params["policy"][-1]
    state = state._replace(
        params=state.params | {"policy": (*state.params["policy"][:-1], last._replace(bias=last.bias + 5))}
    )
    batch = jax.vmap(family.sample)(jax.random.split(jax.random.key(1), 8))

    def step(state, key):
        return algorithm.update(state, batch, key)

    _, metrics = jax.jit(lambda: jax.lax.scan(step, state, jax.random.split(jax.random.key(2), 100)))()
    loss = np.asarray(metrics["loss"])
    np.testing.assert_allclose(loss, -metrics["return_after"], rtol=1e-6)
    assert loss[-10:].mean() < 0.5 * loss[0]
    assert metrics["skipped"][-1] == 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_episodes must be at least 1, got 0"):
        supervised.learner(plane(), linear(), num_episodes=0)


def test_discrete_actions_are_refused():
    family = tasks.random_mdp()
    with pytest.raises(ValueError, match="'supervised' needs continuous actions"):
        supervised.learner(family, policies.mlp(family.env.spec), num_episodes=1)
