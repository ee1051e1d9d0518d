"""Meta-gradients of the inner hyperparameters (Xu, van Hasselt and Silver, 2018, arXiv 1805.09801)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jmeta.algorithms.gradient import outer
from jmeta.checks import in_interval, positive
from jmeta.conformance import conform
from jmeta.hyperparameters import hyperparameters_of
from jmeta.inner import policy_gradient as pg
from jmeta.policies.extended import ExtendedParams, extended
from jmeta.types import Adapted, Array, Key, MetaAlgorithm, Metrics, Params, Policy, PyTree, Task, TaskFamily


class Hyperparameters(NamedTuple):
    """Hyperparameters of an inner step, scalars [], each bounded; or, unbounded, what is learned of them."""

    discount: Array  # in (0, 1)
    gae_lambda: Array  # in (0, 1)
    entropy_weight: Array  # positive
    step_size: Array  # positive


@hyperparameters_of(outer.assemble, without=("inner", "surrogate", "inner_optimizer", "first_order"))
def meta_gradient(
    family: TaskFamily,
    policy: Policy,
    *,
    entropy_weight: float = 0.01,
    inner_learning_rate: float = 0.1,
    num_episodes: int = 10,
    discount: float = 0.99,
    gae_lambda: float = 0.95,
    baseline: str = "linear",
    normalize_advantages: bool = True,
    **others: Any,
) -> MetaAlgorithm:
    """MAML that learns, beside the initial parameters, the hyperparameters of its inner steps.

    Discount, GAE λ, entropy weight and step size follow the outer gradient (eqs. 4 to 6; Zahavy et al.,
    2020, arXiv 2002.12928, for more of them than the discount and λ). A logistic function keeps the first two
    in (0, 1), an exponential the others positive. The outer objective keeps the initial discount and λ:
    it must not be what it judges. An inner step ascends the likelihood ratio times the advantage plus the
    weighted entropy. They are logged under their names.

    Args:
      entropy_weight: initial weight of the policy's entropy in the inner objective, positive.
      inner_learning_rate: initial step size, positive.
      discount: of the outer objective, and initially of the inner one, in (0, 1).
      gae_lambda: likewise.
      baseline: "linear" (refitted for every task and step) or "none".

    Raises:
      ValueError: an argument is out of its range.
    """
    in_interval("(0, 1)", discount=discount, gae_lambda=gae_lambda)
    positive(entropy_weight=entropy_weight, inner_learning_rate=inner_learning_rate)
    if baseline == "value":
        raise ValueError("baseline must be linear or none, got 'value': a critic has one discount of its own")
    family = conform(family)
    estimation: dict[str, Any] = {
        "num_episodes": num_episodes,
        "baseline": baseline,
        "normalize_advantages": normalize_advantages,
    }

    def initial(params: Params) -> Hyperparameters:
        del params
        logits = (jnp.log(x / (1 - x)) for x in (discount, gae_lambda))
        logs = (jnp.log(x) for x in (entropy_weight, inner_learning_rate))
        return Hyperparameters(*(jnp.asarray(x, float) for x in (*logits, *logs)))

    def collect(adapted: Adapted, task: Task, key: Key) -> PyTree:
        current = _bounded(adapted.params.extra)
        return pg.collect(
            family,
            carrier,
            adapted,
            task,
            key,
            discount=current.discount,
            gae_lambda=current.gae_lambda,
            **estimation,
        )

    def loss(params: ExtendedParams, batch: PyTree) -> Array:
        current = _bounded(params.extra)
        advantage, _ = pg.estimate_advantages(
            batch,
            discount=current.discount,
            gae_lambda=current.gae_lambda,
            normalize_advantages=normalize_advantages,
        )
        batch = pg.weigh_by_length(batch, family.env.spec.terminates)
        output = pg.unroll(carrier, params, batch.inputs)
        log_prob = jax.vmap(jax.vmap(policy.distribution.log_prob))(output.distribution, batch.action)
        entropy = jax.vmap(jax.vmap(policy.distribution.entropy))(output.distribution)
        ratio = jnp.exp(jnp.where(batch.mask > 0, log_prob - batch.log_prob, 0.0))
        objective = batch.mask * (ratio * advantage + current.entropy_weight * entropy)
        return -objective.sum() / batch.mask.size

    def update(
        gradients: ExtendedParams, state: PyTree, params: ExtendedParams | None = None
    ) -> tuple[ExtendedParams, PyTree]:
        assert params is not None
        step_size = _bounded(params.extra).step_size
        moved = jax.tree.map(lambda gradient: -step_size * gradient, gradients.policy)
        return ExtendedParams(moved, jax.tree.map(jnp.zeros_like, params.extra)), state

    def report(params: ExtendedParams) -> Metrics:
        return _bounded(params.extra)._asdict()

    carrier = extended(policy, initial)
    rule = optax.GradientTransformation(lambda params: (), update)
    parts = outer.assemble(
        family,
        carrier,
        inner_learning_rate=inner_learning_rate,
        inner_optimizer=lambda rate: rule,
        discount=discount,
        gae_lambda=gae_lambda,
        **estimation,
        **others,
    )
    # Its gradient is taken of the hyperparameters too, though a step does not move them: so its Jacobian is
    # symmetric, and holds what the outer gradient needs.
    learner = parts.learner._replace(collect=collect, gradient=jax.grad(loss))
    return outer.algorithm(parts._replace(inner=parts.make_inner(learner=learner)), report=report)


def _bounded(raw: Hyperparameters) -> Hyperparameters:
    return Hyperparameters(
        jax.nn.sigmoid(raw.discount),
        jax.nn.sigmoid(raw.gae_lambda),
        jnp.exp(raw.entropy_weight),
        jnp.exp(raw.step_size),
    )
