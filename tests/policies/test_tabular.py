"""The table acts ε-greedily by its values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import distributions
from jmeta.policies import REGISTRY, tabular
from jmeta.types import Continuous, Discrete, EnvSpec, PolicyInput

SPEC = EnvSpec(obs_size=3, action=Discrete(4), horizon=5)
VALUES = jnp.array([[1.0, 4.0, 2.0, 3.0], [7.0, 5.0, 7.0, 6.0], [-1.0, -1.0, -1.0, -1.0]])


def see(obs):
    """Inputs of as many steps as `obs` has."""
    shape = obs.shape[:-1]
    return PolicyInput(
        obs, jnp.zeros((*shape, 4)), jnp.zeros(shape), jnp.zeros(shape, bool), jnp.zeros(shape, bool)
    )


def probabilities(epsilon, obs):
    _, output = tabular(SPEC, epsilon=epsilon).unroll(VALUES, (), see(obs))
    return np.exp(output.distribution), output.value


def test_probabilities_by_hand():
    found, value = probabilities(0.2, jnp.eye(3))
    # 0.2 / 4 = 0.05 each, and 0.8 for the best: action 1; two best ones share it; four share it.
    expected = [[0.05, 0.85, 0.05, 0.05], [0.45, 0.05, 0.45, 0.05], [0.25, 0.25, 0.25, 0.25]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(value, [4, 7, -1])


def test_epsilon_one_is_uniform():
    np.testing.assert_allclose(probabilities(1.0, jnp.eye(3))[0], np.full((3, 4), 0.25), rtol=1e-6)


def test_values_are_linear_in_other_observations():
    # Half of the first row and the whole of the second: 7.5, 7, 8, 7.5.
    found, value = probabilities(0.4, jnp.array([[0.5, 1.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.7, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(value, [8.0])


def test_actions_are_drawn_with_these_probabilities():
    policy = tabular(SPEC, epsilon=0.2)
    assert policy.distribution is distributions.Categorical
    _, output = policy.step(VALUES, (), see(jnp.eye(3)[1]))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: policy.distribution.sample(key, output.distribution))(keys)
    # Standard error of the greatest sqrt(0.45 * 0.55 / 4000) = 0.008; four of them.
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, [0.45, 0.05, 0.45, 0.05], atol=0.032)


def test_unroll_equals_scanning_step():
    policy = tabular(SPEC)
    inputs = see(jax.random.normal(jax.random.key(0), (6, 3)))
    carry, unrolled = policy.unroll(VALUES, policy.initial_carry(), inputs)
    scanned_carry, scanned = jax.lax.scan(lambda carry, one: policy.step(VALUES, carry, one), (), inputs)
    assert carry == scanned_carry == ()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), unrolled, scanned)
    assert unrolled.value.shape == (6,) and policy.has_critic


def test_initial_values():
    np.testing.assert_array_equal(tabular(SPEC).init(jax.random.key(0)), np.zeros((3, 4)))
    np.testing.assert_array_equal(tabular(SPEC, init_value=2.5).init(jax.random.key(0)), np.full((3, 4), 2.5))
    assert REGISTRY["tabular"] is tabular


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 1.1])
def test_epsilon_is_validated(epsilon):
    with pytest.raises(ValueError, match=rf"epsilon must be in \(0, 1\], got {epsilon}"):
        tabular(SPEC, epsilon=epsilon)


def test_continuous_actions_are_refused():
    with pytest.raises(ValueError, match="discrete actions"):
        tabular(EnvSpec(3, Continuous(2), 5))
