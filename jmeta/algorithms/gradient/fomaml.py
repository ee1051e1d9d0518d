"""FOMAML: first-order MAML (Finn, Abbeel and Levine, 2017, arXiv 1703.03400, section 5.2)."""

from __future__ import annotations

from typing import Any

from jmeta.algorithms.gradient import outer
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import MetaAlgorithm, Policy, TaskFamily


@hyperparameters_of(outer.assemble, without=("first_order", "differentiation"))
def fomaml(family: TaskFamily, policy: Policy, **others: Any) -> MetaAlgorithm:
    """MAML with the gradients of the inner steps held constant: `maml(..., first_order=True)`.

    The outer gradient is taken at the adapted parameters and applied to the initial ones. Cheaper, biased,
    and of lower variance, as no Hessian is estimated.

    Raises:
      ValueError: an argument is out of its range.
    """
    return outer.algorithm(outer.assemble(family, policy, first_order=True, **others))
