"""A gated recurrent unit (Cho et al., 2014, arXiv 1406.1078): the policy of RL² (Duan et al., 2016)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.hyperparameters import hyperparameters_of
from jmeta.policies.layers import Dense, dense, orthogonal
from jmeta.policies.sequence import Core, sequence_policy
from jmeta.types import Array, EnvSpec, Key, Policy


class GRUParams(NamedTuple):
    """The gates reset and update, then the candidate, side by side."""

    inputs: Dense  # [D, 3 H]
    recurrent: Array  # [H, 3 H]
    candidate_bias: Array  # [H], within the reset gate


@hyperparameters_of(sequence_policy, without=("core",))
def gru(
    spec: EnvSpec,
    *,
    size: int = 64,
    memory_span: int = 1,
    **others: Any,
) -> Policy:
    """A gated recurrent unit with a policy and a critic head.

    The reset gate r scales the state h after its product, r (U h + b), as in cuDNN and PyTorch; the paper's
    scales it before, U (r h).

    Args:
      spec: the environment's.
      size: H, units.
      memory_span: steps, for what must be known long after it was seen: at first the units keep what they
        hold for times from a step to so many, evenly on a logarithmic scale (after Tallec & Ollivier, 2018,
        arXiv 1804.11188, whose times are uniform). 1 leaves all gates half open.

    Returns:
      The policy; its carry is the hidden state [H], 0 at first.

    Raises:
      ValueError: an argument is out of its range.
    """
    at_least(1, size=size, memory_span=memory_span)

    def init(key: Key, num_inputs: int) -> GRUParams:
        key_inputs, *keys = jax.random.split(key, 4)
        recurrent = jnp.concatenate([orthogonal(key, (size, size)) for key in keys], axis=1)
        inputs = dense(key_inputs, num_inputs, 3 * size)
        # A gate of bias log(τ) keeps all but the share 1 / (1 + τ) a step.
        keep = jnp.linspace(0.0, math.log(memory_span), size)
        inputs = inputs._replace(bias=inputs.bias.at[size : 2 * size].set(keep))
        return GRUParams(inputs, recurrent, jnp.zeros(size, float))

    def advance(params: GRUParams, hidden: Array, projected: list[Array]) -> tuple[Array, Array]:
        """One step [H] from the three parts [H] of the projected input."""
        recurrent = jnp.split(hidden @ params.recurrent, 3)
        reset, update = (jax.nn.sigmoid(p + r) for p, r in zip(projected[:2], recurrent[:2], strict=True))
        candidate = jnp.tanh(projected[2] + reset * (recurrent[2] + params.candidate_bias))
        hidden = (1 - update) * candidate + update * hidden
        return hidden, hidden

    def step(params: GRUParams, hidden: Array, x: Array) -> tuple[Array, Array]:
        return advance(params, hidden, jnp.split(params.inputs(x), 3))

    def unroll(params: GRUParams, hidden: Array, x: Array) -> tuple[Array, Array]:
        # All inputs are projected at once: only the recurrent product must wait for its turn. They are split
        # before the loop: on a CPU, slices of what a loop reads take six times as long.
        projected = jnp.split(params.inputs(x), 3, axis=-1)
        return jax.lax.scan(lambda h, p: advance(params, h, p), hidden, projected)

    core = Core(init, lambda: jnp.zeros(size), step, unroll, size)
    return sequence_policy(spec, core, **others)
