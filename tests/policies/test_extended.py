import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.policies import mlp
from jmeta.policies.extended import ExtendedParams, extended
from jmeta.types import Continuous, EnvSpec, PolicyInput
from tests import small

SPEC = EnvSpec(obs_size=3, action=Continuous(2), horizon=4)


@pytest.fixture(scope="module")
def inner():
    return mlp(SPEC, hidden=(8,), critic=True, normalize_observations=True)


@pytest.fixture(scope="module")
def policy(inner):
    return extended(inner, lambda params: {"sums": jax.tree.map(jnp.sum, params.policy), "one": jnp.ones(2)})


def sequence():
    return PolicyInput(jax.random.normal(jax.random.key(1), (4, 3)), *[jnp.zeros(4)] * 4)


def test_init_gives_the_policys_own_parameters_and_what_is_made_of_them(inner, policy):
    params, own = policy.init(jax.random.key(0)), inner.init(jax.random.key(0))
    assert isinstance(params, ExtendedParams)
    assert small.bits(params.policy) == small.bits(own)
    assert small.bits(params.extra["sums"]) == small.bits(jax.tree.map(jnp.sum, own.policy))
    np.testing.assert_array_equal(params.extra["one"], 1)


def test_it_acts_on_its_own_parameters_alone(inner, policy):
    params = policy.init(jax.random.key(0))
    other = params._replace(extra=jax.tree.map(lambda x: x + 7, params.extra))
    first = jax.tree.map(lambda x: x[0], sequence())
    for call, inputs in (("unroll", sequence()), ("step", first)):
        expected = getattr(inner, call)(params.policy, inner.initial_carry(), inputs)
        for given in (params, other):
            assert small.bits(getattr(policy, call)(given, policy.initial_carry(), inputs)) == small.bits(
                expected
            )


def test_it_observes_for_the_policy(inner, policy):
    params = policy.init(jax.random.key(0))
    obs, mask = sequence().obs, jnp.array([1.0, 1.0, 1.0, 0.0])
    seen = policy.observe(params, obs, mask)
    assert seen.policy.statistics.num == 3
    assert small.bits(seen.policy) == small.bits(inner.observe(params.policy, obs, mask))
    assert small.bits(seen.extra) == small.bits(params.extra)


def test_what_else_the_policy_says_of_itself(inner, policy):
    assert policy.has_critic and policy.distribution is inner.distribution
    # Those of the policy are of its parameters, not of these.
    assert inner.parts and not policy.parts
