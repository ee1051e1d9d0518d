"""Causal attention and memories of what came before, for models that are parallel over time."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jmeta.types import Array


def remember(cache: Array, new: Array, time: Array) -> Array:
    """Writes `new` [T, C] into `cache` [L, C] from row `time` on, which must leave room for it."""
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), (time, jnp.zeros_like(time)))


def causal_attention(query: Array, keys: Array, values: Array, time: Array) -> Array:
    """What each query reads from the rows up to its own (Vaswani et al., 2017, eq. 1).

    Args:
      query: [T, C], of the rows `time`, `time` + 1, ...
      keys: [L, C], of which rows later than a query's are not read.
      values: [L, V].
      time: [] int32.

    Returns:
      [T, V].
    """
    scores = query @ keys.T / math.sqrt(query.shape[-1])
    now = time + jnp.arange(query.shape[0])[:, None]
    scores = jnp.where(jnp.arange(keys.shape[0])[None] <= now, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ values
