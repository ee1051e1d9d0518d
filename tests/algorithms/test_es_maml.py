"""Evolution strategies, on problems whose smoothed return is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import distributions, policies, tasks
from jmeta.algorithms import es_maml
from jmeta.envs import probes
from jmeta.optimizers import adam
from jmeta.types import Continuous, Env, EnvSpec, Policy, PolicyOutput, TaskFamily, TimeStep
from tests import small

STD = 0.3
UPDATES = 4000


def normal_policy(params, *, fixed_log_std=None):
    """Mean "mean" whatever is observed; log standard deviation "log_std", unless it is fixed."""

    def apply(params, carry, inputs):
        mean = jnp.broadcast_to(params["mean"], (*inputs.obs.shape[:-1], *params["mean"].shape))
        log_std = params["log_std"] if fixed_log_std is None else fixed_log_std
        normal = distributions.NormalParams(mean, jnp.broadcast_to(log_std, mean.shape))
        return carry, PolicyOutput(normal, jnp.zeros(inputs.obs.shape[:-1]))

    return Policy(lambda key: params, lambda: (), apply, apply, distributions.DiagonalNormal)


def estimates(family, policy, batch, *, updates=UPDATES, **options):
    """Gradients of many updates, each a dict of [updates, ...]: what they would descend."""
    algorithm = es_maml(family, policy, optimizer=optax.sgd(1.0), perturbation_std=STD, **options)
    state = algorithm.init(jax.random.key(0))

    def gradient(key):
        new, _ = algorithm.update(state, batch, key)
        return jax.tree.map(jnp.subtract, state.params, new.params)

    keys = jax.random.split(jax.random.key(1), updates)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(gradient))(keys))


def distance(samples, exact):
    """In standard errors of the mean."""
    return np.abs(samples.mean(0) - exact) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def sample_target(key):
    return jax.random.rademacher(key, (), float)


TARGETS = TaskFamily("targets", probes.action_reward(), sample_target, sample_target)


def test_the_gradient_is_that_of_the_smoothed_return():
    """The return of mean m and log standard deviation s is -(m - task)^2 - exp(2 s).

    Smoothed by a normal distribution of standard deviation STD: a square keeps its gradient, -2 (m - task),
    and exp(2 s) becomes exp(2 s + 2 STD^2), of gradient 2 exp(2 s + 2 STD^2).
    """
    mean, log_std = 0.5, -0.4
    policy = normal_policy({"mean": jnp.array([mean]), "log_std": jnp.array([log_std])})
    batch = jnp.array([1.0, -1.0, 2.0])
    found = estimates(TARGETS, policy, batch, num_inner_steps=0, num_perturbations=4, num_episodes=8)
    assert distance(found["mean"], 2 * (mean - batch.mean())).max() < 4
    smooth, plain = (2 * np.exp(2 * log_std + shift) for shift in (2 * STD**2, 0))
    assert distance(found["log_std"], smooth).max() < 4
    assert distance(found["log_std"], plain).min() > 5  # the test can tell the two apart


def test_the_gradient_goes_through_adaptation():
    """Learning from the reward's own derivative: a step of size r leaves (1 - 2 r) of the distance, plus
    noise that does not depend on the mean. The return after it has the gradient -2 (1 - 2 r)^2 (m - task).
    """
    policy = normal_policy({"mean": jnp.array([1.5])}, fixed_log_std=-1.0)
    found = estimates(
        TARGETS,
        policy,
        jnp.array([-1.0, 0.0]),
        inner="supervised",
        inner_learning_rate=0.15,
        num_perturbations=4,
        num_episodes=3,
    )
    exact = 2 * 0.7**2 * (1.5 + 0.5)
    assert distance(found["mean"], exact).max() < 4
    assert distance(found["mean"], exact / 0.7**2).min() > 8  # without adaptation


def sample_slope(key):
    return jax.random.normal(key, (2,))


def linear_reward():
    """One step of reward task . action."""

    def reset(key, task):
        del key, task
        return jnp.zeros(1), TimeStep(jnp.zeros(1), jnp.zeros(()), jnp.array(False))

    def step(key, state, action, task):
        del key
        return state, TimeStep(state, task @ action, jnp.array(True))

    return Env(reset, step, EnvSpec(obs_size=1, action=Continuous(2), horizon=1))


def test_both_of_a_pair_meet_the_same_chance():
    """With a linear return the noise of actions cancels in a pair: e (e . c) remains, e standard normal.

    Its mean is c. Along c / |c| it is |c| z^2, of variance 2 |c|^2; across, |c| y z, of variance |c|^2.
    Without common random numbers the actions' own variance, 5^2 |c|^2 / (2 STD^2) = 139 |c|^2, would come on
    top.
    """
    direction, pairs = np.array([0.6, -0.8]), 5
    family = TaskFamily("linear", linear_reward(), sample_slope, sample_slope)
    policy = normal_policy({"mean": jnp.zeros(2)}, fixed_log_std=np.log(5.0))
    found = estimates(
        family,
        policy,
        jnp.array(direction)[None],
        updates=20_000,
        num_inner_steps=0,
        num_perturbations=pairs,
        num_episodes=1,
    )["mean"]
    assert distance(found, -direction).max() < 4
    along, across = found @ direction, found @ np.array([0.8, 0.6])
    np.testing.assert_allclose(along.var() * pairs, 2, rtol=0.1)
    np.testing.assert_allclose(across.var() * pairs, 1, rtol=0.1)


def test_every_pair_of_every_task_has_its_own_perturbation():
    """More pairs, less variance: twice as many for twice the tasks too, all being alike."""
    family = TaskFamily("linear", linear_reward(), sample_slope, sample_slope)
    policy = normal_policy({"mean": jnp.zeros(2)}, fixed_log_std=0.0)
    variance = [
        estimates(
            family,
            policy,
            jnp.broadcast_to(jnp.array([0.6, -0.8]), (num_tasks, 2)),
            updates=10_000,
            num_inner_steps=0,
            num_perturbations=num_pairs,
            num_episodes=1,
        )["mean"].var(0)
        for num_tasks, num_pairs in ((1, 2), (1, 8), (4, 2))
    ]
    np.testing.assert_allclose(variance[0] / variance[1], 4, rtol=0.15)
    np.testing.assert_allclose(variance[0] / variance[2], 4, rtol=0.15)


def test_adaptation_need_not_be_differentiable():
    """Q-learning with a greedy maximum, by a policy whose actions have no derivative."""
    family = tasks.random_mdp(num_states=3, num_actions=2, horizon=4)
    policy = policies.tabular(family.env.spec)
    algorithm = es_maml(
        family,
        policy,
        optimizer=adam(learning_rate=0.1),
        inner="q-learning",
        num_inner_steps=2,
        num_perturbations=3,
        num_episodes=2,
    )
    batch = jax.vmap(family.sample)(jax.random.split(jax.random.key(1), 4))
    state = algorithm.init(jax.random.key(0))
    new, metrics = jax.jit(algorithm.update)(state, batch, jax.random.key(2))
    assert np.abs(new.params - state.params).min() > 1e-3
    assert metrics["skipped"] == 0
    # 4 tasks, 3 pairs, 2 and 1 batches of 2 episodes of 4 steps.
    assert metrics["env_steps"] == 4 * 3 * 2 * (2 + 1) * 2 * 4


def test_observation_statistics_are_no_parameters_to_perturb():
    policy = policies.mlp(small.family().env.spec, hidden=(4,), normalize_observations=True)
    with pytest.raises(ValueError, match="es-maml perturbs every parameter.*normalize_observations"):
        es_maml(small.family(), policy, optimizer=adam())
