"""The state of a run: where it begins, and how it is read from a run folder."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.runs.config import Training
from jmeta.runs.folder import Restored, RunFolder
from jmeta.types import Key, MetaAlgorithm, MetaState, PyTree


class TrainState(NamedTuple):
    """All that an exact resume needs."""

    meta: MetaState
    key: Key  # of the whole run; iteration i uses fold_in(key, i)


def initial_state(algorithm: MetaAlgorithm, seed: int) -> TrainState:
    """The state before the first iteration."""
    key_init, key_run = jax.random.split(jax.random.key(seed))
    return TrainState(jax.jit(algorithm.init)(key_init), key_run)


def begin(
    algorithm: MetaAlgorithm,
    settings: Training,
    *,
    run: RunFolder | None = None,
    state: MetaState | None = None,
) -> TrainState:
    """The state before the first iteration. It is saved in `run` where nothing else could repeat it.

    Args:
      algorithm: any meta-learner.
      settings: of the run.
      run: a run folder without a checkpoint.
      state: see `train`; copied.

    Raises:
      ValueError: `state` is not one of `algorithm`, or has done more iterations than it may.
    """
    if state is None:
        start = initial_state(algorithm, settings.seed)
    else:
        check_shapes("state", state, state_shapes(algorithm).meta)
        done, most = int(state.step), settings.iterations if run is None else 0
        if done > most:
            where = "iterations" if run is None else "iterations to start a run folder"
            raise ValueError(f"state must have done at most {most} {where}, got {done}")
        _, key = jax.random.split(jax.random.key(settings.seed))
        start = TrainState(jax.tree.map(jnp.copy, state), key)
    if run is not None and (state is not None or settings.iterations == 0):
        run.save_checkpoint(0, start)
    return start


def resume(run: RunFolder, algorithm: MetaAlgorithm, checkpoint_every: int) -> Restored:
    """Reads the checkpoint from which a run goes on, and drops the records after it; compiles nothing.

    Args:
      run: the run folder.
      algorithm: that of the run.
      checkpoint_every: iterations between its checkpoints.

    Returns:
      The iteration, the `TrainState` or None if no checkpoint was written yet, and a line for everything that
      was damaged and passed over; see `RunFolder.resume`.

    Raises:
      DamagedRunError: the run cannot go on from any checkpoint. Nothing is changed.
      RunInUseError: another process trains in it.
    """
    with run.lock:
        restored = run.resume(state_shapes(algorithm), checkpoint_every)
        if restored.tree is not None and jax.process_index() == 0:
            for record in run.read_evaluations():
                value = record.get("return")
                if record["iteration"] == restored.iteration and isinstance(value, float):
                    run.mark_best(restored.iteration, value)  # it may have been killed just before it did
        return restored


def restore(run: RunFolder, algorithm: MetaAlgorithm, which: int | Literal["last", "best"]) -> Restored:
    """Reads a checkpoint of a run, which may be in training; compiles and changes nothing.

    Args:
      run: the run folder.
      algorithm: that of the run.
      which: an iteration, "best", or "last": the newest one that is whole.

    Returns:
      The iteration, the `TrainState`, and a line for everything that was damaged and passed over.

    Raises:
      ValueError: there is no such checkpoint; the message lists those there are.
      DamagedRunError: it is damaged or does not belong to the run's configuration.
    """
    return run.restore(which, state_shapes(algorithm))


def state_shapes(algorithm: MetaAlgorithm) -> TrainState:
    """The shapes of a state; nothing is compiled."""
    return jax.eval_shape(lambda: initial_state(algorithm, seed=0))


def check_shapes(name: str, tree: PyTree, expected: PyTree) -> None:
    """Raises ValueError, naming the first leaf that differs, unless two trees have the same structure."""
    found, wanted = _described(tree), _described(expected)
    for leaf in [*wanted, *found]:
        if found.get(leaf) != wanted.get(leaf):
            raise ValueError(
                f"{name}{leaf} must be {wanted.get(leaf, 'absent')}, got {found.get(leaf, 'nothing')}"
            )


def _described(tree: PyTree) -> dict[str, str]:
    """The dtype and shape of every leaf, by its path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for path, leaf in leaves
    }
