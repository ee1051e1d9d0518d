"""MAML: meta-learned initial parameters (Finn, Abbeel and Levine, 2017, arXiv 1703.03400)."""

from __future__ import annotations

from typing import Any

from jmeta.algorithms.gradient import outer
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import MetaAlgorithm, Policy, TaskFamily


@hyperparameters_of(outer.assemble)
def maml(family: TaskFamily, policy: Policy, **others: Any) -> MetaAlgorithm:
    """Meta-learns the parameters from which a few steps of adaptation solve a task.

    The meta-gradient goes through every inner step (second order; `first_order` is FOMAML, section 5.2). That
    the pre-adaptation samples depend on the parameters too is in the Hessian of the surrogates "dice" and
    "loaded-dice", for many episodes, and not in the others' (the term for any number is `e_maml`'s).
    Which terms of the Hessian survive depends on `surrogate`. The paper's outer update is TRPO on one batch:
    `optimizer=trpo()`; with Adam, `outer_epochs > 1` and `outer_surrogate="ppo-clip"` repeat updates on the
    same batch. The meta-gradient is of equation 1 (supervised) and algorithm 3 (policy gradients).

    Returns:
      The algorithm. Metrics beside the standard ones: `loss`, `gradient_norm`, `kl` (old to new adapted
      policies, after the update) and `skipped` (updates so far that were not finite, or were taken back).

    Raises:
      ValueError: an argument is out of its range.
    """
    return outer.algorithm(outer.assemble(family, policy, **others))
