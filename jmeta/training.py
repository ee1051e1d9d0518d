"""The host loop: chunks of meta-iterations in one compiled call, logging and checkpoints between them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jmeta import parallel
from jmeta.compiled import once
from jmeta.runs.config import Training
from jmeta.runs.folder import Restored, RunFolder
from jmeta.types import Array, Key, MetaAlgorithm, MetaState, Metrics, TaskFamily


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is given after each chunk of iterations.

    Attributes:
      iteration: meta-iterations done.
      iterations: total number of meta-iterations.
      metrics: of the last iteration.
      env_steps_per_second: environment steps per second, over the chunk.
      seconds_left: until the end, at the rate of this chunk.
      records: metrics of every iteration of the chunk.
      evaluation: the record of an evaluation that was made after the chunk, as `train` describes it.
    """

    iteration: int
    iterations: int
    metrics: dict[str, float]
    env_steps_per_second: float
    seconds_left: float
    records: Sequence[dict[str, float]] = ()
    evaluation: dict[str, Any] | None = None
    _live_state: MetaState | None = dataclasses.field(default=None, repr=False)

    @property
    def state(self) -> MetaState:
        """A copy of the state after the chunk, which stays valid.

        Ask for it within the callback: the next chunk reuses the memory of the original.
        """
        leaves = jax.tree.leaves(self._live_state)
        if not leaves or any(leaf.is_deleted() for leaf in leaves):
            raise RuntimeError("state must be asked for within the callback, training has gone on")
        return jax.tree.map(jnp.copy, self._live_state)


class TrainState(NamedTuple):
    """All that an exact resume needs."""

    meta: MetaState
    key: Key  # of the whole run; iteration i uses fold_in(key, i)


def train(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    *,
    iterations: int,
    num_tasks: int = 20,
    seed: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 50,
    run: RunFolder | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> MetaState:
    """Meta-trains, over all devices: of several processes (`runtime.connect`), those of all.

    With a `run` it logs and saves there and goes on from the newest whole checkpoint, if there is one; on a
    CPU the result is bit for bit that of a run that was never interrupted.

    Args:
      algorithm: any meta-learner.
      family: the tasks it trains on, drawn afresh in every iteration.
      iterations: meta-iterations in all, those before a resume counted in.
      num_tasks: B, tasks of an iteration.
      seed: of the initial parameters, the tasks and the episodes; below 2**31.
      log_every: iterations in one compiled call, but for the first, which does one; the host works between.
      checkpoint_every: iterations between checkpoints, a multiple of `log_every`; the last is always saved.
      run: the run folder.
      callback: called with a `Progress` after each chunk.

    Returns:
      The final state.

    Raises:
      ValueError: a number is out of its range.
      DamagedRunError: `run` cannot go on; see `resume`.
      RunInUseError: another process trains in `run`.
    """
    mesh = parallel.task_mesh()
    Training(iterations, num_tasks, seed, log_every, checkpoint_every)  # checks their ranges
    with contextlib.nullcontext() if run is None else run.lock:
        state = None if run is None else resume(run, algorithm, checkpoint_every).tree
        if state is None:
            state = initial_state(algorithm, seed)
            if run is not None and iterations == 0:
                run.save_checkpoint(0, state)
        state = parallel.replicate(state, mesh)
        done = int(state.meta.step)
        if jax.process_count() > 1:
            parallel.agree(done)  # or they would not see the same checkpoints
        if done >= iterations:
            return state.meta
        with jax.set_mesh(mesh):
            chunk = compile_chunk(algorithm, family, num_tasks=num_tasks, length=log_every)
            state, _ = chunk(state, jnp.int32(0))  # compiles, so that the first rate is a true one
            first = done
            while done < iterations:
                started = time.perf_counter()
                # One at first, to be heard from soon; then up to the next multiple, where checkpoints are.
                count = 1 if done == first else min(log_every - done % log_every, iterations - done)
                state, stacked = chunk(state, jnp.int32(count))
                records = _records(jax.device_get(stacked), done, count)
                done += count
                seconds = time.perf_counter() - started
                steps_per_second = sum(record["env_steps"] for record in records) / seconds
                if run is not None:
                    run.append_metrics(records)
                    timing = {"iteration": done, "seconds": seconds, "env_steps_per_second": steps_per_second}
                    run.append_timings([timing])
                    if done % checkpoint_every == 0 or done == iterations:
                        run.save_checkpoint(done, state)
                if callback is not None:
                    seconds_left = (iterations - done) * seconds / count
                    shown = (records[-1], steps_per_second, seconds_left, records)
                    callback(Progress(done, iterations, *shown, _live_state=state.meta))
        return state.meta


def initial_state(algorithm: MetaAlgorithm, seed: int) -> TrainState:
    """The state before the first iteration."""
    key_init, key_run = jax.random.split(jax.random.key(seed))
    return TrainState(jax.jit(algorithm.init)(key_init), key_run)


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
        return run.resume(_shapes(algorithm), checkpoint_every)


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
    return run.restore(which, _shapes(algorithm))


def _shapes(algorithm: MetaAlgorithm) -> TrainState:
    return jax.eval_shape(lambda: initial_state(algorithm, seed=0))


def compile_chunk(
    algorithm: MetaAlgorithm, family: TaskFamily, *, num_tasks: int, length: int
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """A jitted call of up to `length` meta-iterations, its state donated.

    The number of iterations is an argument, so a shorter last chunk does not compile again, and neither does
    a second call for the same algorithm, family and sizes. The jitted call returns the new state and the
    metrics, each [length]; entries past the count are zero.
    """

    @jax.jit
    def iteration(state: TrainState) -> tuple[TrainState, Metrics]:
        key_tasks, key_update = jax.random.split(jax.random.fold_in(state.key, state.meta.step))
        tasks = jax.vmap(family.sample)(parallel.task_keys(key_tasks, num_tasks))
        meta, metrics = algorithm.update(state.meta, tasks, key_update)
        return TrainState(meta, state.key), metrics

    def chunk(state: TrainState, count: Array) -> tuple[TrainState, Metrics]:
        shapes = jax.eval_shape(iteration, state)[1]
        stacked = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

        def body(index: Array, loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = iteration(loop[0])
            return state, jax.tree.map(lambda all_, one: all_.at[index].set(one), loop[1], metrics)

        return jax.lax.fori_loop(0, count, body, (state, stacked))

    make = functools.partial(jax.jit, chunk, donate_argnums=0)
    return once(make, algorithm.update, family.sample, num_tasks, length)


def _records(stacked: Metrics, done: int, count: int) -> list[dict[str, float]]:
    """Metrics [length] of a chunk as one record an iteration."""
    return [
        {"iteration": done + index + 1} | {name: value[index].item() for name, value in stacked.items()}
        for index in range(count)
    ]
