"""CAVIA: adapts a context vector alone (Zintgraf et al., 2019, arXiv 1810.03642)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jmeta.algorithms.gradient import outer
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import MetaAlgorithm, Params, Policy, TaskFamily


@hyperparameters_of(outer.assemble)
def cavia(
    family: TaskFamily,
    policy: Policy,
    *,
    inner_optimizer: Callable[[float], optax.GradientTransformation],
    **others: Any,
) -> MetaAlgorithm:
    """MAML whose inner steps change a vector that the network reads; the outer update learns the network.

    The context is 0 before the first step of every task (algorithm 2); it is no meta-parameter. It needs a
    policy with one, `mlp(..., context_size=8)`. Everything else is `maml`'s.

    Raises:
      ValueError: an argument is out of its range, or the policy has no context.
    """
    parts = outer.assemble(
        family,
        policy,
        inner_optimizer=lambda rate: outer.only(policy, "context", inner_optimizer(rate)),
        **others,
    )

    def start(params: Params) -> Params:
        return jax.tree.map(
            lambda leaf, context: jnp.zeros_like(leaf) if context else leaf,
            params,
            policy.parts["context"](params),
        )

    return outer.algorithm(parts._replace(inner=parts.make_inner(start=start)))
