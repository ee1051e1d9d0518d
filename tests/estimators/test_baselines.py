import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.estimators.baselines import linear_baseline

N, T, D = 5, 30, 3


@pytest.fixture(scope="module")
def episodes():
    obs = jax.random.normal(jax.random.key(0), (2, N, T, D))
    time = jnp.sin(jnp.arange(T))
    # In the span of the features at every time step, differently for the two tasks.
    first = 3 * obs[0, ..., 0] - obs[0, ..., 1] ** 2 + 5 * time + 1
    second = -4 * obs[1, ..., 2] + 0.5 * obs[1, ..., 0] ** 2 + 20 * time - 7
    return obs, jnp.stack([first, second]), jnp.ones((2, N, T))


@pytest.fixture(scope="module")
def fitted():
    return jax.jit(jax.vmap(linear_baseline))


def explained(values, returns, mask=1.0):
    """Share of the squared returns that the values explain."""
    return 1 - (mask * (values - returns) ** 2).sum() / (mask * returns**2).sum()


def test_recovers_a_function_in_its_span_for_each_task(episodes, fitted):
    obs, returns, mask = episodes
    values = fitted(obs, returns, mask)
    for task in range(2):
        assert explained(values[task], returns[task]) > 0.998
    # A fit shared by the tasks would fail: their returns are unrelated.
    swapped = fitted(obs, returns[::-1], mask)
    assert np.abs(swapped - values).max() > 1


def test_refitting_follows_the_data_in_any_units(episodes, fitted):
    obs, returns, mask = episodes
    for scale in (3.0, 1e-25, 1e25):
        found = np.asarray(fitted(obs, scale * returns, mask)) / scale
        np.testing.assert_allclose(found, fitted(obs, returns, mask), atol=2e-3)


def test_masked_steps_are_left_out(episodes, fitted):
    obs, returns, mask = episodes
    mask = mask.at[:, 1:, 20:].set(0)
    garbage = jnp.where(mask > 0, returns, 1000.0)
    np.testing.assert_allclose(fitted(obs, garbage, mask), fitted(obs, returns, mask), atol=1e-4)
    np.testing.assert_array_equal(np.where(mask > 0, 0, fitted(obs, returns, mask)), 0)


def test_the_values_of_an_episode_do_not_depend_on_its_own_returns(episodes, fitted):
    """Except by the factors, which are 1 here: observations and time explain all returns."""
    obs, returns, mask = episodes
    raised = fitted(obs, returns.at[:, 0].add(0.01), mask)
    np.testing.assert_allclose(raised[:, 0], fitted(obs, returns, mask)[:, 0], atol=2e-3)
    assert np.abs(raised[:, 1] - fitted(obs, returns, mask)[:, 1]).max() > 2e-3


@pytest.mark.parametrize("num_episodes", [2, 5, 12])
def test_equal_returns_are_explained_whatever_their_course(num_episodes):
    """A time step has a mean of its own, so nothing is left that a curve through time could not follow."""
    returns = jnp.tile(jnp.cumsum(jax.random.normal(jax.random.key(1), (20,))), (num_episodes, 1))
    obs = jax.random.normal(jax.random.key(2), (num_episodes, 20, 2))
    values = linear_baseline(obs, returns, jnp.ones((num_episodes, 20)))
    np.testing.assert_allclose(values, returns, atol=1e-5 * np.abs(returns).max())


def test_the_mean_is_that_of_the_other_episodes_and_the_last_one_where_there_are_none():
    """Of two episodes without observations each is predicted by the other."""
    returns, mask = jnp.array([[6.0, 4.0, 0.0], [6.0, 4.0, 4.0]]), jnp.array([[1.0, 1, 0], [1, 1, 1]])
    values = linear_baseline(jnp.zeros((2, 3, 1)), returns, mask)
    np.testing.assert_allclose(values, [[6, 4, 0], [6, 4, 4]], rtol=1e-3)


