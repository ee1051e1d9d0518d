"""Implicit meta-gradients, against the dense solution and the derivative of the minimum itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.algorithms import imaml
from tests import oracle
from tests.algorithms import exact

WEIGHT = 0.8


def descended(theta, num_steps):
    """phi after steps down -J(phi) + WEIGHT / 2 |phi - theta|^2, from theta."""
    phi = theta
    for _ in range(num_steps):
        phi = phi + exact.STEP_SIZE / 2 * (oracle.gradient(phi).reshape(theta.shape) - WEIGHT * (phi - theta))
    return phi


def make(**options):
    return exact.make(imaml, inner_learning_rate=exact.STEP_SIZE / 2, proximal_weight=WEIGHT, **options)


def system(phi):
    """(I + H / WEIGHT), H the Hessian of the inner loss -J, and the gradient of J."""
    return np.eye(4) - oracle.hessian(phi, "dice") / WEIGHT, oracle.gradient(phi)


def test_adaptation_is_drawn_to_its_start(enumerated):
    algorithm = make(num_inner_steps=3).algorithm
    adapted, _ = algorithm.adapt(jnp.asarray(oracle.THETA), None, jax.random.key(0))
    np.testing.assert_allclose(adapted.params, descended(oracle.THETA, 3), rtol=1e-9)
    assert np.abs(adapted.params - oracle.adapted(oracle.THETA, exact.STEP_SIZE / 2, 3)).max() > 1e-2


def test_at_the_minimum_it_is_the_derivative_of_the_minimum(enumerated):
    gradient, _ = exact.update(make(num_inner_steps=60, cg_iterations=6).algorithm)
    minimum = descended(oracle.THETA, 60)
    np.testing.assert_allclose(
        oracle.gradient(minimum), WEIGHT * (minimum - oracle.THETA).ravel(), atol=1e-10
    )
    expected = exact.differences(lambda theta: oracle.value(descended(theta, 60)), oracle.THETA)
    # Conjugate gradient stops at a residual of 1e-5.
    np.testing.assert_allclose(-gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("num_steps", [1, 3])
def test_wherever_adaptation_ends_it_is_the_dense_solution_there(enumerated, num_steps):
    gradient, _ = exact.update(make(num_inner_steps=num_steps, cg_iterations=6).algorithm)
    matrix, right = system(descended(oracle.THETA, num_steps))
    assert np.linalg.norm(matrix @ -gradient.ravel() - right) < 1e-5 * np.linalg.norm(right)
    assert np.linalg.norm(-gradient.ravel() - right) > 1e-2 * np.linalg.norm(right)


def test_one_iteration_of_conjugate_gradient(enumerated):
    gradient, _ = exact.update(make(num_inner_steps=1, cg_iterations=1).algorithm)
    matrix, right = system(descended(oracle.THETA, 1))
    # The minimum of x A x / 2 - b x along b, from 0: b (b b) / (b A b).
    expected = right * (right @ right) / (right @ matrix @ right)
    np.testing.assert_allclose(-gradient.ravel(), expected, rtol=1e-9)


def test_after_few_steps_it_differs_from_the_derivative_of_the_steps(enumerated):
    gradient, _ = exact.update(make(num_inner_steps=1, cg_iterations=6).algorithm)
    # From the start there is no pull: the first step is MAML's.
    expected = oracle.meta_gradient(exact.STEP_SIZE / 2, 1, "dice", first_order=False)
    assert np.abs(-gradient - expected).max() > 0.02 * np.abs(expected).max()


def test_its_defaults_end_at_the_minimum(enumerated):
    gradient, _ = exact.update(
        exact.make(imaml, inner_learning_rate=exact.STEP_SIZE, cg_iterations=6).algorithm
    )
    minimum = oracle.THETA
    for _ in range(60):
        minimum = oracle.THETA + exact.STEP_SIZE * oracle.gradient(minimum).reshape(oracle.THETA.shape)
    matrix = np.eye(4) - exact.STEP_SIZE * oracle.hessian(minimum, "dice")
    expected = np.linalg.solve(matrix, oracle.gradient(minimum).ravel())
    # After one step it is 2 % off.
    assert np.linalg.norm(-gradient.ravel() - expected) < 1e-3 * np.linalg.norm(expected)


def test_the_way_to_the_end_is_not_differentiated(float64):
    made = make(num_inner_steps=2, num_episodes=5)
    params = jnp.asarray(oracle.THETA)
    data, _ = exact.collect(made, params)
    loss, gradient = made.replaced["gradient"](params, data)
    assert np.isfinite(loss) and np.abs(gradient).max() > 1e-4
    nothing = data._replace(pre=None)
    again, same = made.replaced["gradient"](None, nothing)
    assert loss == again
    np.testing.assert_array_equal(gradient, same)


def test_a_strong_pull_gives_the_first_order_gradient(float64):
    """As the weight grows, H / weight vanishes."""
    params = jnp.asarray(oracle.THETA)
    for weight in (1e3, 1e6):
        made = exact.make(imaml, inner_learning_rate=1 / weight, proximal_weight=weight, num_episodes=5)
        data, _ = exact.collect(made, params)
        _, gradient = made.replaced["gradient"](params, data)
        plain = jax.grad(made.parts.learner.loss)(data.adapted, data.post)
        np.testing.assert_allclose(gradient, plain, atol=10 / weight)
