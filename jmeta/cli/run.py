"""What every process of a run does: build, train, and say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re
import shlex
import signal
from collections.abc import Callable
from typing import Literal

import jax
from rich.console import Console

from jmeta import training
from jmeta.cli.errors import Stopped, memory_errors, user_errors
from jmeta.cli.output import console
from jmeta.cli.signals import StopRequests
from jmeta.cli.start import Processes, start_jax
from jmeta.reporting.progress import ProgressReporter, warning
from jmeta.runs.config import RunConfig, Training, build
from jmeta.runs.files import local_path
from jmeta.runs.folder import Restored, RunFolder
from jmeta.types import MetaAlgorithm, MetaState, TaskFamily


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint of another run, from whose parameters a run starts."""

    path: pathlib.Path
    which: int | Literal["last", "best"]

    @classmethod
    def parse(cls, text: str) -> Source:
        """Reads RUN, RUN@last, RUN@best or RUN@ITERATION; the folder RUN may have an @ in its name.

        Raises:
          ValueError: it is none of these.
        """
        folder, at, which = text.rpartition("@")
        if not at or local_path(text).exists():
            return cls(local_path(text), "last")
        if not re.fullmatch(r"last|best|\d{1,10}", which, re.ASCII):
            raise ValueError(f"--init-from must be RUN, RUN@last, RUN@best or RUN@ITERATION, got {text!r}")
        return cls(local_path(folder), int(which) if which.isdecimal() else which)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
      path: the run folder.
      config: what to train; of a run that is resumed, with the number of iterations that it has from now on.
      processes: how many there are and how they meet.
      resumed: whether the run folder exists.
      source: where the parameters come from, if not from the algorithm.
    """

    path: pathlib.Path
    config: RunConfig
    processes: Processes
    resumed: bool
    source: Source | None = None

    def absolute(self) -> Request:
        """The same for a process in another folder."""
        source = self.source and dataclasses.replace(self.source, path=self.source.path.absolute())
        return dataclasses.replace(self, path=self.path.absolute(), source=source)


@memory_errors("lower --tasks or --tasks-per-block")
def train_run(request: Request) -> None:
    """Trains, shows the progress, and says how to go on if it ends early."""
    settings = request.config.training
    path = shlex.quote(str(request.path))
    with contextlib.ExitStack() as held:
        with user_errors():
            family, algorithm = _build(request.config, request.processes)
            done, start, notes = Restored(0, None, ())
            if request.resumed:
                run = RunFolder(request.path, request.config)
                held.enter_context(run.lock)
                done, start, notes = training.resume(run, algorithm, settings.checkpoint_every)
                _prolong(run, done)
            else:
                if settings.iterations > 0:
                    training.check_iteration(algorithm, family, settings.num_tasks)
                if request.source is not None:
                    state, notes = _initial_state(request.source, algorithm, settings.seed)
                    start = training.begin(algorithm, settings, state=state)
                run = RunFolder.create(request.path, request.config, start)
                held.enter_context(run.lock)
            if start is None:
                start = training.begin(algorithm, settings, run=run)
        out = console(stderr=True, quiet=jax.process_index() > 0)
        out.print(f"run folder: {run.path}", soft_wrap=True)
        if notes or (request.resumed and done < settings.iterations):
            where = f"going on from iteration {done}" if request.resumed else "starting from another run"
            out.print(where + (f": {'; '.join(notes)}" if notes else ""), soft_wrap=True)
        if done == settings.iterations:
            out.print(f"all {done} iterations are done; --iterations trains on", soft_wrap=True)
            problem = None
        else:
            loop = functools.partial(training.train_from, start, algorithm, family, settings, run=run)
            problem = _watch(loop, settings, out, f"go on with: jmeta train --resume --run-dir {path}")
        out.print(f"evaluate it with: jmeta evaluate {path}", soft_wrap=True)
        problem = warning(run.read_metrics(), settings.num_tasks) or problem
        if problem is not None:
            out.print(f"warning: {problem}", soft_wrap=True)


def _watch(
    loop: Callable[..., training.TrainState], settings: Training, out: Console, hint: str
) -> str | None:
    """Runs a loop to its end, showing its progress; returns a warning about what was last reported, if any.

    Args:
      loop: takes `callback` and `stop`, as `training.train_from` does.
      settings: of the run.
      out: where to write.
      hint: how to go on if the loop ends early.
    """

    def answer() -> None:
        out.print(
            "stopping after the iterations that are running; a second signal ends at once", soft_wrap=True
        )

    def say_goodbye() -> None:
        out.show_cursor(True)
        out.print(f"jmeta: ended at once; {hint}", soft_wrap=True)

    stop = StopRequests(answer, say_goodbye)
    report = ProgressReporter(out, settings.iterations, settings.num_tasks)
    try:
        with user_errors(hint=f"; when that is mended, {hint}"), stop, report:
            end = loop(callback=report, stop=stop)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None
    if int(end.meta.step) < settings.iterations:
        word = "interrupted" if stop.signum == signal.SIGINT else "terminated"
        raise Stopped(f"{word}; {hint}", stop.signum or signal.SIGTERM)
    return report.warning and f"since the last report, {report.warning}"


def _build(config: RunConfig, processes: Processes) -> tuple[TaskFamily, MetaAlgorithm]:
    """Starts JAX and builds a configuration; raises ValueError for whatever could not run."""
    minibatches = max(1, config.algorithm.get("minibatches", 1))
    start_jax(config.training.num_tasks, minibatches, processes)
    family, _, algorithm = build(config)
    return family, algorithm


def _initial_state(source: Source, algorithm: MetaAlgorithm, seed: int) -> tuple[MetaState, tuple[str, ...]]:
    """The first state of a run that starts from another's parameters, and what was passed over there."""
    run = RunFolder.open(source.path)
    *_, other = build(run.config)
    iteration, found, notes = training.restore(run, other, source.which)
    state = training.initial_state(algorithm, seed).meta
    try:
        training.check_shapes("params", found.meta.params, state.params)
    except ValueError as error:
        raise ValueError(f"--init-from {str(source.path)!r} has other parameters: {error}") from error
    if notes:
        notes = (f"taking its iteration {iteration}", *notes)
    return state._replace(params=found.meta.params), notes


def _prolong(run: RunFolder, done: int) -> None:
    """Keeps the number of iterations that a run has from now on, now that it is certain to go on."""
    iterations = run.config.training.iterations
    if iterations < done:
        raise ValueError(f"--iterations must be at least {done}, which the run has done, got {iterations}")
    if run.config != RunFolder.open(run.path).config:
        run.write_config()
