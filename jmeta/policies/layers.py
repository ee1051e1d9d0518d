"""Affine layers and their initialisation, which the networks share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.types import Array, Key


class Dense(NamedTuple):
    """One affine layer."""

    kernel: Array  # [inputs, outputs]
    bias: Array  # [outputs]

    def __call__(self, x: Array) -> Array:
        """[..., inputs] -> [..., outputs]."""
        y = x @ self.kernel
        return y + jnp.broadcast_to(self.bias, y.shape)


def dense(key: Key, inputs: int, outputs: int, gain: float = 1.0) -> Dense:
    """An affine layer with an orthogonal kernel times `gain`, and no bias yet."""
    return Dense(gain * orthogonal(key, (inputs, outputs)), jnp.zeros(outputs, float))


def init_layers(key: Key, sizes: tuple[int, ...], *, last_gain: float) -> tuple[Dense, ...]:
    """The layers of a perceptron: orthogonal kernels of gain sqrt(2), the last one's `last_gain`."""
    gains = [math.sqrt(2)] * (len(sizes) - 2) + [last_gain]
    keys = jax.random.split(key, len(gains))
    return tuple(
        dense(key_layer, *shape, gain)
        for key_layer, gain, shape in zip(keys, gains, itertools.pairwise(sizes), strict=True)
    )


def apply_layers(layers: tuple[Dense, ...], x: Array, activation: Callable[[Array], Array]) -> Array:
    """A perceptron on x [..., inputs]; no activation follows its last layer."""
    for layer in layers[:-1]:
        x = activation(layer(x))
    return layers[-1](x)


def orthogonal(key: Key, shape: tuple[int, int]) -> Array:
    """A random matrix with orthonormal columns or rows, whichever are fewer.

    `jax.nn.initializers.orthogonal` by Gram-Schmidt: LAPACK's QR never returns when several host devices run
    it inside a loop (jaxlib 0.10.2), as they do where a fresh policy is drawn for every task.
    """
    normal = jax.random.normal(key, (max(shape), min(shape)))

    def append(index: Array, basis: Array) -> Array:
        column = normal[:, index]
        for _ in range(2):  # the second pass removes what rounding left
            column = column - basis @ (basis.T @ column)
        return basis.at[:, index].set(column / jnp.linalg.norm(column))

    basis = jax.lax.fori_loop(0, min(shape), append, jnp.zeros_like(normal))
    return basis if shape[0] >= shape[1] else basis.T
