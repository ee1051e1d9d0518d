"""SNAIL: temporal convolutions and causal attention (Mishra et al., 2018, arXiv 1707.03141)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.policies.attention import causal_attention, remember
from jmeta.policies.layers import Dense, dense
from jmeta.policies.sequence import Core, at_least_one, sequence_policy
from jmeta.types import Array, EnvSpec, Key, Policy


class Attention(NamedTuple):
    """Keys, queries and values of an attention block."""

    query: Dense
    key: Dense
    value: Dense


class SnailParams(NamedTuple):
    """Embedding, two temporal-convolution blocks and an attention block, as in the paper's bandits."""

    embed: Dense
    convolutions: tuple[tuple[Dense, ...], ...]  # a block's dense blocks, each [2 C, 2 F]: filter and gate
    attention: Attention


class SnailCarry(NamedTuple):
    """The inputs of every layer so far; rows later than `time` are not read."""

    time: Array  # [] int32
    convolutions: tuple[tuple[Array, ...], ...]  # inputs [L, C] of each dense block
    keys: Array  # [L, K]
    values: Array  # [L, V]


def snail(
    spec: EnvSpec, *, size: int = 32, max_steps: int | None = None, separate_critic: bool = False
) -> Policy:
    """Two blocks of dilated causal convolutions and one of attention, with a policy and a critic head.

    The arrangement of section 4.3.1: Dense(size), TC(L, size), TC(L, size), Attention(size, size). A block
    TC(L, F) has ceil(log2 L) dense blocks of kernel 2, dilations 1, 2, 4, ... and gated activations, each
    appended to its input. One step costs a kernel of every convolution and a read of the memory, as the
    paper's does; `unroll` is parallel over time.

    Args:
      spec: the environment's.
      size: F, filters, and sizes of the embedding, the keys and the values.
      max_steps: L, steps of the longest trial; None takes the family's trials.
      separate_critic: whether the critic has a model of its own.

    Returns:
      The policy; its carry is a `SnailCarry`.

    Raises:
      ValueError: an argument is out of its range.
    """
    max_steps = spec.horizon * spec.trial_episodes if max_steps is None else max_steps
    at_least_one(size=size, max_steps=max_steps)
    dilations = [2**i for i in range(max(1, math.ceil(math.log2(max_steps))))]
    widths = [[size * (1 + block * len(dilations) + i) for i in range(len(dilations))] for block in range(2)]
    width = widths[-1][-1] + size  # of what attention reads

    def init(key: Key, num_inputs: int) -> SnailParams:
        key_embed, key_convolutions, *keys = jax.random.split(key, 5)
        block_keys = jax.random.split(key_convolutions, (2, len(dilations)))
        convolutions = tuple(
            tuple(dense(key, 2 * inputs, 2 * size) for key, inputs in zip(keys, block, strict=True))
            for keys, block in zip(block_keys, widths, strict=True)
        )
        attention = Attention(*(dense(key, width, size) for key in keys))
        return SnailParams(dense(key_embed, num_inputs, size), convolutions, attention)

    def initial_carry(num_inputs: int) -> SnailCarry:
        del num_inputs
        convolutions = tuple(tuple(jnp.zeros((max_steps, inputs)) for inputs in block) for block in widths)
        memory = jnp.zeros((max_steps, size))
        return SnailCarry(jnp.zeros((), jnp.int32), convolutions, memory, memory)

    def unroll(params: SnailParams, carry: SnailCarry, x: Array) -> tuple[SnailCarry, Array]:
        rows = carry.time + jnp.arange(x.shape[0])
        x = jax.nn.relu(params.embed(x))
        caches = []
        for block, block_caches in zip(params.convolutions, carry.convolutions, strict=True):
            new = []
            for layer, cache, dilation in zip(block, block_caches, dilations, strict=True):
                cache = remember(cache, x, carry.time)
                new.append(cache)
                earlier = cache[jnp.maximum(rows - dilation, 0)] * (rows >= dilation)[:, None]
                kernel, gate = jnp.split(layer(jnp.concatenate([earlier, x], axis=-1)), 2, axis=-1)
                x = jnp.concatenate([x, jnp.tanh(kernel) * jax.nn.sigmoid(gate)], axis=-1)
            caches.append(tuple(new))
        keys = remember(carry.keys, params.attention.key(x), carry.time)
        values = remember(carry.values, params.attention.value(x), carry.time)
        read = causal_attention(params.attention.query(x), keys, values, carry.time)
        carry = SnailCarry(carry.time + x.shape[0], tuple(caches), keys, values)
        return carry, jnp.concatenate([x, read], axis=-1)

    def step(params: SnailParams, carry: SnailCarry, x: Array) -> tuple[SnailCarry, Array]:
        carry, y = unroll(params, carry, x[None])
        return carry, y[0]

    core = Core(init, initial_carry, step, unroll, lambda num_inputs: width + size, max_steps)
    return sequence_policy(spec, core, separate_critic=separate_critic)
