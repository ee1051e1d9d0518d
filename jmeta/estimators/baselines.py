"""A linear baseline, fitted again for every task and every adaptation step."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from jmeta.optimizers.conjugate_gradient import conjugate_gradient
from jmeta.types import Array

# The normal equations square the condition number: they need all of float32, whatever the global setting.
_PRECISION = jax.lax.Precision.HIGHEST
_MOST_FOLDS = 5
_MOST_FEATURES = 64  # more cost more than they explain
_MOST_ITERATIONS = 32  # of conjugate gradient


def linear_baseline(obs: Array, returns: Array, mask: Array) -> Array:
    """Predicts the returns of one task's episodes, each from what the other episodes show.

    The prediction is the mean return of other episodes, plus how their mean at the same time step differs
    from it, plus a linear function of how the observation o differs from theirs at that time, in the features
    [o, o^2] of Duan et al. 2016 (Benchmarking Deep RL). The episodes are divided into up to five folds, and
    the values of a fold are fitted to the other folds (cross-fitting). So no value depends on the rewards of
    its own episode: the baseline leaves the policy gradient unbiased, except for shared factors (below), and
    it cannot explain returns merely by having many features. Where the observation is too long for the number
    of samples, the features are those of a random projection of it.

    Each of the three parts is shrunk by a factor in [0, 1] that is shared by all episodes of the task, with
    which they fit best: a part that predicts nothing is left out, so that the baseline is never worse than
    none.

    It is fitted to returns that end at the time limit, so nothing is bootstrapped there. A single episode has
    no others to be compared with; its returns are fitted by a cubic polynomial in time.

    Args:
      obs: [N, T, D], clipped to [-10, 10] here.
      returns: [N, T] discounted returns from each step on.
      mask: [N, T], the weight of each step; 0 excludes it.

    Returns:
      [N, T] values, 0 where not `mask`; not differentiated.
    """
    chex.assert_rank([obs, returns, mask], [3, 2, 2])
    obs, returns, mask = jax.lax.stop_gradient((obs, returns, mask))
    size = jnp.max(jnp.abs(jnp.where(mask > 0, returns, 0)))  # squares of very large returns would overflow
    scaled = jnp.where(mask > 0, returns / jnp.where(size > 0, size, 1), 0)
    if len(obs) == 1:
        return size * jnp.where(mask > 0, _polynomial(scaled[0], mask[0]), 0)
    return size * jnp.where(mask > 0, _cross_fitted(_features(obs), scaled, mask), 0)


def _features(obs: Array) -> Array:
    """[N, T, F]: the clipped observation and its square, or those of a random projection of it."""
    num_episodes, horizon, size = obs.shape
    most = max(2, min(_MOST_FEATURES, num_episodes * horizon // 4))
    clipped = jnp.clip(obs, -10, 10)
    if 2 * size > most:
        directions = jax.random.normal(jax.random.key(0), (size, most // 2), clipped.dtype)
        clipped = jnp.matmul(clipped, directions / math.sqrt(size), precision=_PRECISION)
    return jnp.concatenate([clipped, clipped**2], axis=-1)


def _cross_fitted(features: Array, returns: Array, mask: Array) -> Array:
    num_episodes = len(mask)
    num_folds = min(num_episodes, _MOST_FOLDS)
    size = math.ceil(num_episodes / num_folds)

    def in_folds(x: Array) -> Array:
        """[N, ...] -> [folds, size, ...]; places that are left have no weight."""
        padded = jnp.pad(x, [(0, num_folds * size - num_episodes)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(size, num_folds, *x.shape[1:]).swapaxes(0, 1)

    # What all episodes have in common at a time step is taken off first: sums of squares then lose no digits.
    count = mask.sum(0)
    share = mask / jnp.where(count > 0, count, 1)[None]
    common_x = jnp.einsum("nt,ntf->tf", share, features, precision=_PRECISION)
    common_y = (share * returns).sum(0)
    features, returns = features - common_x[None], returns - common_y[None]
    x, y, weight = in_folds(features), in_folds(returns), in_folds(mask)  # [K, size, T, ...]
    weighted = weight[..., None] * x

    def elsewhere(of_fold: Array) -> Array:
        """Sums over a fold [K, ...] -> sums over all other folds."""
        return of_fold.sum(0, keepdims=True) - of_fold

    # Means over the other folds by time step, the last one known where no other episode has come so far.
    count = elsewhere(weight.sum(1))  # [K, T]
    known = count > 0.5 * jnp.where(mask > 0, mask, jnp.inf).min()
    time = jax.lax.cummax(jnp.where(known, jnp.arange(count.shape[1])[None], 0), axis=1)
    divisor = jnp.where(known, count, 1)
    sum_x, sum_y = elsewhere(weighted.sum(1)), elsewhere((weight * y).sum(1))
    sum_x, sum_y = jnp.where(known[..., None], sum_x, 0), jnp.where(known, sum_y, 0)
    mean_x, mean_y = sum_x / divisor[..., None], sum_y / divisor
    gram = elsewhere(jnp.einsum("kstf,kstg->kfg", weighted, x, precision=_PRECISION))
    # What is left of a square after the mean is taken off: next to nothing where there is one episode to fit.
    smallest = 1e-4 * jnp.diagonal(gram, axis1=1, axis2=2)
    gram -= jnp.einsum("ktf,ktg->kfg", sum_x, mean_x, precision=_PRECISION)
    moment = elsewhere(jnp.einsum("kstf,kst->kf", weighted, y, precision=_PRECISION))
    moment -= jnp.einsum("ktf,kt->kf", sum_x, mean_y, precision=_PRECISION)
    coefficients = jax.vmap(_ridge)(gram, moment, smallest)  # [K, F]

    mean_x = jnp.take_along_axis(mean_x + common_x[None], time[..., None], axis=1) - common_x[None]
    mean_y = jnp.take_along_axis(mean_y + common_y[None], time, axis=1)
    # Of each fold the mean over all steps of the others, and what their means by time step add to it.
    steps = elsewhere(weight.sum((1, 2)))
    level = elsewhere((weight * (y + common_y[None, None])).sum((1, 2))) / jnp.where(steps > 0, steps, 1)
    level = jnp.broadcast_to(level[:, None, None], y.shape)
    by_time = mean_y[:, None] - level
    by_obs = jnp.einsum("kstf,kf->kst", x - mean_x[:, None], coefficients, precision=_PRECISION)
    values = _shrunk(jnp.stack([level, by_time, by_obs]), y + common_y[None, None], weight)  # [K, size, T]
    return values.swapaxes(0, 1).reshape(-1, values.shape[-1])[:num_episodes]


def _shrunk(parts: Array, target: Array, weight: Array) -> Array:
    """Predictions [P, ...], each times the factor in [0, 1] with which their sum fits a target [...] best."""
    products = jnp.einsum("p...,q...,...->pq", parts, parts, weight, precision=_PRECISION)
    aims = jnp.einsum("p...,...,...->p", parts, target, weight, precision=_PRECISION)
    factors = jnp.zeros_like(aims)
    for _ in range(8):  # coordinate descent: no step makes the fit worse, and the first starts at none
        for part in range(len(parts)):
            square = products[part, part]
            rest = aims[part] - products[part] @ factors + square * factors[part]
            factor = jnp.clip(rest / jnp.where(square > 0, square, 1), 0, 1)
            factors = factors.at[part].set(factor)
    return jnp.einsum("p,p...->...", factors, parts, precision=_PRECISION)


def _ridge(gram: Array, moment: Array, smallest: Array, regularization: float = 1e-2) -> Array:
    """Coefficients [F] of ridge regression; 0 for a feature whose square is not above the smallest.

    `regularization` is added to the diagonal once each feature is scaled to unit norm, so that it means the
    same for every scale of features and every number of steps.
    """
    square = jnp.diagonal(gram)
    varies = square > smallest
    scale = jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, square, 1)), 0)
    scaled = gram * scale[:, None] * scale[None] + regularization * jnp.eye(len(scale), dtype=gram.dtype)
    # Not by LAPACK: its factorizations of a batch of matrices wait for the threads that run them, and with
    # several devices on a CPU for ever. Rounding may leave a matrix that is not positive definite: then this
    # ends early.
    solution, _ = conjugate_gradient(
        lambda x: jnp.matmul(scaled, x, precision=_PRECISION), scale * moment, _MOST_ITERATIONS
    )
    return scale * solution


def _polynomial(returns: Array, mask: Array) -> Array:
    """A cubic polynomial in time, fitted to the returns [T] of one episode."""
    length = jnp.maximum((mask > 0).sum(), 1).astype(returns.dtype)
    x = 2 * (jnp.arange(len(returns), dtype=returns.dtype) + 0.5) / length - 1
    # Legendre's, because powers of time are almost collinear.
    features = jnp.stack([jnp.ones_like(x), x, 1.5 * x**2 - 0.5, 2.5 * x**3 - 1.5 * x], axis=-1)
    weighted = features * mask[:, None]
    gram = jnp.matmul(weighted.T, features, precision=_PRECISION)
    moment = jnp.matmul(returns, weighted, precision=_PRECISION)
    coefficients = _ridge(gram, moment, jnp.zeros_like(moment), 1e-5)
    return jnp.matmul(features, coefficients, precision=_PRECISION)
