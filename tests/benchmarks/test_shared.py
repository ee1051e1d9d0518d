"""What the classical strategies share: random draws against their distributions, and ties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks.classical import shared
from jmeta import tasks

SAMPLES = 40_000


@pytest.fixture(scope="module")
def gammas():
    alpha = jnp.repeat(jnp.array([[1.0], [2.0], [11.0]]), SAMPLES, axis=1)
    return np.asarray(jax.jit(shared.gamma)(jax.random.key(0), alpha))


@pytest.mark.parametrize("row, alpha", [(0, 1.0), (1, 2.0), (2, 11.0)])
def test_gamma(gammas, row, alpha):
    found = gammas[row]
    # Mean and variance are alpha; the fourth central moment is 3 alpha^2 + 6 alpha. Four standard errors.
    assert abs(found.mean() - alpha) < 4 * np.sqrt(alpha / SAMPLES)
    assert abs(found.var() - alpha) < 4 * np.sqrt((2 * alpha**2 + 6 * alpha) / SAMPLES)
    for share in (0.05, 0.5, 0.99):
        below = (found < scipy.stats.gamma.ppf(share, alpha)).mean()
        assert abs(below - share) < 4 * np.sqrt(share * (1 - share) / SAMPLES)


def test_beta_and_dirichlet_agree_with_their_distributions():
    key_beta, key_dirichlet = jax.random.split(jax.random.key(1))
    a, b = jnp.full(SAMPLES, 3.0), jnp.full(SAMPLES, 1.0)
    alpha = jnp.tile(jnp.array([3.0, 1.0, 1.0]), (SAMPLES, 1))
    found = np.asarray(shared.beta(key_beta, a, b))
    weights = np.asarray(shared.dirichlet(key_dirichlet, alpha))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    # An element of Dirichlet(3, 1, 1) is Beta(3, 2).
    for samples, other in ((found, 1), (weights[:, 0], 2)):
        below = (samples < scipy.stats.beta.ppf(0.2, 3, other)).mean()
        assert abs(below - 0.2) < 4 * np.sqrt(0.2 * 0.8 / SAMPLES)


def test_ties_are_broken_at_random():
    keys = jax.random.split(jax.random.key(2), 900)
    chosen = jax.vmap(lambda key: shared.best(key, jnp.array([3.0, 1.0, 3.0])))(keys)
    # Standard error sqrt(1/4 / 900) = 0.017; four of them.
    np.testing.assert_allclose(np.bincount(chosen, minlength=3) / 900, [0.5, 0, 0.5], atol=0.067)


def test_episodes_that_may_end_early_are_refused():
    spec = tasks.bandit().env.spec
    shared.check_never_ends(spec)
    with pytest.raises(ValueError, match="never end early"):
        shared.check_never_ends(dataclasses.replace(spec, terminates=True))
