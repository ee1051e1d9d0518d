"""Learned inner hyperparameters, against exact derivatives and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.algorithms import maml, meta_gradient
from jmeta.algorithms.gradient.meta_gradient import Hyperparameters
from jmeta.policies.extended import ExtendedParams
from tests import oracle
from tests.algorithms import exact

OPTIONS = {"discount": 0.9, "gae_lambda": 0.8, "entropy_weight": 0.3}
OUTER_DECAY = 0.9 * 0.8  # without a baseline discount and lambda act as their product
RAW = np.array([-0.4, 1.1, -0.9, 0.3])  # of other values than the initial ones


def bounded(raw):
    """Discount, lambda, entropy weight, step size."""
    return *(1 / (1 + np.exp(-raw[:2]))), *np.exp(raw[2:])


def decayed_gradient(theta, decay):
    """E[sum over t of score_t sum over l of decay^l r_(t+l)] / T [S A]."""
    total = np.zeros(4)
    for episode in oracle.trajectories(theta):
        for t, (state, action) in enumerate(zip(episode.states, episode.actions, strict=True)):
            to_come = sum(decay**delay * r for delay, r in enumerate(episode.rewards[t:]))
            total += episode.probability * to_come * oracle.score(theta, state, action)
    return total / oracle.HORIZON


def entropy_gradient(theta):
    """Gradient of the mean entropy of the steps [S A], at fixed states: d H / d logit = -pi (log pi + H)."""
    pi, total = oracle.probabilities(theta), np.zeros((2, 2))
    entropy = -(pi * np.log(pi)).sum(1, keepdims=True)
    for episode in oracle.trajectories(theta):
        for state in episode.states:
            total[state] -= episode.probability * (pi * (np.log(pi) + entropy))[state]
    return total.ravel() / oracle.HORIZON


def after_one_step(raw, theta=oracle.THETA):
    discount, gae_lambda, entropy_weight, step_size = bounded(raw)
    direction = decayed_gradient(theta, discount * gae_lambda) + entropy_weight * entropy_gradient(theta)
    return theta + step_size * direction.reshape(2, 2)


def at(raw):
    return ExtendedParams(jnp.asarray(oracle.THETA), Hyperparameters(*map(jnp.asarray, raw)))


def test_one_step_is_what_the_hyperparameters_say(enumerated):
    algorithm = exact.make(meta_gradient, **OPTIONS).algorithm
    adapted, _ = algorithm.adapt(at(RAW), None, jax.random.key(0))
    np.testing.assert_allclose(adapted.params.policy, after_one_step(RAW), rtol=1e-9)
    np.testing.assert_array_equal(adapted.params.extra, RAW)


def test_one_step_has_the_exact_gradient_of_the_initial_outer_objective(enumerated):
    """The outer discount and lambda stay what they were, wherever the inner ones have gone."""
    gradient, _ = exact.update(exact.make(meta_gradient, **OPTIONS).algorithm, at(RAW))
    jacobian = exact.differences(after_one_step, RAW).reshape(4, 4)  # [hyperparameter, S A]
    adapted = after_one_step(RAW)
    by_raw = jacobian @ decayed_gradient(adapted, OUTER_DECAY)
    np.testing.assert_allclose(-np.array(gradient.extra), by_raw, rtol=1e-6)
    discount, gae_lambda, *_ = bounded(RAW)
    followed = jacobian @ decayed_gradient(adapted, discount * gae_lambda)
    assert np.abs(followed - by_raw).max() > 0.05 * np.abs(by_raw).max()  # the test can tell the two apart


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("baseline", ["linear", "none"])
def test_gradient_equals_finite_differences_of_the_surrogate(float64, num_steps, baseline):
    made = exact.make(
        meta_gradient,
        num_inner_steps=num_steps,
        **exact.SAMPLED | OPTIONS | {"baseline": baseline},
    )
    gradient = exact.assert_gradient_is_that_of_the_loss(made)
    assert all(abs(by_raw) > 1e-5 for by_raw in gradient.extra)


def test_episodes_after_adaptation_are_judged_by_the_initial_discount(float64):
    made = exact.make(meta_gradient, num_episodes=4, **OPTIONS)
    data, _ = exact.collect(made, at(RAW))
    for batch, decay in (
        (data.post, OUTER_DECAY),
        (jax.tree.map(lambda x: x[0], data.pre), np.prod(bounded(RAW)[:2])),
    ):
        reward = np.asarray(batch.reward)
        to_come = np.stack(
            [sum(decay ** (k - t) * reward[:, k] for k in range(t, 3)) for t in range(3)], axis=1
        )
        np.testing.assert_allclose(batch.advantage, to_come, rtol=1e-9)


def test_without_entropy_it_adapts_as_maml_does(float64):
    options = {"num_inner_steps": 3, "discount": 0.9, "gae_lambda": 0.8, "baseline": "linear"}
    ours = exact.make(meta_gradient, entropy_weight=1e-14, **options).algorithm
    theirs = exact.make(maml, surrogate="ratio", **options).algorithm
    start = ours.init(jax.random.key(0)).params
    task, key = oracle.family().sample(None), jax.random.key(1)
    adapted = ours.adapt(start, task, key)[0].params.policy
    expected = theirs.adapt(start.policy, task, key)[0].params
    np.testing.assert_allclose(adapted, expected, rtol=1e-10)
    assert np.abs(expected - oracle.THETA).max() > 1e-2


def test_the_metrics_are_the_hyperparameters(float64):
    made = exact.make(meta_gradient, optimizer=optax.sgd(0.0), **OPTIONS)
    _, metrics = exact.update(made.algorithm)
    for name, value in (OPTIONS | {"step_size": exact.STEP_SIZE}).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-9)
    _, metrics = exact.update(made.algorithm, at(RAW))
    np.testing.assert_allclose([metrics[name] for name in Hyperparameters._fields], bounded(RAW), rtol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_no_outer_step_takes_them_out_of_their_bounds(float64, sign):
    """An outer optimiser that goes far too far, either way."""
    far = optax.stateless(
        lambda updates, params: jax.tree.map(lambda x: sign * jnp.full_like(x, 20.0), updates)
    )
    _, metrics = exact.update(exact.make(meta_gradient, optimizer=far, **OPTIONS).algorithm)
    low, high = (0.0, 1e-6) if sign < 0 else (1 - 1e-6, 1.0)
    assert low < metrics["discount"] < high
    assert low < metrics["gae_lambda"] < high
    for name, initial in (("entropy_weight", 0.3), ("step_size", exact.STEP_SIZE)):
        assert metrics[name] > 0
        assert (metrics[name] > initial) == (sign > 0)
