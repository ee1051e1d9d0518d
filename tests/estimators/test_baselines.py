import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.estimators.baselines import fit_linear, linear_baseline, linear_features, predict_linear

N, T, D = 5, 30, 3


@pytest.fixture(scope="module")
def episodes():
    obs = jax.random.normal(jax.random.key(0), (2, N, T, D))
    time = jnp.arange(T) / 100
    # In the span of the features, differently for the two tasks.
    first = 3 * obs[0, ..., 0] - obs[0, ..., 1] ** 2 + 5 * time - 2 * time**2 + 1
    second = -4 * obs[1, ..., 2] + 0.5 * obs[1, ..., 0] ** 2 + 20 * time**3 - 7
    return obs, jnp.stack([first, second]), jnp.ones((2, N, T))


@pytest.fixture(scope="module")
def fitted():
    return jax.jit(jax.vmap(linear_baseline))


def test_features_by_hand():
    # Step 0 and step 1 (t = 0.01); 20 is clipped to 10.
    features = linear_features(jnp.array([[2.0, -3.0], [20.0, 0.5]]))
    np.testing.assert_allclose(
        features, [[2, -3, 4, 9, 0, 0, 0, 1], [10, 0.5, 100, 0.25, 0.01, 1e-4, 1e-6, 1]], rtol=1e-5
    )


def test_recovers_a_function_in_its_span_for_each_task(episodes, fitted):
    obs, returns, mask = episodes
    values = fitted(obs, returns, mask)
    np.testing.assert_allclose(values, returns, atol=0.02)
    # A fit shared by the tasks would fail: their returns are unrelated.
    swapped = fitted(obs, returns[::-1], mask)
    assert np.abs(swapped - values).max() > 1


def test_refitting_follows_the_data(episodes, fitted):
    obs, returns, mask = episodes
    np.testing.assert_allclose(fitted(obs, 3 * returns, mask), 3 * fitted(obs, returns, mask), atol=1e-3)


def test_masked_steps_are_left_out(episodes, fitted):
    obs, returns, mask = episodes
    mask = mask.at[:, 1:, 20:].set(0)
    garbage = jnp.where(mask > 0, returns, 1000.0)
    np.testing.assert_allclose(fitted(obs, garbage, mask), fitted(obs, returns, mask), atol=1e-4)


def test_weights_equal_repetitions(episodes, fitted):
    obs, returns, mask = episodes
    noisy = returns + jax.random.normal(jax.random.key(1), returns.shape)
    weighted = fitted(obs, noisy, mask.at[:, 0].set(2.0))
    repeated = fitted(*(jnp.concatenate([x, x[:, :1]], axis=1) for x in (obs, noisy, mask)))
    np.testing.assert_allclose(weighted, repeated[:, :N], atol=1e-2)


def test_singular_features_and_large_scales_are_safe_in_float32(episodes, fitted):
    obs, returns, mask = episodes
    # A constant, a zero and a repeated observation; returns of the order of thousands.
    singular = jnp.concatenate([obs, jnp.ones_like(obs), jnp.zeros_like(obs), obs], axis=-1)
    values = jax.jit(jax.vmap(linear_baseline))(singular, 1000 * returns, mask)
    np.testing.assert_allclose(values, 1000 * returns, atol=20)


def test_no_data_gives_zero(episodes, fitted):
    obs, returns, mask = episodes
    np.testing.assert_array_equal(fitted(obs, returns, 0 * mask), 0)


def test_ridge_by_hand():
    # One feature 2 with returns 6, 6: scaled to unit norm its Gram is 1, so coefficient = 3 / (1 + 1).
    coefficients = fit_linear(
        jnp.array([[2.0], [2.0]]), jnp.array([6.0, 6.0]), jnp.ones(2), regularization=1.0
    )
    np.testing.assert_allclose(coefficients, [1.5], rtol=1e-6)
    np.testing.assert_allclose(predict_linear(coefficients, jnp.array([[2.0]])), [3.0], rtol=1e-6)


def test_values_are_not_differentiated(episodes):
    obs, returns, mask = (x[0] for x in episodes)
    gradient = jax.grad(lambda scale: linear_baseline(scale * obs, scale * returns, mask).sum())(1.0)
    assert gradient == 0
