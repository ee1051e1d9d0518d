"""Action distributions: bundles of pure functions of unbatched parameters; results are summed over A.

Event shapes: `DiagonalNormal` and `TanhNormal` actions are [A] floats with `NormalParams`; `Categorical`
actions are [] int32 and its parameters are bare logits [n], -inf for actions that are closed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.types import Array, Continuous, Discrete, Distribution, Key

_LOG_2PI = math.log(2 * math.pi)


class NormalParams(NamedTuple):
    """Parameters of `DiagonalNormal`, and of `TanhNormal` before the squashing."""

    mean: Array  # [A]
    log_std: Array  # [A], natural logarithm


def _normal_sample(key: Key, params: NormalParams) -> Array:
    noise = jax.random.normal(key, params.mean.shape, params.mean.dtype)
    return params.mean + jnp.exp(params.log_std) * noise


def _normal_log_prob(params: NormalParams, action: Array) -> Array:
    standardized = (action - params.mean) * jnp.exp(-params.log_std)
    return -jnp.sum(0.5 * jnp.square(standardized) + params.log_std + 0.5 * _LOG_2PI, axis=-1)


def _normal_entropy(params: NormalParams) -> Array:
    return jnp.sum(params.log_std + 0.5 * (1 + _LOG_2PI), axis=-1)


def _normal_kl(p: NormalParams, q: NormalParams) -> Array:
    log_ratio = q.log_std - p.log_std
    squared_distance = jnp.square((p.mean - q.mean) * jnp.exp(-q.log_std))
    return jnp.sum(log_ratio + 0.5 * (jnp.exp(-2 * log_ratio) + squared_distance - 1), axis=-1)


DiagonalNormal = Distribution(
    sample=_normal_sample,
    log_prob=_normal_log_prob,
    entropy=_normal_entropy,
    kl=_normal_kl,
    mode=lambda params: params.mean,
)


# The largest |action| whose inverse tanh is safely finite in float32.
_MAX_SQUASHED = 1 - 1e-6
# Gauss-Hermite nodes for expectations under a standard normal.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / math.sqrt(2 * math.pi)


def _log_tanh_slope(x: Array) -> Array:
    """log(1 - tanh(x)^2), without cancellation for large |x|."""
    return 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))


def _tanh_log_prob(params: NormalParams, action: Array) -> Array:
    # An action that rounded to +-1 is read as the largest representable one inside the interval.
    pre_tanh = jnp.arctanh(jnp.clip(action, -_MAX_SQUASHED, _MAX_SQUASHED))
    return _normal_log_prob(params, pre_tanh) - jnp.sum(_log_tanh_slope(pre_tanh), axis=-1)


def _tanh_entropy(params: NormalParams) -> Array:
    # H(tanh(x)) = H(x) + E[log tanh'(x)]. The expectation has no closed form, but it is one smooth integral
    # a dimension, so quadrature gives it without a key (absolute error below 0.01 a dimension for std <= 3).
    def along_last(x: np.ndarray) -> Array:
        return jnp.asarray(x, params.mean.dtype).reshape((1,) * params.mean.ndim + (-1,))

    nodes = params.mean[..., None] + jnp.exp(params.log_std)[..., None] * along_last(_NODES)
    expected_slope = jnp.sum(_log_tanh_slope(nodes) * along_last(_WEIGHTS), axis=-1)
    return _normal_entropy(params) + jnp.sum(expected_slope, axis=-1)


# tanh of a DiagonalNormal, on (-1, 1). KL is that of the normals: a bijection leaves it unchanged.
# `mode` is the squashed mean, as in Haarnoja et al. 2018: the median, and not the density's maximum.
TanhNormal = Distribution(
    sample=lambda key, params: jnp.tanh(_normal_sample(key, params)),
    log_prob=_tanh_log_prob,
    entropy=_tanh_entropy,
    kl=_normal_kl,
    mode=lambda params: jnp.tanh(params.mean),
)


_CLOSED = -1e4  # relative to the greatest logit; its exponential is exactly 0 in every float type


def _is_closed(logits: Array) -> Array:
    """Whether each action is closed. Where all are, none counts as closed, so that results are NaN."""
    return jnp.isneginf(logits) & ~jnp.isneginf(logits.max(-1, keepdims=True))


def _log_softmax(logits: Array) -> Array:
    """`jax.nn.log_softmax` with a finite number for closed actions, so that all derivatives are finite."""
    relative = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    relative = jnp.where(_is_closed(logits), _CLOSED, relative)
    return relative - jnp.log(jnp.exp(relative).sum(-1, keepdims=True))


def _categorical_sample(key: Key, logits: Array) -> Array:
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _categorical_log_prob(logits: Array, action: Array) -> Array:
    log_probs = jnp.where(_is_closed(logits), -jnp.inf, _log_softmax(logits))
    # A select instead of a gather: its gradient is no scatter, which the CPU runs serially.
    chosen = jnp.arange(logits.shape[-1]) == action[..., None]
    return jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)


def _categorical_entropy(logits: Array) -> Array:
    log_probs = _log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def _categorical_kl(p: Array, q: Array) -> Array:
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    probs = jnp.exp(log_p)
    infinite = _is_closed(q) & (probs > 0)
    return jnp.sum(jnp.where(infinite, jnp.inf, probs * (log_p - log_q)), axis=-1)


# An action with a logit of -inf is closed: it is never sampled, its log-probability is -inf, and it adds
# nothing to the entropy or to a divergence. KL(p || q) is inf where q closes an action that p plays, as by
# definition. Derivatives with respect to a logit of -inf are 0. Where every action is closed there is no
# distribution, and results are NaN.
Categorical = Distribution(
    sample=_categorical_sample,
    log_prob=_categorical_log_prob,
    entropy=_categorical_entropy,
    kl=_categorical_kl,
    mode=lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32),
)


def for_action(action: Continuous | Discrete) -> Distribution:
    """The default distribution on an action space: `DiagonalNormal` or `Categorical`.

    Args:
      action: the action space.

    Raises:
      ValueError: the action space is neither `Continuous` nor `Discrete`.
    """
    match action:
        case Continuous():
            return DiagonalNormal
        case Discrete():
            return Categorical
    raise ValueError(f"action is {action!r}; must be Continuous or Discrete.")
