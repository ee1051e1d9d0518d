"""Learned step sizes, against exact derivatives by both initial parameters and step sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.algorithms import maml, meta_sgd
from jmeta.policies.extended import ExtendedParams
from tests import oracle, small
from tests.algorithms import exact

# One step size of each kind: large, small, none, reversed.
RATES = np.array([[[2.0, 0.5], [0.0, -1.0]], [[0.3, 1.5], [-0.7, 1.0]]])


def value_after(theta, rates):
    """J after exact steps of sizes [K, S, A]."""
    for rate in rates:
        theta = theta + rate * oracle.gradient(theta).reshape(theta.shape)
    return oracle.value(theta)


def of(rates):
    return ExtendedParams(jnp.asarray(oracle.THETA), jnp.asarray(rates))


def test_one_step_has_the_exact_gradient(enumerated):
    """By the chain rule: J of theta + alpha g has the derivatives (I + H alpha) g' and g g'."""
    gradient, metrics = exact.update(exact.make(meta_sgd).algorithm, of(RATES[0]))
    before = oracle.gradient(oracle.THETA)
    after = oracle.gradient(oracle.THETA + RATES[0] * before.reshape(2, 2))
    np.testing.assert_allclose(-gradient.extra.ravel(), before * after, rtol=1e-9)
    jacobian = np.eye(4) + np.diag(RATES[0].ravel()) @ oracle.hessian(oracle.THETA, "dice")
    np.testing.assert_allclose(-gradient.policy.ravel(), jacobian.T @ after, rtol=1e-9)
    np.testing.assert_allclose(metrics["step_size"], (RATES[0] - gradient.extra).mean(), rtol=1e-9)


@pytest.mark.parametrize("per_step", [False, True])
def test_two_steps_have_the_exact_gradient(enumerated, per_step):
    made = exact.make(meta_sgd, num_inner_steps=2, per_step=per_step)
    rates = RATES if per_step else RATES[0]
    gradient, _ = exact.update(made.algorithm, of(rates))

    def value(theta, rates):
        return value_after(theta, np.broadcast_to(rates, (2, 2, 2)))

    by_theta = exact.differences(lambda theta: value(theta, rates), oracle.THETA)
    by_rates = exact.differences(lambda rates: value(oracle.THETA, rates), rates)
    np.testing.assert_allclose(-gradient.policy, by_theta, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(-gradient.extra, by_rates, rtol=1e-6, atol=1e-9)
    assert (np.abs(by_rates) > 1e-4).all()


@pytest.mark.parametrize("per_step", [False, True])
def test_gradient_equals_finite_differences_of_the_surrogate(float64, per_step):
    made = exact.make(meta_sgd, num_inner_steps=2, per_step=per_step, surrogate="ratio", **exact.SAMPLED)
    gradient = exact.assert_gradient_is_that_of_the_loss(made)
    assert (np.abs(gradient.extra).max((-1, -2)) > 1e-4).all()


def test_equal_step_sizes_adapt_as_maml_does(float64):
    task, key = oracle.family().sample(None), jax.random.key(1)
    ours, theirs = (exact.make(factory, num_inner_steps=3).algorithm for factory in (meta_sgd, maml))
    start = ours.init(jax.random.key(0)).params
    np.testing.assert_array_equal(start.extra, np.full((2, 2), exact.STEP_SIZE))
    adapted = ours.adapt(start, task, key)[0].params
    expected = theirs.adapt(start.policy, task, key)[0].params
    np.testing.assert_allclose(adapted.policy, expected, rtol=1e-12)
    assert np.abs(expected - oracle.THETA).max() > 1e-2
    np.testing.assert_array_equal(adapted.extra, start.extra)  # adaptation does not learn them


def test_every_step_has_its_own_set_and_later_ones_the_last(enumerated):
    algorithm = exact.make(meta_sgd, num_inner_steps=2, per_step=True).algorithm
    assert algorithm.init(jax.random.key(0)).params.extra.shape == (2, 2, 2)
    for num_steps in (1, 2, 4):
        adapted, _ = algorithm.adapt(of(RATES), None, jax.random.key(0), num_steps)
        theta = oracle.THETA
        for step in range(num_steps):
            theta = theta + RATES[min(step, 1)] * oracle.gradient(theta).reshape(2, 2)
        np.testing.assert_allclose(adapted.params.policy, theta, rtol=1e-9)


def test_first_order_learns_step_sizes(enumerated):
    gradient, _ = exact.update(exact.make(meta_sgd, first_order=True).algorithm, of(RATES[0]))
    before = oracle.gradient(oracle.THETA)
    after = oracle.gradient(oracle.THETA + RATES[0] * before.reshape(2, 2))
    np.testing.assert_allclose(-gradient.policy.ravel(), after, rtol=1e-9)
    np.testing.assert_allclose(-gradient.extra.ravel(), before * after, rtol=1e-9)


def test_every_number_has_a_step_size():
    algorithm = small.algorithm("meta-sgd")
    params = algorithm.init(jax.random.key(0)).params
    assert jax.tree.structure(params.extra) == jax.tree.structure(params.policy)
    assert [x.shape for x in jax.tree.leaves(params.extra)] == [
        x.shape for x in jax.tree.leaves(params.policy)
    ]
