"""MAML as a whole: meta-gradient, trust region, safety and learning, against answers known exactly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jmeta import algorithms, distributions, policies, tasks
from jmeta.algorithms import maml
from jmeta.algorithms.gradient import outer
from jmeta.envs import probes
from jmeta.estimators.baselines import linear_baseline
from jmeta.optimizers import adam, trpo
from jmeta.types import Array, Policy, PolicyOutput, TaskFamily
from tests import oracle, small
from tests.algorithms import exact

STEP_SIZE = 2.0
VECTOR = np.array([[0.3, -1.0], [0.8, 0.5]])
REPLICAS, TASKS, EPISODES = 16, 2, 1000  # few replicas of many episodes: the bias is of order 1 / EPISODES


class Seen(NamedTuple):
    """What the outer optimiser was offered in its last update."""

    inner: Any
    before: tuple[Array, Array]  # loss and divergence at the old parameters
    after: tuple[Array, Array]  # and at the new ones
    product: Any  # H v of the divergence


def observed(optimizer, vector=VECTOR):
    """`optimizer`, keeping what it is offered in its state."""
    optimizer, zero = optax.with_extra_args_support(optimizer), jnp.zeros(())

    def init(params):
        return Seen(optimizer.init(params), (zero, zero), (zero, zero), jnp.zeros_like(params))

    def update(grads, state, params, **offered):
        updates, inner = optimizer.update(grads, state.inner, params, **offered)
        value_and_kl = offered["value_and_kl_fn"]
        after = value_and_kl(optax.apply_updates(params, updates))
        return updates, Seen(inner, value_and_kl(params), after, offered["kl_hvp_fn"](jnp.asarray(vector)))

    return optax.GradientTransformationExtraArgs(init, update)


def two_state(optimizer, **options):
    """MAML on the two-state process, estimating without bias and without a baseline."""
    defaults = {
        "num_inner_steps": 1,
        "inner_learning_rate": STEP_SIZE,
        "num_episodes": EPISODES,
        "surrogate": "dice",
        "outer_surrogate": "ratio",
        "discount": 1.0,
        "gae_lambda": 1.0,
        "baseline": "none",
        "normalize_advantages": False,
    }
    return maml(oracle.family(), oracle.softmax_policy(), optimizer=optimizer, **defaults | options)


def replicas_of_task(num):
    return jax.vmap(oracle.family().sample)(jax.random.split(jax.random.key(0), num))


class Estimates(NamedTuple):
    """[REPLICAS, S, A] each."""

    gradient: np.ndarray
    product: np.ndarray


def estimate(num_steps, first_order):
    with jax.enable_x64(True):
        algorithm = two_state(observed(optax.sgd(1.0)), num_inner_steps=num_steps, first_order=first_order)
        state, batch = algorithm.init(jax.random.key(0)), replicas_of_task(TASKS)

        def replica(key):
            new, _ = algorithm.update(state, batch, key)
            return state.params - new.params, new.opt_state.inner.product

        keys = jax.random.split(jax.random.key(num_steps), REPLICAS)
        return Estimates(*map(np.asarray, jax.jit(jax.vmap(replica))(keys)))


@pytest.fixture(scope="module", params=[(1, False), (2, False), (1, True)], ids=["1", "2", "first-order"])
def estimated(request):
    num_steps, first_order = request.param
    return num_steps, first_order, estimate(num_steps, first_order)


def distance(samples, exact):
    """In standard errors of the mean of the replicas."""
    return np.abs(samples.mean(0) - exact) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def divergence_hessian(num_steps, *, first_order):
    """J^T F J: F the Fisher matrix of a step after adaptation, J the Jacobian of the adaptation."""
    jacobian, theta = np.eye(4), oracle.THETA
    for _ in range(num_steps):
        if not first_order:
            jacobian = (np.eye(4) + STEP_SIZE * oracle.hessian(theta, "dice")) @ jacobian
        theta = oracle.adapted(theta, STEP_SIZE, 1)
    fisher = np.zeros((4, 4))
    for trajectory in oracle.trajectories(theta):
        for state in trajectory.states:  # the Hessian of a log-probability is minus the Fisher matrix
            fisher -= trajectory.probability * oracle.score_hessian(theta, state) / oracle.HORIZON
    return jacobian.T @ fisher @ jacobian


def test_an_update_follows_the_exact_meta_gradient(estimated):
    num_steps, first_order, found = estimated
    exact = [-oracle.meta_gradient(STEP_SIZE, num_steps, "dice", first_order=f) for f in (False, True)]
    assert distance(found.gradient, exact[first_order]).max() < 4
    # The test can tell the two apart.
    assert distance(found.gradient, exact[not first_order]).max() > 8


def test_the_divergence_is_differentiated_through_the_inner_step(estimated):
    num_steps, first_order, found = estimated
    exact = [
        (divergence_hessian(num_steps, first_order=f) @ VECTOR.ravel()).reshape(VECTOR.shape)
        for f in (False, True)
    ]
    assert distance(found.product, exact[first_order]).max() < 4
    assert distance(found.product, exact[not first_order]).max() > 8


# -- outer optimisers ---------------------------------------------------------------------------------


def test_trust_region_steps_stay_within_the_bound_and_improve():
    max_kl = 0.01
    with jax.enable_x64(True):
        algorithm = two_state(observed(trpo(max_kl=max_kl)), num_episodes=100)
        batch = replicas_of_task(2)

        def step(state, key):
            state, metrics = algorithm.update(state, batch, key)
            return state, (state.opt_state.inner, metrics)

        state = algorithm.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 6)
        state, (seen, metrics) = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
    seen, metrics = jax.tree.map(np.asarray, (seen, metrics))
    accepted = seen.inner.step_fraction > 0
    assert accepted.sum() >= 5
    assert (metrics["kl"] <= max_kl).all()
    assert (metrics["kl"][accepted] > 0.1 * max_kl).all()
    np.testing.assert_allclose(metrics["kl"], seen.after[1], atol=1e-12)
    np.testing.assert_allclose(seen.before[1], 0, atol=1e-12)
    assert (seen.after[0] < seen.before[0])[accepted].all()
    np.testing.assert_array_equal(metrics["loss"], seen.before[0])
    adapted_value = [
        oracle.value(oracle.adapted(np.asarray(theta), STEP_SIZE, 1))
        for theta in (oracle.THETA, state.params)
    ]
    assert adapted_value[1] > adapted_value[0] + 0.02


def test_outer_epochs_repeat_the_update_on_one_batch():
    with jax.enable_x64(True):
        # TRPO may not take several epochs; what asks for the same and only looks may.
        made = exact.make(maml, optimizer=observed(optax.sgd(0.1)), num_episodes=5)
        algorithm = outer.algorithm(made.parts._replace(outer_epochs=2))
        state = algorithm.init(jax.random.key(0))
        state, metrics = jax.jit(algorithm.update)(state, replicas_of_task(2), jax.random.key(1))
    seen, metrics = jax.tree.map(np.asarray, (state.opt_state.inner, metrics))
    # The second epoch starts away from the policy that sampled, on the batch of the first one, whose loss
    # is less by now; both continue in the same direction.
    assert 0 < seen.before[1] < seen.after[1]
    assert seen.after[0] < seen.before[0] < metrics["loss"]
    assert metrics["kl"] == seen.after[1]
    assert metrics["env_steps"] == 2 * (5 + 5) * oracle.HORIZON
    assert state.step == 1


# -- adaptation ---------------------------------------------------------------------------------------


def test_the_baseline_is_refitted_for_every_task_and_inner_step():
    with jax.enable_x64(True):
        family = small.family()
        algorithm = maml(
            family,
            policies.mlp(family.env.spec, hidden=(8,)),
            optimizer=adam(),
            num_inner_steps=2,
            inner_learning_rate=1.0,
            num_episodes=6,
            discount=0.9,
            normalize_advantages=False,
        )
        params = algorithm.init(jax.random.key(0)).params
        goals = jnp.array([[0.4, -0.3], [-0.2, -0.4]])
        keys = jax.random.split(jax.random.key(1), 2)
        adapt = jax.jit(jax.vmap(lambda task, key: algorithm.adapt(params, task, key)[1].data))
        data = jax.tree.map(np.asarray, adapt(goals, keys))
    assert data.mask.all()
    returns = np.zeros((2, 2, 6, 6))  # [tasks, steps, N, T + 1]
    for t in reversed(range(5)):
        returns[..., t] = data.reward[..., t] + 0.9 * returns[..., t + 1]
    returns = returns[..., :5]

    def fit(obs, returns):
        with jax.enable_x64(True):
            return np.asarray(linear_baseline(*map(jnp.asarray, (obs, returns, np.ones_like(returns)))))

    fits = {index: fit(data.inputs.obs[index], returns[index]) for index in np.ndindex(2, 2)}
    for index, fitted in fits.items():
        np.testing.assert_allclose(data.value[index], fitted, rtol=1e-6)
        np.testing.assert_allclose(data.advantage[index], returns[index] - fitted, rtol=1e-6, atol=1e-8)
    # A fit shared by the tasks, or by the steps, would be another.
    for axis, joined in (("tasks", data.inputs.obs[:, 0]), ("steps", data.inputs.obs[0])):
        target = returns[:, 0] if axis == "tasks" else returns[0]
        shared = fit(joined.reshape(-1, 5, 2), target.reshape(-1, 5))
        assert np.abs(shared[:6] - fits[0, 0]).max() > 1e-2, axis


# -- safety -------------------------------------------------------------------------------------------


def test_a_non_finite_update_is_skipped_and_counted():
    family = small.family()

    def step(key, state, action, task):
        state, timestep = family.env.step(key, state, action, task)
        return state, timestep._replace(reward=jnp.where(task[0] > 100, jnp.nan, timestep.reward))

    broken = family._replace(env=family.env._replace(step=step))
    policy = policies.mlp(family.env.spec, hidden=(8,), normalize_observations=True)
    algorithm = maml(broken, policy, optimizer=adam(learning_rate=0.1), num_episodes=3)
    update = jax.jit(algorithm.update)
    good = small.sample_tasks(jax.random.key(0))
    bad = good + jnp.array([200.0, 0.0])
    before, _ = update(algorithm.init(jax.random.key(1)), good, jax.random.key(2))
    skipped, metrics = update(before, bad, jax.random.key(3))
    assert metrics["skipped"] == 1 and metrics["tasks_lost"] == small.NUM_TASKS
    assert np.isnan(metrics["gradient_norm"])
    assert small.bits(skipped.params.policy) == small.bits(before.params.policy)
    assert small.bits(skipped.opt_state.inner) == small.bits(before.opt_state.inner)
    assert skipped.step == 2
    # Nor do the statistics take in what a broken policy saw: learning goes on.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(skipped.params))
    after, metrics = update(skipped, good, jax.random.key(4))
    assert metrics["skipped"] == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert small.bits(after.params.policy) != small.bits(skipped.params.policy)


@pytest.mark.parametrize("epochs", [1, 3])
def test_an_update_of_several_epochs_that_goes_too_far_is_taken_back_and_counted(epochs):
    family, policy = small.family(), small.policy()
    algorithm = maml(family, policy, optimizer=adam(learning_rate=3.0), num_episodes=3, outer_epochs=epochs)
    before = algorithm.init(jax.random.key(1))
    after, metrics = jax.jit(algorithm.update)(
        before, small.sample_tasks(jax.random.key(0)), jax.random.key(2)
    )
    too_far = epochs > 1  # one epoch is of the episodes' own policies, and TRPO has a bound of its own
    assert metrics["kl"] > 1 and metrics["skipped"] == after.opt_state.skipped == too_far
    assert (small.bits(after.params) == small.bits(before.params)) == too_far
    assert (small.bits(after.opt_state.inner) == small.bits(before.opt_state.inner)) == too_far
    assert after.step == 1


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_inner_steps", -1, "num_inner_steps must be at least 0, got -1"),
        ("inner_learning_rate", -0.1, "inner_learning_rate must be finite and not negative, got -0.1"),
        ("num_episodes", 0, "num_episodes must be at least 1, got 0"),
        ("outer_epochs", 0, "outer_epochs must be at least 1, got 0"),
        ("tasks_per_block", 0, "tasks_per_block must be at least 1, got 0"),
        ("discount", 1.01, r"discount must be in \[0, 1\], got 1.01"),
        ("gae_lambda", -0.5, r"gae_lambda must be in \[0, 1\], got -0.5"),
        ("baseline", "mean", "baseline must be one of linear, value, none, got 'mean'"),
        ("surrogate", "trpo", "surrogate must be one of .*, got 'trpo'"),
        ("outer_surrogate", "Ratio", "surrogate must be one of .*, got 'Ratio'"),
    ],
)
def test_bad_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        maml(small.family(), small.policy(), optimizer=adam(), **{argument: value})


# -- learning -----------------------------------------------------------------------------------------


def test_learns_to_adapt_to_tasks_with_a_known_optimum():
    """One action a of reward -(a - task)^2, tasks -1 and 1.

    The expected return of mean m and standard deviation s is -(m - task)^2 - s^2, its gradient by m is
    2 (task - m): an inner step of 0.25 halves the distance. The best initial mean is 0: before adaptation
    the return is -1 - s^2, after it -1/4 - s^2. Starting at 2 it is (-9 - 1) / 2 - s^2 before.
    """

    def sample(key):
        return jax.random.rademacher(key, (), float)

    family = TaskFamily("targets", probes.action_reward(), sample, sample)

    def apply(params, carry, inputs):
        mean = jnp.broadcast_to(params["mean"], (*inputs.obs.shape[:-1], 1))
        log_std = jnp.broadcast_to(jnp.maximum(params["log_std"], -3), mean.shape)
        return carry, PolicyOutput(
            distributions.NormalParams(mean, log_std), jnp.zeros(inputs.obs.shape[:-1])
        )

    policy = Policy(
        lambda key: {"mean": jnp.full(1, 2.0), "log_std": jnp.full(1, -0.5)},
        lambda: (),
        apply,
        apply,
        distributions.DiagonalNormal,
    )
    algorithm = maml(
        family, policy, optimizer=adam(learning_rate=0.05), num_episodes=30, inner_learning_rate=0.25,
        normalize_advantages=False,
    )  # fmt: skip

    def learn(key):
        def step(state, key):
            key_tasks, key_update = jax.random.split(key)
            batch = jax.vmap(family.sample)(jax.random.split(key_tasks, 8))
            return algorithm.update(state, batch, key_update)

        return jax.lax.scan(step, algorithm.init(key), jax.random.split(key, 150))

    state, metrics = jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(0), 8))  # 8 seeds
    before, after = (np.asarray(metrics[name])[:, -20:].mean(1) for name in ("return_before", "return_after"))
    variance = np.exp(2 * np.asarray(state.params["log_std"])).mean()
    assert np.asarray(metrics["return_before"])[:, 0].mean() < -4
    for returns, optimum in ((before, -1 - variance), (after, -0.25 - variance)):
        low, high = scipy.stats.t.interval(0.99, 7, returns.mean(), scipy.stats.sem(returns))
        assert low - 0.1 < optimum < high + 0.1
    low, _ = scipy.stats.t.interval(0.99, 7, (after - before).mean(), scipy.stats.sem(after - before))
    assert low > 0.5
    np.testing.assert_allclose(np.asarray(state.params["mean"]).mean(), 0, atol=0.15)


@pytest.mark.slow
def test_half_cheetah_runs():
    family = tasks.half_cheetah_direction(horizon=10)
    policy = policies.mlp(family.env.spec, hidden=(8,))
    algorithm = algorithms.maml(family, policy, optimizer=adam(), num_episodes=2)
    state, update = algorithm.init(jax.random.key(0)), jax.jit(algorithm.update)
    for seed in (1, 2):
        batch = jax.vmap(family.sample)(jax.random.split(jax.random.key(seed), 2))
        state, metrics = update(state, batch, jax.random.key(seed))
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["env_steps"] == 2 * (2 + 2) * 10
        assert metrics["gradient_norm"] > 0
