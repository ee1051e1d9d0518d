"""Learning from scratch, a reference for meta-learning: a fresh policy for every task."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jmeta.algorithms.gradient.maml import maml
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import (
    Adapted,
    AdaptInfo,
    Array,
    Key,
    MetaAlgorithm,
    MetaState,
    Metrics,
    Params,
    Policy,
    Task,
    TaskFamily,
)


@hyperparameters_of(
    maml, without=("optimizer", "first_order", "differentiation", "outer_surrogate", "outer_epochs")
)
def scratch(family: TaskFamily, policy: Policy, **others: Any) -> MetaAlgorithm:
    """Adapts a freshly initialised policy by MAML's inner loop; nothing is meta-learned.

    The "random" baseline of Finn et al. (2017). `update` only measures: parameters never change.

    The hyperparameters are `maml`'s.
    """
    tuned = maml(family, policy, optimizer=optax.identity(), first_order=True, **others)

    def update(state: MetaState, tasks: Task, key: Key) -> tuple[MetaState, Metrics]:
        unchanged, metrics = tuned.update(state, tasks, key)
        return unchanged._replace(params=state.params), metrics

    def adapt(
        params: Params,
        task: Task,
        key: Key,
        num_steps: int | None = None,
        step_scale: float | Array | None = None,
    ) -> tuple[Adapted, AdaptInfo]:
        del params  # a fresh policy for every task
        key_init, key_adapt = jax.random.split(key)
        return tuned.adapt(policy.init(key_init), task, key_adapt, num_steps, step_scale)

    return MetaAlgorithm(tuned.init, update, adapt, policy)
