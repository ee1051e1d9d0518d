"""The oracle's formulas against central differences of the values that it enumerates."""

import numpy as np
import pytest

from tests import oracle

STEP_SIZE, WEIGHT = 2.0, 0.5
VECTOR = np.array([[0.8, -0.5], [1.0, 0.1]])


def differences(value, size=1e-5):
    """Central differences of `value` at THETA [S, A]."""
    gradient = np.zeros_like(oracle.THETA)
    for index in np.ndindex(*gradient.shape):
        shift = np.zeros_like(oracle.THETA)
        shift[index] = size
        gradient[index] = (value(oracle.THETA + shift) - value(oracle.THETA - shift)) / (2 * size)
    return gradient


def error(num_episodes, surrogate, *, sampling_term):
    """Of the expected estimate along VECTOR, relative to the slope of the value that is expected there."""
    high, low = (
        oracle.finite_value(oracle.THETA + sign * 1e-5 * VECTOR, STEP_SIZE, num_episodes) for sign in (1, -1)
    )
    found = oracle.finite_meta_gradient(STEP_SIZE, num_episodes, surrogate, sampling_term=sampling_term)
    return abs(np.vdot(found, VECTOR) / ((high - low) / 2e-5) - 1)


@pytest.mark.parametrize("num_episodes", [1, 2])
def test_the_derivative_of_the_step_and_the_sampling_term_make_the_gradient_of_few_episodes(num_episodes):
    assert error(num_episodes, "reinforce", sampling_term=True) < 1e-8


def test_the_sampling_term_counts_once():
    assert error(1, "reinforce", sampling_term=False) > 0.1
    assert error(1, "dice", sampling_term=True) > 0.1  # DiCE's Hessian has it already
    assert error(1, "ratio", sampling_term=True) > 0.1


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_derivative_of_the_step_and_the_sampling_term_make_the_exact_meta_gradient(num_steps):
    def found(surrogate, sampling_term):
        return oracle.meta_gradient(
            STEP_SIZE, num_steps, surrogate, first_order=False, sampling_term=sampling_term
        )

    exact = differences(lambda theta: oracle.value(oracle.adapted(theta, STEP_SIZE, num_steps)))
    np.testing.assert_allclose(found("dice", False), exact, atol=1e-9)
    np.testing.assert_allclose(found("reinforce", True), exact, atol=1e-9)
    for surrogate, sampling_term in (("dice", True), ("ratio", False), ("reinforce", False)):
        assert np.linalg.norm(found(surrogate, sampling_term) - exact) > 0.04 * np.linalg.norm(exact)


def test_the_smoothed_meta_gradient_is_the_mean_over_perturbations():
    """Of a quadratic in their size: at twice the size four times as far from the unsmoothed one."""
    exact = oracle.meta_gradient(STEP_SIZE, 2, "dice", first_order=False)
    near, far = (oracle.smoothed_meta_gradient(STEP_SIZE, 2, std) - exact for std in (0.05, 0.1))
    np.testing.assert_allclose(far, 4 * near, rtol=0.05)
    # The Laplacian of the gradient, halved, times the variance.
    size = 1e-2
    laplacian = np.zeros_like(exact)
    for index in np.ndindex(*exact.shape):
        shift = np.zeros_like(exact)
        shift[index] = size
        sides = (
            oracle.meta_gradient(STEP_SIZE, 2, "dice", first_order=False, theta=oracle.THETA + s)
            for s in (shift, -shift)
        )
        laplacian += (sum(sides) - 2 * exact) / size**2
    np.testing.assert_allclose(near, laplacian * 0.05**2 / 2, rtol=0.05)


def test_the_implicit_gradient_is_the_derivative_of_the_optimum():
    optimum = oracle.proximal_optimum(WEIGHT)
    np.testing.assert_allclose(oracle.proximal(1 / WEIGHT, WEIGHT, 20), optimum, atol=1e-12)
    exact = differences(lambda theta: oracle.value(oracle.proximal_optimum(WEIGHT, theta)))
    np.testing.assert_allclose(oracle.implicit_gradient(optimum, WEIGHT), exact, atol=1e-9)
