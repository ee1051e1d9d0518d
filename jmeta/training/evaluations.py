"""Evaluations while a run trains."""

from __future__ import annotations

from typing import Any

import jax

from jmeta.compiled import once
from jmeta.conformance import conform
from jmeta.evaluation import evaluate
from jmeta.types import Key, MetaAlgorithm, Params, TaskFamily

_APART = 2**31 - 2  # more than any number that training folds into a key, and not that of `jmeta evaluate`


def key_while_training(seed: int) -> Key:
    """The key of evaluations while a run of this seed trains.

    With it no task and no episode is one of training, nor, so that the best checkpoint is not chosen on its
    tasks, one of `evaluation.evaluation_key`.
    """
    return jax.random.fold_in(jax.random.key(seed), _APART)


def evaluation_record(
    algorithm: MetaAlgorithm, family: TaskFamily, params: Params, seed: int, iteration: int
) -> dict[str, Any]:
    """Evaluates parameters while training, always on the same tasks, which training does not draw.

    They are held-out tasks if the family has any, and otherwise fresh ones of the training distribution;
    `split` says which. There are as many adaptation steps as in training.

    Args:
      algorithm: any meta-learner.
      family: the tasks.
      params: meta-parameters, on the devices of the mesh that is set.
      seed: of the run.
      iteration: meta-iterations done.

    Returns:
      A record of evaluations.jsonl: returns after 0, 1, ... adaptation steps. The last of them, `return`,
      decides which checkpoint is the best.
    """
    heldout = family.sample_heldout is not family.sample
    key = key_while_training(seed)

    def count_steps() -> int:
        task = jax.eval_shape(conform(family).sample, key)
        return jax.eval_shape(
            lambda *arguments: algorithm.adapt(*arguments)[1], params, task, key
        ).returns.shape[0]

    steps = once(count_steps, algorithm.adapt, family.sample)
    result = evaluate(algorithm, family, params, key, num_steps=steps, heldout=heldout)
    return {
        "iteration": iteration,
        "return": result.return_mean[-1],
        "split": "heldout" if heldout else "train",
        "num_tasks": result.num_tasks,
        "tasks_lost": result.tasks_lost,
        "steps": result.steps,
        "return_mean": result.return_mean,
        "return_low": result.return_low,
        "return_high": result.return_high,
    }
