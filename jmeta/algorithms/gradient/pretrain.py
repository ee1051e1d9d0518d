"""Pre-training, a reference for meta-learning: one policy for all tasks, then fine-tuned to each."""

from __future__ import annotations

from typing import Any

from jmeta.algorithms.gradient.maml import maml
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import MetaAlgorithm, Policy, TaskFamily


@hyperparameters_of(maml, without=("first_order", "differentiation"))
def pretrain(
    family: TaskFamily, policy: Policy, *, num_inner_steps: int, num_episodes: int, **others: Any
) -> MetaAlgorithm:
    """Trains one policy on all tasks with no inner step, then fine-tunes it by MAML's inner loop.

    The "pretrained" baseline of Finn et al. (2017). An update samples as many episodes as MAML's does,
    `num_episodes` for each of the K inner steps and once more, so both learn from equal experience.

    The hyperparameters are `maml`'s; the inner ones take effect in adaptation only. Training adapts nothing,
    so its metric `return_after` is `return_before`.
    """
    inner = {"num_inner_steps": num_inner_steps, "num_episodes": num_episodes}
    tuned = maml(family, policy, first_order=True, **inner, **others)  # it is never differentiated
    num_episodes *= num_inner_steps + 1
    trained = maml(family, policy, num_inner_steps=0, num_episodes=num_episodes, **others)
    return trained._replace(adapt=tuned.adapt)
