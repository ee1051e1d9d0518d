"""Meta-SGD: a learned step size for every parameter (Li, Zhou, Chen and Li, 2017, arXiv 1707.09835)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jmeta.algorithms.gradient import outer
from jmeta.checks import at_least, boolean
from jmeta.hyperparameters import hyperparameters_of
from jmeta.policies.extended import ExtendedParams, extended
from jmeta.types import Array, MetaAlgorithm, Metrics, Params, Policy, PyTree, TaskFamily


@hyperparameters_of(outer.assemble, without=("inner_optimizer",))
def meta_sgd(
    family: TaskFamily,
    policy: Policy,
    *,
    per_step: bool = False,
    num_inner_steps: int,
    inner_learning_rate: float,
    **others: Any,
) -> MetaAlgorithm:
    """MAML that learns, beside the initial parameters, the step size of each: θ' = θ - α ∘ gradient (eq. 2).

    Step sizes may change their sign: a learned direction. They start at `inner_learning_rate`, where the
    paper draws them at random. An outer optimiser that decays weights would decay them too. Metrics beside
    `maml`'s: `step_size`, their mean.

    Args:
      per_step: a set of step sizes for every inner step, as in MAML++ (Antoniou et al., 2019, arXiv
        1810.09502, section 4); steps beyond the trained ones use the last set.

    Raises:
      ValueError: an argument is out of its range.
    """
    if others["inner"] == "q-learning":
        raise ValueError("inner of meta-sgd must not be 'q-learning': its parameters are more than a table")
    at_least(0, num_inner_steps=num_inner_steps)
    boolean(per_step=per_step)
    num_sets = max(num_inner_steps, 1)

    def step_sizes(params: Params) -> PyTree:
        sets = (num_sets,) if per_step else ()
        return jax.tree.map(lambda leaf: jnp.full((*sets, *leaf.shape), inner_learning_rate, float), params)

    def init(params: ExtendedParams) -> Array:
        del params
        return jnp.zeros((), jnp.int32)

    def update(
        gradients: ExtendedParams, step: Array, params: ExtendedParams | None = None
    ) -> tuple[ExtendedParams, Array]:
        assert params is not None
        rates = params.extra
        if per_step:
            rates = jax.tree.map(lambda rate: rate[jnp.minimum(step, num_sets - 1)], rates)
        moved = jax.tree.map(lambda rate, gradient: -rate * gradient, rates, gradients.policy)
        return ExtendedParams(moved, jax.tree.map(jnp.zeros_like, params.extra)), step + 1

    def report(params: ExtendedParams) -> Metrics:
        leaves = jax.tree.leaves(params.extra)
        return {"step_size": sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)}

    parts = outer.assemble(
        family,
        extended(policy, step_sizes),
        num_inner_steps=num_inner_steps,
        inner_learning_rate=inner_learning_rate,
        inner_optimizer=lambda rate: optax.GradientTransformation(init, update),
        **others,
    )
    return outer.algorithm(parts, report=report)
