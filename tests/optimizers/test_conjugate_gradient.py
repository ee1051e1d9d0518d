"""Conjugate gradient against dense solutions, and where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.optimizers.conjugate_gradient import conjugate_gradient

RIGHT = np.array([1.0, -2.0, 0.5])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def solve(matrix, iterations):
    return conjugate_gradient(lambda v: jnp.asarray(matrix) @ v, jnp.asarray(RIGHT), iterations)


def test_as_many_iterations_as_dimensions_solve_it():
    matrix = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]])
    x, curvature = solve(matrix, 3)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, RIGHT), rtol=1e-10)
    np.testing.assert_allclose(curvature, x @ matrix @ x, rtol=1e-10)


def test_a_right_side_without_positive_curvature_is_returned():
    matrix = np.diag([-1.0, -1.0, 1.0])  # b A b = -1 - 4 + 0.25 < 0
    x, curvature = solve(matrix, 3)
    np.testing.assert_array_equal(x, RIGHT)
    np.testing.assert_allclose(curvature, RIGHT @ matrix @ RIGHT)


def test_it_stops_before_negative_curvature():
    # b A b = 1 + 4 - 0.025 > 0, so one step of length b b / b A b; the next direction meets the -0.1.
    matrix = np.diag([1.0, 1.0, -0.1])
    x, _ = solve(matrix, 3)
    np.testing.assert_allclose(x, RIGHT * 5.25 / 4.975, rtol=1e-12)
    assert x @ RIGHT > 0


def test_nothing_solves_for_nothing():
    x, curvature = conjugate_gradient(lambda v: v, jnp.zeros(3), 3)
    np.testing.assert_array_equal(x, np.zeros(3))
    assert curvature == 0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_the_right_side_does_not_matter(size):
    b = jnp.array([1.0, -2.0, 0.5])
    x, _ = conjugate_gradient(lambda v: 2 * v, size * b, 3)
    np.testing.assert_allclose(x / size, b / 2, rtol=1e-5)
