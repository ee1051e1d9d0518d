"""ANIL: adapts the last layer alone (Raghu, Raghu, Bengio and Vinyals, 2020, arXiv 1909.09157)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from jmeta.algorithms.gradient import outer
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import MetaAlgorithm, Policy, TaskFamily


@hyperparameters_of(outer.assemble)
def anil(
    family: TaskFamily,
    policy: Policy,
    *,
    inner_optimizer: Callable[[float], optax.GradientTransformation],
    **others: Any,
) -> MetaAlgorithm:
    """MAML whose inner steps change the policy's head only; the outer update learns all of it (section 4.1).

    The critic's last layer belongs to the head. Everything else is `maml`'s.

    Raises:
      ValueError: an argument is out of its range, or the policy has no head.
    """
    parts = outer.assemble(
        family,
        policy,
        inner_optimizer=lambda rate: outer.only(policy, "head", inner_optimizer(rate)),
        **others,
    )
    return outer.algorithm(parts)
