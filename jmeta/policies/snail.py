"""SNAIL: temporal convolutions and causal attention (Mishra et al., 2018, arXiv 1707.03141)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.policies.attention import causal_attention, remember
from jmeta.policies.layers import Dense, dense
from jmeta.policies.sequence import Core, longest_trial, sequence_policy, shared_options, step_of
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
    """The past of every layer; rows from `time` on are not read."""

    time: Array  # [] int32
    outputs: Array  # [L + 1, C] of the last dense block; the input of each is its first columns
    keys: Array  # [L + 1, K]
    values: Array  # [L + 1, V]


@shared_options
def snail(spec: EnvSpec, *, size: int = 32, max_steps: int | None = None, **others: Any) -> Policy:
    """Two blocks of dilated causal convolutions and one of attention, with a policy and a critic head.

    The arrangement of section 4.3.1: Dense(size), TC(L, size), TC(L, size), Attention(size, size). A block
    TC(L, F) has ceil(log2 L) dense blocks of kernel 2, dilations 1, 2, 4, ... (so that every lag is reached)
    and gated activations, each appended to its input. One step costs a kernel of every convolution and a
    read of the memory, as the paper's does; `unroll` is parallel over time.

    Args:
      spec: the environment's.
      size: F, filters, and sizes of the embedding, the keys and the values.
      max_steps: L, steps of the longest trial; None takes the family's trials. The memory also holds the
        observation after the last step.

    Returns:
      The policy; its carry is a `SnailCarry`.

    Raises:
      ValueError: an argument is out of its range.
    """
    max_steps = longest_trial(spec, max_steps)
    at_least(1, size=size, max_steps=max_steps)
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

    def initial_carry() -> SnailCarry:
        outputs, memory = jnp.zeros((max_steps + 1, width)), jnp.zeros((max_steps + 1, size))
        return SnailCarry(jnp.zeros((), jnp.int32), outputs, memory, memory)

    def unroll(params: SnailParams, carry: SnailCarry, x: Array) -> tuple[SnailCarry, Array]:
        time = carry.time
        x = jax.nn.relu(params.embed(x))
        for block in params.convolutions:
            for layer, dilation in zip(block, dilations, strict=True):
                earlier = _delay(x, carry.outputs, time, dilation)
                kernel, gate = jnp.split(layer(jnp.concatenate([earlier, x], axis=-1)), 2, axis=-1)
                x = jnp.concatenate([x, jnp.tanh(kernel) * jax.nn.sigmoid(gate)], axis=-1)
        # Also the columns that nothing reads again: they need every read above, so XLA can write in place.
        outputs = remember(carry.outputs, x, time)
        keys = remember(carry.keys, params.attention.key(x), time)
        values = remember(carry.values, params.attention.value(x), time)
        read = causal_attention(params.attention.query(x), keys, values, time)
        return SnailCarry(time + len(x), outputs, keys, values), jnp.concatenate([x, read], axis=-1)

    core = Core(init, initial_carry, step_of(unroll), unroll, width + size, max_steps)
    return sequence_policy(spec, core, **others)


def _delay(x: Array, cache: Array, time: Array, dilation: int) -> Array:
    """`x` [T, C], of the rows from `time` on, `dilation` rows earlier: first from `cache`, 0 before row 0."""
    rows = time - dilation + jnp.arange(min(len(x), dilation))
    past = jnp.where((rows >= 0)[:, None], cache[jnp.maximum(rows, 0), : x.shape[1]], 0)
    return jnp.concatenate([past, x[: len(x) - len(rows)]])
