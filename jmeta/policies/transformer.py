"""A causal transformer with a cache (Vaswani et al., 2017; pre-normalised, Xiong et al., 2020)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.policies.attention import causal_attention, remember
from jmeta.policies.layers import Dense, dense
from jmeta.policies.sequence import Core, longest_trial, sequence_policy, shared_options, step_of
from jmeta.types import Array, EnvSpec, Key, Policy


class Layer(NamedTuple):
    """One layer: attention, then a perceptron, each added to its input."""

    project: Dense  # [C, 3 C]: query, key, value
    attend: Dense  # [C, C]
    widen: Dense  # [C, 4 C]
    narrow: Dense  # [4 C, C]


class TransformerParams(NamedTuple):
    """Embedding of the input and of its position, and the layers."""

    embed: Dense  # [D, C]
    position: Array  # [L + 1, C]
    layers: tuple[Layer, ...]


class TransformerCarry(NamedTuple):
    """Keys and values of every layer so far; rows from `time` on are not read."""

    time: Array  # [] int32
    keys: tuple[Array, ...]  # [L + 1, C] of each layer: apart, so that a step writes them in place
    values: tuple[Array, ...]  # [L + 1, C] of each layer


@shared_options
def transformer(
    spec: EnvSpec,
    *,
    size: int = 32,
    num_layers: int = 2,
    num_heads: int = 2,
    max_steps: int | None = None,
    **others: Any,
) -> Policy:
    """A causal transformer with learned positions, and a policy and a critic head.

    Layers are normalised before attention and perceptron. One step reads the cache; `unroll` is parallel
    over time.

    Args:
      spec: the environment's.
      size: C, of the embedding.
      num_layers: layers.
      num_heads: of attention in a layer; they divide `size`.
      max_steps: L, steps of the longest trial; None takes the family's trials. The memory also holds the
        observation after the last step.

    Returns:
      The policy; its carry is a `TransformerCarry`.

    Raises:
      ValueError: an argument is out of its range.
    """
    max_steps = longest_trial(spec, max_steps)
    at_least(1, size=size, num_layers=num_layers, num_heads=num_heads, max_steps=max_steps)
    if size % num_heads:
        raise ValueError(f"num_heads must divide size={size}, got {num_heads}")

    def init(key: Key, num_inputs: int) -> TransformerParams:
        key_embed, key_position, *keys = jax.random.split(key, 2 + num_layers)

        def layer(key: Key) -> Layer:
            key_project, key_attend, key_widen, key_narrow = jax.random.split(key, 4)
            # What is added to the residual stream starts small, so that it does not grow with the layers.
            small = (2 * num_layers) ** -0.5
            return Layer(
                dense(key_project, size, 3 * size),
                dense(key_attend, size, size, small),
                dense(key_widen, size, 4 * size),
                dense(key_narrow, 4 * size, size, small),
            )

        position = 0.02 * jax.random.normal(key_position, (max_steps + 1, size))
        return TransformerParams(dense(key_embed, num_inputs, size), position, tuple(map(layer, keys)))

    def initial_carry() -> TransformerCarry:
        cache = (jnp.zeros((max_steps + 1, size)),) * num_layers
        return TransformerCarry(jnp.zeros((), jnp.int32), cache, cache)

    def heads(x: Array) -> Array:
        """[T, C] -> [heads, T, C / heads]."""
        return x.reshape(len(x), num_heads, -1).swapaxes(0, 1)

    def unroll(
        params: TransformerParams, carry: TransformerCarry, x: Array
    ) -> tuple[TransformerCarry, Array]:
        time, length = carry.time, x.shape[0]
        x = params.embed(x) + jax.lax.dynamic_slice_in_dim(params.position, time, length)
        all_keys, all_values = [], []
        for layer, keys, values in zip(params.layers, carry.keys, carry.values, strict=True):
            query, key, value = jnp.split(layer.project(_normalize(x)), 3, axis=-1)
            keys, values = remember(keys, key, time), remember(values, value, time)
            read = jax.vmap(causal_attention, (0, 0, 0, None))(heads(query), heads(keys), heads(values), time)
            x = x + layer.attend(read.swapaxes(0, 1).reshape(length, size))
            x = x + layer.narrow(jax.nn.gelu(layer.widen(_normalize(x))))
            all_keys.append(keys)
            all_values.append(values)
        return TransformerCarry(time + length, tuple(all_keys), tuple(all_values)), _normalize(x)

    core = Core(init, initial_carry, step_of(unroll), unroll, size, max_steps)
    return sequence_policy(spec, core, **others)


def _normalize(x: Array) -> Array:
    """Mean 0 and variance 1 over the last axis; the layers after it have the scale and the shift."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
