"""The host loop: chunks of meta-iterations in one compiled call, logging and checkpoints between them."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmeta import parallel
from jmeta.compiled import once
from jmeta.conformance import conform
from jmeta.runs.config import Training
from jmeta.runs.folder import RunFolder
from jmeta.training.evaluations import evaluation_record
from jmeta.training.progress import Progress
from jmeta.training.state import TrainState, begin, resume, state_shapes
from jmeta.types import Array, MetaAlgorithm, MetaState, Metrics, TaskFamily

_LOGGER = logging.getLogger(__name__)


def train(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    *,
    iterations: int,
    num_tasks: int = 20,
    seed: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 50,
    evaluate_every: int | None = None,
    run: RunFolder | None = None,
    state: MetaState | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> MetaState:
    """Meta-trains over all devices; with several processes (`runtime.connect`), over all of theirs.

    With a `run` it logs and saves there and goes on from the newest whole checkpoint, if there is one; on a
    CPU the result is bit for bit that of a run that was never interrupted. Without one, training can go on
    from a `state`: with the same seed, two calls of 10 and then 20 iterations end as one call of 20 does.
    Nothing is compiled again for the same algorithm, family and sizes.

    Args:
      algorithm: any meta-learner.
      family: the tasks it trains on, drawn afresh in every iteration.
      iterations: total number of meta-iterations, including those that were done before.
      num_tasks: B, tasks of an iteration.
      seed: of the initial parameters, the tasks and the episodes; below 2**31.
      log_every: iterations in one compiled call, but for the first, which does one; the host works between.
      checkpoint_every: iterations between checkpoints, a multiple of `log_every`; the last is always saved.
      evaluate_every: iterations between evaluations, a multiple of `log_every`; the last iteration is
        always evaluated. None evaluates nothing. See `evaluation_record`. With a `run`, every evaluated
        state is saved, and the best one is kept.
      run: the run folder.
      state: the state to start from instead of `algorithm.init`; it stays valid. To start from the
        parameters alone: `algorithm.init(key)._replace(params=...)`. A `run` that has a checkpoint goes on
        from that checkpoint instead.
      callback: called with a `Progress` after each chunk.

    Returns:
      The final state.

    Raises:
      ValueError: a number is out of its range, or `state` is not one of `algorithm`.
      DamagedRunError: `run` cannot go on; see `resume`.
      RunInUseError: another process trains in `run`.
    """
    settings = Training(iterations, num_tasks, seed, log_every, checkpoint_every, evaluate_every)
    with contextlib.nullcontext() if run is None else run.lock:
        start = None
        if run is not None:
            done, start, notes = resume(run, algorithm, checkpoint_every)
            for note in notes:
                _LOGGER.warning("run folder %r goes on from iteration %d: %s", str(run.path), done, note)
        if start is None:
            start = begin(algorithm, settings, run=run, state=state)
        return train_from(start, algorithm, family, settings, run=run, callback=callback).meta


def train_from(
    start: TrainState,
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    settings: Training,
    *,
    run: RunFolder | None = None,
    callback: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """The loop of `train`, from a state that is given away.

    Args:
      start: the state to go on from; do not use it afterwards, because its memory is reused.
      algorithm: any meta-learner.
      family: the tasks it trains on.
      settings: of the run.
      run: the run folder, which is at `start`; the caller holds its lock.
      callback: called with a `Progress` after each chunk.
      stop: asked before each chunk; if true, what was done is saved and training ends. Of several processes
        all give one or none does, and one that says so ends it for all.

    Returns:
      The state after the last iteration that was done.
    """
    mesh = parallel.task_mesh()
    state = parallel.replicate(start, mesh)
    first = done = int(state.meta.step)
    if jax.process_count() > 1:
        parallel.agree(done)  # or they would not see the same checkpoints
    if done >= settings.iterations:
        return state
    iterations, log_every = settings.iterations, settings.log_every
    saved = done
    with jax.set_mesh(mesh):
        chunk = compile_chunk(algorithm, family, num_tasks=settings.num_tasks, length=log_every)
        state, _ = chunk(state, jnp.int32(0))  # compiles, so that the first rate is a true one
        while done < iterations and not (stop is not None and parallel.any_process(stop())):
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
            evaluation = None
            if _is_due(settings.evaluate_every, done, iterations):
                evaluation = evaluation_record(algorithm, family, state.meta.params, settings.seed, done)
            if run is not None and (evaluation or _is_due(settings.checkpoint_every, done, iterations)):
                _save(run, state, evaluation)
                saved = done
            if callback is not None:
                seconds_left = (iterations - done) * seconds / count
                shown = (records[-1], steps_per_second, seconds_left, records, evaluation)
                callback(Progress(done, iterations, *shown, _live_state=state.meta))
        if run is not None and done > saved:  # it was asked to stop
            _save(run, state)
    return state


def compile_chunk(
    algorithm: MetaAlgorithm, family: TaskFamily, *, num_tasks: int, length: int
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """A jitted call of up to `length` meta-iterations, its state donated.

    The number of iterations is an argument, so a shorter last chunk does not compile again, and neither does
    a second call for the same algorithm, family and sizes. The jitted call returns the new state and the
    metrics, each [length]; entries past the count are zero.
    """
    iteration = _iteration(algorithm, family, num_tasks)

    def chunk(state: TrainState, count: Array) -> tuple[TrainState, Metrics]:
        shapes = jax.eval_shape(iteration, state)[1]
        stacked = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

        def body(index: Array, loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = iteration(loop[0])
            return state, jax.tree.map(lambda all_, one: all_.at[index].set(one), loop[1], metrics)

        return jax.lax.fori_loop(0, count, body, (state, stacked))

    make = functools.partial(jax.jit, chunk, donate_argnums=0)
    return once(make, algorithm.update, family.sample, num_tasks, length)


def check_iteration(algorithm: MetaAlgorithm, family: TaskFamily, num_tasks: int) -> None:
    """Traces one iteration, which compiles nothing; ValueError where such a training could not run."""
    with jax.set_mesh(parallel.task_mesh()):
        jax.eval_shape(_iteration(algorithm, family, num_tasks), state_shapes(algorithm))


def _iteration(
    algorithm: MetaAlgorithm, family: TaskFamily, num_tasks: int
) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
    """A jitted meta-iteration."""

    def make() -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        sample = conform(family).sample

        @jax.jit
        def iteration(state: TrainState) -> tuple[TrainState, Metrics]:
            key_tasks, key_update = jax.random.split(jax.random.fold_in(state.key, state.meta.step))
            tasks = jax.vmap(sample)(parallel.task_keys(key_tasks, num_tasks))
            meta, metrics = algorithm.update(state.meta, tasks, key_update)
            return TrainState(meta, state.key), metrics

        return iteration

    return once(make, algorithm.update, family.sample, num_tasks)


def _is_due(every: int | None, done: int, iterations: int) -> bool:
    return every is not None and (done % every == 0 or done == iterations)


def _save(run: RunFolder, state: TrainState, evaluation: dict[str, Any] | None = None) -> None:
    """Saves a state. Its evaluation is written first: a checkpoint is never without it after a kill."""
    done = int(state.meta.step)
    if evaluation is not None:
        run.append_evaluations([evaluation])
    run.save_checkpoint(done, state)
    if evaluation is not None and jax.process_index() == 0:  # the others do not wait for the checkpoint
        run.mark_best(done, evaluation["return"])


def _records(stacked: Metrics, done: int, count: int) -> list[dict[str, float]]:
    """Metrics [length] of a chunk as one record an iteration."""
    return [
        {"iteration": done + index + 1} | {name: value[index].item() for name, value in stacked.items()}
        for index in range(count)
    ]
