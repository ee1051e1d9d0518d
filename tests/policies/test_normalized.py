import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.policies import mlp, normalize_observations
from jmeta.types import Continuous, EnvSpec, PolicyInput

D, T = 3, 10
SPEC = EnvSpec(obs_size=D, action=Continuous(2), horizon=T)


@pytest.fixture(scope="module")
def policies():
    plain = mlp(SPEC, hidden=(8,), critic=True)
    return plain, normalize_observations(plain, SPEC)


@pytest.fixture(scope="module")
def params(policies):
    return policies[1].init(jax.random.key(0))


def unroll(policy, params, obs):
    inputs = PolicyInput(obs, *[jnp.zeros(len(obs))] * 4)
    return policy.unroll(params, policy.initial_carry(), inputs)[1]


def batches():
    keys = jax.random.split(jax.random.key(1), 3)
    offset = jnp.array([100.0, 0.0, -5.0])
    scale = jnp.array([0.1, 1.0, 20.0])
    return [offset + scale * (i + jax.random.normal(k, (i + 2, 4, D))) for i, k in enumerate(keys)]


def test_merging_equals_the_moments_of_all_the_data(policies, params):
    observe = jax.jit(policies[1].observe)
    for batch in batches():
        params = observe(params, batch, jnp.ones(batch.shape[:-1]))
    everything = np.concatenate([batch.reshape(-1, D) for batch in batches()]).astype(np.float64)
    statistics = params.statistics
    assert statistics.num == len(everything)
    np.testing.assert_allclose(statistics.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.sum_of_squares / statistics.num, everything.var(0), rtol=1e-3)


def test_masked_observations_are_left_out_and_weights_do_not_count(policies, params):
    obs = batches()[0].reshape(-1, D)
    mask = jnp.ones(len(obs)).at[3:].set(0).at[0].set(0.2)
    masked = policies[1].observe(params, obs.at[3:].set(jnp.nan), mask)
    expected = policies[1].observe(params, obs[:3], jnp.ones(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked, expected)


def test_no_observations_change_nothing(policies, params):
    for start in (params, policies[1].observe(params, batches()[0], jnp.ones((2, 4)))):
        same = policies[1].observe(start, batches()[1], jnp.zeros((3, 4)))
        jax.tree.map(np.testing.assert_array_equal, same, start)


def test_is_the_identity_before_any_data(policies, params):
    plain, normalized = policies
    obs = 50 * jax.random.normal(jax.random.key(2), (T, D))
    expected = unroll(plain, params.policy, obs)
    jax.tree.map(np.testing.assert_array_equal, unroll(normalized, params, obs), expected)


def test_the_policy_sees_normalised_and_clipped_observations(policies, params):
    plain, normalized = policies
    # Mean 1, variance 4 in the first coordinate; the others are constant.
    seen = jnp.array([[-1.0, 7.0, 0.0], [3.0, 7.0, 0.0]])
    params = normalized.observe(params, seen, jnp.ones(2))
    obs = jnp.array([[2.0, 7.0, 0.0], [1000.0, 7.0, 0.0], [1.0, 6.0, 0.0]])
    # (2 - 1) / 2 = 0.5; 999 / 2 is clipped to 10; a constant that moves is clipped too.
    expected = jnp.array([[0.5, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, -10.0, 0.0]])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        unroll(normalized, params, obs),
        unroll(plain, params.policy, expected),
    )


def test_statistics_get_no_gradient(policies, params):
    normalized = policies[1]
    params = normalized.observe(params, batches()[1], jnp.ones((3, 4)))
    obs = batches()[1][0]

    def loss(params):
        output = unroll(normalized, params, obs)
        return jnp.sum(jnp.square(output.distribution.mean)) + jnp.sum(jnp.square(output.value))

    def after_a_step(params):
        return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)))

    for objective in (loss, after_a_step):
        gradient = jax.grad(objective)(params)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient.statistics))
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient.policy))


def test_flag_of_the_factory_is_the_wrapper(policies, params):
    flagged = mlp(SPEC, hidden=(8,), critic=True, normalize_observations=True)
    jax.tree.map(np.testing.assert_array_equal, flagged.init(jax.random.key(0)), params)
