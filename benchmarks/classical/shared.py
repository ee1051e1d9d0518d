"""What the strategies of bandits and of decision processes share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.types import Array, EnvSpec, Key


def check_never_ends(spec: EnvSpec) -> None:
    """Raises ValueError if an episode may end before the horizon: no strategy here would notice."""
    if spec.terminates:
        raise ValueError("classical strategies are for tasks whose episodes never end early")


def best(key: Key, scores: Array) -> Array:
    """Index [] of the highest of the scores [A], ties broken at random."""
    noise = jax.random.uniform(key, scores.shape)
    return jnp.argmax(jnp.where(scores == scores.max(), noise, -1.0))


def gamma(key: Key, alpha: Array) -> Array:
    """Samples of gamma distributions of scale 1, by rejection (Marsaglia and Tsang, 2000).

    The whole array is drawn again until every element was accepted once: on a CPU many times as fast as
    `jax.random.gamma`, whose elements have loops of their own.

    Args:
      key: consumed.
      alpha: [...] shapes, each at least 1.

    Returns:
      Samples [...].
    """
    d = alpha.ravel() - 1 / 3  # flat: loops over a short last axis would take several times as long
    c = 1 / jnp.sqrt(9 * d)

    def draw(loop: tuple[Key, Array, Array]) -> tuple[Key, Array, Array]:
        key, sample, accepted = loop
        key, key_normal, key_uniform = jax.random.split(key, 3)
        x = jax.random.normal(key_normal, d.shape)
        uniform = jax.random.uniform(key_uniform, d.shape)
        v = (1 + c * x) ** 3
        # Where v is not positive its logarithm is NaN or infinite, and the comparison false.
        good = jnp.log(uniform) < 0.5 * x**2 + d * (1 - v + jnp.log(v))
        return key, jnp.where(accepted, sample, d * v), accepted | good

    start = (key, jnp.zeros_like(d), jnp.zeros(d.shape, bool))
    _, sample, _ = jax.lax.while_loop(lambda loop: ~loop[2].all(), draw, start)
    return sample.reshape(alpha.shape)


def beta(key: Key, a: Array, b: Array) -> Array:
    """Samples [...] of beta distributions; `a` and `b` [...] are at least 1."""
    first, second = gamma(key, jnp.stack([a, b]))
    return first / (first + second)


def dirichlet(key: Key, alpha: Array) -> Array:
    """Samples [..., S] of Dirichlet distributions; `alpha` [..., S] is at least 1."""
    weights = gamma(key, alpha)
    return weights / weights.sum(-1, keepdims=True)
