"""A linear baseline, refitted per task and per adaptation step."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jmeta.types import Array

# The normal equations square the condition number: they need all of float32, whatever the global setting.
_PRECISION = jax.lax.Precision.HIGHEST


def linear_features(obs: Array) -> Array:
    """The features of Duan et al. 2016 (Benchmarking Deep RL): [o, o^2, t, t^2, t^3, 1].

    Args:
      obs: [T, D] of one episode, clipped to [-10, 10] here.

    Returns:
      [T, 2 D + 4]; t counts hundreds of steps from the episode's start.
    """
    chex.assert_rank(obs, 2)
    clipped = jnp.clip(obs, -10, 10)
    time = jnp.arange(obs.shape[0], dtype=obs.dtype)[:, None] / 100
    return jnp.concatenate([clipped, clipped**2, time, time**2, time**3, jnp.ones_like(time)], axis=-1)


def fit_linear(features: Array, returns: Array, mask: Array, *, regularization: float = 1e-5) -> Array:
    """Weighted ridge regression of returns on features, by the normal equations.

    Args:
      features: [M, F].
      returns: [M].
      mask: [M], the weight of each step; 0 excludes it.
      regularization: added to the diagonal once each feature is scaled to unit norm, so that it means the
        same for every scale of features and every number of steps (Duan et al. add it unscaled, in float64).

    Returns:
      [F] coefficients; 0 for a feature that is 0 throughout.
    """
    chex.assert_rank([features, returns, mask], [2, 1, 1])
    weighted = features * mask[:, None]
    gram = jnp.matmul(weighted.T, features, precision=_PRECISION)
    moment = jnp.matmul(returns, weighted, precision=_PRECISION)
    norm = jnp.sqrt(jnp.diagonal(gram))
    scale = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
    scaled_gram = gram * scale[:, None] * scale + regularization * jnp.eye(len(scale), dtype=gram.dtype)
    return scale * jnp.linalg.solve(scaled_gram, scale * moment)


def predict_linear(coefficients: Array, features: Array) -> Array:
    """The fitted values [...] of features [..., F] under coefficients [F]."""
    return jnp.matmul(features, coefficients, precision=_PRECISION)


def linear_baseline(obs: Array, returns: Array, mask: Array) -> Array:
    """Fits the returns of one task's episodes and predicts them.

    It depends on the time step and is fitted to returns that end at the time limit, so nothing is
    bootstrapped there. It is fitted to the episodes whose advantages it serves, as in Duan et al. 2016,
    which leaves a bias that vanishes with their number.

    Args:
      obs: [N, T, D].
      returns: [N, T] discounted returns from each step on.
      mask: [N, T], the weight of each step; 0 excludes it.

    Returns:
      [N, T] values; not differentiated.
    """
    chex.assert_rank([obs, returns, mask], [3, 2, 2])
    features = jax.vmap(linear_features)(obs)
    flat = features.reshape(-1, features.shape[-1])
    coefficients = fit_linear(flat, returns.reshape(-1), mask.reshape(-1))
    return jax.lax.stop_gradient(predict_linear(coefficients, features))
