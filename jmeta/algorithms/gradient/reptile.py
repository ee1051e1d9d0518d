"""Reptile: moves toward the adapted parameters (Nichol, Achiam and Schulman, 2018, arXiv 1803.02999)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmeta import parallel
from jmeta.algorithms.gradient import outer
from jmeta.checks import boolean
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import Array, Key, MetaAlgorithm, MetaState, Metrics, Params, Policy, Task, TaskFamily


@hyperparameters_of(outer.assemble, without=("first_order", "differentiation", "outer_epochs"))
def reptile(
    family: TaskFamily, policy: Policy, *, serial: bool = False, num_inner_steps: int = 3, **others: Any
) -> MetaAlgorithm:
    """Adapts by K steps and moves the initial parameters toward the mean of the adapted ones.

    What the outer optimiser descends is the mean over the tasks of (initial - adapted): with
    `sgd(learning_rate=e)` that is the paper's step of size e (algorithm 2); Adam may take the difference for
    a gradient, as the paper says. It is no derivative through the inner steps; with one step this is joint
    training. The episodes after adaptation are for the metrics alone; `outer_surrogate` gives `loss`.

    Args:
      serial: update after every task (algorithm 1) instead of once on the mean over the meta-batch. One task
        at a time leaves nothing for several devices to share.

    Raises:
      ValueError: an argument is out of its range.
    """
    boolean(serial=serial)
    parts = outer.assemble(family, policy, num_inner_steps=num_inner_steps, **others)

    def gradient(params: Params, data: outer.Collected) -> tuple[Array, Params]:
        return parts.learner.loss(data.adapted, data.post), jax.tree.map(jnp.subtract, params, data.adapted)

    batched = outer.algorithm(parts, gradient=gradient)
    if not serial:
        return batched

    def update(state: MetaState, tasks: Task, key: Key) -> tuple[MetaState, Metrics]:
        turns = jax.tree.map(lambda x: x[:, None], tasks)
        keys = parallel.task_keys(key, jax.tree.leaves(tasks)[0].shape[0])

        def one_turn(state: MetaState, turn: tuple[Task, Key]) -> tuple[MetaState, Metrics]:
            after, metrics = batched.update(state, *turn)
            return after._replace(step=state.step), metrics  # all turns belong to one iteration

        after, metrics = jax.lax.scan(one_turn, state, (turns, keys))
        kept = metrics["tasks_lost"] == 0
        means = {name: jnp.where(kept, x, 0).sum() / kept.sum() for name, x in metrics.items()}
        counts = {name: metrics[name].sum() for name in ("env_steps", "tasks_lost")}
        counts |= {name: metrics[name][-1] for name in ("skipped", "rejected") if name in metrics}  # so far
        return after._replace(step=state.step + 1), means | counts

    return batched._replace(update=update)
