"""Long short-term memory (Hochreiter and Schmidhuber, 1997; with forget gates, Gers et al., 2000)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.policies.layers import Dense, dense, orthogonal
from jmeta.policies.sequence import Core, sequence_policy, shared_options
from jmeta.types import Array, EnvSpec, Key, Policy


class LSTMParams(NamedTuple):
    """The gates input, forget and output, then the candidate, side by side."""

    inputs: Dense  # [D, 4 H]
    recurrent: Array  # [H, 4 H]


class LSTMCarry(NamedTuple):
    """State of the unit."""

    hidden: Array  # [H]
    cell: Array  # [H]


@shared_options
def lstm(spec: EnvSpec, *, size: int = 64, **others: Any) -> Policy:
    """Long short-term memory with a policy and a critic head.

    Args:
      spec: the environment's.
      size: H, units.

    Returns:
      The policy; its carry is an `LSTMCarry`, 0 at first.

    Raises:
      ValueError: an argument is out of its range.
    """
    at_least(1, size=size)
    core = Core(
        init=lambda key, num_inputs: init_lstm(key, num_inputs, size),
        initial_carry=lambda: zero_carry(size),
        step=lambda params, carry, x: advance(params, carry, project(params, x)),
        unroll=lambda params, carry, x: jax.lax.scan(
            lambda carry, projected: advance(params, carry, projected), carry, project(params, x)
        ),
        size=size,
    )
    return sequence_policy(spec, core, **others)


def init_lstm(key: Key, num_inputs: int, size: int) -> LSTMParams:
    """Orthogonal kernels; the forget gate starts open, its bias 1 (Jozefowicz et al., 2015)."""
    key_inputs, *keys = jax.random.split(key, 5)
    inputs = dense(key_inputs, num_inputs, 4 * size)
    recurrent = jnp.concatenate([orthogonal(key, (size, size)) for key in keys], axis=1)
    return LSTMParams(inputs._replace(bias=inputs.bias.at[size : 2 * size].set(1.0)), recurrent)


def zero_carry(size: int) -> LSTMCarry:
    """The state before the first step."""
    return LSTMCarry(jnp.zeros(size), jnp.zeros(size))


def project(params: LSTMParams, x: Array) -> list[Array]:
    """[..., D] -> the input's four parts [..., H] in the gates, apart as in `gru`."""
    return jnp.split(params.inputs(x), 4, axis=-1)


def advance(params: LSTMParams, carry: LSTMCarry, projected: list[Array]) -> tuple[LSTMCarry, Array]:
    """One step from the projected input: the new state and its hidden part."""
    recurrent = jnp.split(carry.hidden @ params.recurrent, 4)
    entry, forget, output, candidate = (p + r for p, r in zip(projected, recurrent, strict=True))
    cell = jax.nn.sigmoid(forget) * carry.cell + jax.nn.sigmoid(entry) * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(output) * jnp.tanh(cell)
    return LSTMCarry(hidden, cell), hidden