@pytest.mark.parametrize(("num_episodes", "horizon"), [(2, 10), (3, 5), (5, 20), (10, 5)])
def test_noise_around_a_mean_is_left_as_it_is(num_episodes, horizon):
    """What the means of few episodes by time step say of it is noise, which must not be added to it."""
    noise = jax.random.normal(jax.random.key(0), (50, num_episodes, horizon))
    obs = jax.random.normal(jax.random.key(1), (50, num_episodes, horizon, 3))
    values = jax.jit(jax.vmap(linear_baseline))(obs, noise - 50, jnp.ones_like(noise))
    left = noise - 50 - values
    left, noise = (x - x.mean((1, 2), keepdims=True) for x in (left, noise))
    cosine = (left * noise).sum((1, 2)) / jnp.sqrt((left**2).sum((1, 2)) * (noise**2).sum((1, 2)))
    assert cosine.mean() > 0.93


def test_observations_that_tell_nothing_explain_nothing():
    """With more features than samples a fit to the same episodes would explain all of it."""
    obs = jax.random.normal(jax.random.key(0), (10, 20, 784))
    returns = jax.random.normal(jax.random.key(1), (10, 20))
    values = jax.jit(linear_baseline)(obs, returns, jnp.ones((10, 20)))
    assert explained(values, returns) >= -1e-6
    assert np.square(values).mean() < 0.1


def test_long_observations_still_explain_what_they_tell():
    """Returns that are linear in 100 numbers are partly found in a projection to fewer."""
    obs = jax.random.normal(jax.random.key(0), (40, 50, 100))
    returns = obs[..., :50].sum(-1)
    values = jax.jit(linear_baseline)(obs, returns, jnp.ones((40, 50)))
    assert explained(values, returns) > 0.1


def test_singular_features_and_large_scales_are_safe_in_float32(episodes):
    obs, returns, mask = episodes
    # A constant, a zero and a repeated observation; returns of the order of thousands.
    singular = jnp.concatenate([obs, jnp.ones_like(obs), jnp.zeros_like(obs), obs], axis=-1)
    values = jax.jit(jax.vmap(linear_baseline))(singular, 1000 * returns, mask)
    for task in range(2):
        assert explained(values[task], 1000 * returns[task]) > 0.998


@pytest.mark.parametrize("num_episodes", [1, 2, 3, 6, 7])
def test_values_are_finite_for_few_episodes_and_any_observations(num_episodes):
    """One other episode says nothing about observations; some are constant, equal or in other units."""
    keys = jax.random.split(jax.random.key(0), 200)

    def one(key):
        key_obs, key_returns, key_mask = jax.random.split(key, 3)
        obs = jax.random.normal(key_obs, (num_episodes, 5, 4)) * jnp.array([1.0, 1e-4, 0.0, 1e3]) + 1
        returns = jax.random.normal(key_returns, (num_episodes, 5))
        lengths = jax.random.randint(key_mask, (num_episodes, 1), 1, 6)
        mask = (jnp.arange(5) < lengths).astype(float)
        values = linear_baseline(obs, returns * mask, mask)
        return jnp.isfinite(values).all(), (mask * (values - returns) ** 2).sum(), (mask * returns**2).sum()

    finite, error, size = jax.jit(jax.vmap(one))(keys)
    assert finite.all()
    if num_episodes > 1:  # never worse than none
        assert (error <= size * (1 + 1e-5)).all()


def test_a_single_episode_is_fitted_by_a_curve_through_time():
    time = jnp.linspace(0, 1, T)
    returns = (3 - 2 * time + 4 * time**3)[None]
    values = linear_baseline(jax.random.normal(jax.random.key(0), (1, T, D)), returns, jnp.ones((1, T)))
    np.testing.assert_allclose(values, returns, atol=0.02)


def test_no_data_gives_zero(episodes, fitted):
    obs, returns, mask = episodes
    np.testing.assert_array_equal(fitted(obs, returns, 0 * mask), 0)


def test_values_are_not_differentiated(episodes):
    obs, returns, mask = (x[0] for x in episodes)
    gradient = jax.grad(lambda scale: linear_baseline(scale * obs, scale * returns, mask).sum())(1.0)
    assert gradient == 0
