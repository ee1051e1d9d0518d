"""Uniform distributions with a gap: tasks are held out of the gap, or in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.types import Array, Key

_SECTOR = (0.0, jnp.pi / 4)  # headings held out, in radians


def uniform_outside(key: Key, low: float, high: float, gap: tuple[float, float]) -> Array:
    """Samples [] uniformly from `[low, high)` without `gap = (start, end)`, which lies within it."""
    start, end = gap
    value = jax.random.uniform(key, minval=low, maxval=high - (end - start))
    return jnp.where(value < start, value, value + (end - start))


def uniform_inside(key: Key, gap: tuple[float, float]) -> Array:
    """Samples [] uniformly from `gap = (start, end)`."""
    return jax.random.uniform(key, minval=gap[0], maxval=gap[1])


def heading(key: Key) -> Array:
    """Samples a unit vector [2] at a uniform angle outside [0, pi/4)."""
    return unit_vector(uniform_outside(key, 0.0, 2 * jnp.pi, _SECTOR))


def heading_heldout(key: Key) -> Array:
    """Samples a unit vector [2] at a uniform angle in [0, pi/4)."""
    return unit_vector(uniform_inside(key, _SECTOR))


def unit_vector(angle: Array) -> Array:
    """Turns an angle [] in radians into a vector [2]."""
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])
