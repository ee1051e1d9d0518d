"""A memory-augmented network (Santoro et al., 2016, ICML, "Meta-learning with memory-augmented networks")."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.policies.layers import Dense, dense
from jmeta.policies.lstm import LSTMCarry, LSTMParams, advance, init_lstm, project, zero_carry
from jmeta.policies.sequence import Core, sequence_policy, shared_options
from jmeta.types import Array, EnvSpec, Key, Policy

_USAGE_DECAY = 0.95  # of usage, a step (the paper's γ)


class MannParams(NamedTuple):
    """The controller and what it emits."""

    controller: LSTMParams
    keys: Dense  # [H, heads W]
    gates: Dense  # [H, heads], interpolation of the write weights


class MannCarry(NamedTuple):
    """The controller's state and the memory."""

    controller: LSTMCarry
    memory: Array  # [slots, W]
    read_weights: Array  # [heads, slots]
    usage: Array  # [slots]
    read: Array  # [heads W], what was read last


@shared_options
def mann(
    spec: EnvSpec,
    *,
    size: int = 64,
    num_slots: int = 32,
    slot_size: int = 16,
    num_heads: int = 2,
    **others: Any,
) -> Policy:
    """An LSTM controller that reads a memory by content and writes to the least recently used slots.

    Reads compare keys with the slots by cosine (eqs. 2 to 4). A head writes its key where it read last or to
    the least used slot, as a gate says (eqs. 5 to 8); that slot is erased first. With n heads each has one of
    the n least used slots to itself, where eq. 8 offers all n to each.

    Args:
      spec: the environment's.
      size: H, units of the controller.
      num_slots: slots of the memory.
      slot_size: W, numbers in a slot.
      num_heads: read heads, each with a write head.

    Returns:
      The policy; its carry is a `MannCarry`.

    Raises:
      ValueError: an argument is out of its range.
    """
    at_least(1, size=size, num_slots=num_slots, slot_size=slot_size, num_heads=num_heads)
    if num_heads > num_slots:
        raise ValueError(f"num_heads must be at most num_slots={num_slots}, got {num_heads}")
    read_size = num_heads * slot_size

    def init(key: Key, num_inputs: int) -> MannParams:
        key_controller, key_keys, key_gates = jax.random.split(key, 3)
        return MannParams(
            init_lstm(key_controller, num_inputs + read_size, size),
            dense(key_keys, size, read_size),
            dense(key_gates, size, num_heads),
        )

    def initial_carry() -> MannCarry:
        return MannCarry(
            controller=zero_carry(size),
            memory=jnp.full((num_slots, slot_size), 1e-6),
            read_weights=jnp.zeros((num_heads, num_slots)),
            usage=jnp.zeros(num_slots),
            read=jnp.zeros(read_size),
        )

    def step(params: MannParams, carry: MannCarry, x: Array) -> tuple[MannCarry, Array]:
        projected = project(params.controller, jnp.concatenate([x, carry.read]))
        controller, hidden = advance(params.controller, carry.controller, projected)
        keys = jnp.tanh(params.keys(hidden)).reshape(num_heads, slot_size)
        gates = jax.nn.sigmoid(params.gates(hidden))[:, None]
        # The slots used least before this step, one for each head; their choice has no derivative.
        least = jax.lax.top_k(-jax.lax.stop_gradient(carry.usage), num_heads)[1]
        least_used = jax.nn.one_hot(least, num_slots)  # [heads, slots]
        write_weights = gates * carry.read_weights + (1 - gates) * least_used
        memory = carry.memory * (1 - least_used.sum(0))[:, None] + write_weights.T @ keys
        read_weights = jax.nn.softmax(_cosine(keys, memory), axis=-1)
        usage = _USAGE_DECAY * carry.usage + read_weights.sum(0) + write_weights.sum(0)
        read = (read_weights @ memory).ravel()
        return MannCarry(controller, memory, read_weights, usage, read), jnp.concatenate([hidden, read])

    def unroll(params: MannParams, carry: MannCarry, x: Array) -> tuple[MannCarry, Array]:
        return jax.lax.scan(lambda carry, x: step(params, carry, x), carry, x)

    core = Core(init, initial_carry, step, unroll, size + read_size)
    return sequence_policy(spec, core, **others)


def _cosine(keys: Array, memory: Array) -> Array:
    """Cosines [heads, slots] between keys [heads, W] and slots [slots, W]."""

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)

    return unit(keys) @ unit(memory).T
