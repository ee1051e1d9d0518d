"""What every process of a run does: build, train, and say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import re
import signal
import sys
from collections.abc import Callable
from typing import Literal

import jax
from rich.console import Console

from jmeta import training
from jmeta.cli.errors import Stopped, memory_errors, user_errors
from jmeta.cli.output import console, discard_output, say, shell_word
from jmeta.cli.signals import HANGUP, StopRequests
from jmeta.cli.start import Processes, start_jax
from jmeta.reporting.progress import ProgressReporter, warning
from jmeta.runs.config import RunConfig, Training, build
from jmeta.runs.files import RunInUseError, local_path
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
      numbered: whether the next number will do if another process takes the path first.
    """

    path: pathlib.Path
    config: RunConfig
    processes: Processes
    resumed: bool
    source: Source | None = None
    numbered: bool = False

    def absolute(self) -> Request:
        """The same for a process in another folder."""
        source = self.source and dataclasses.replace(self.source, path=self.source.path.absolute())
        return dataclasses.replace(self, path=self.path.absolute(), source=source)


@memory_errors("lower --tasks or --tasks-per-block")
def train_run(request: Request) -> None:
    """Trains, shows the progress, and says how to go on if it ends early."""
    settings = request.config.training
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
                run = _create(request, start)
                held.enter_context(run.lock)
            if start is None:
                start = training.begin(algorithm, settings, run=run)
        path = shell_word(run.path)
        out = console(stderr=True, quiet=jax.process_index() > 0)
        say(out, f"run folder: {run.path}")
        if notes or (request.resumed and done < settings.iterations):
            where = f"going on from iteration {done}" if request.resumed else "starting from another run"
            say(out, where + (f": {'; '.join(notes)}" if notes else ""))
        if done == settings.iterations:
            say(out, f"all {done} iterations are done; --iterations trains on")
            problem = None
        else:
            loop = functools.partial(training.train_from, start, algorithm, family, settings, run=run)
            problem = _watch(loop, settings, out, f"go on with: jmeta train --resume --run-dir {path}")
        say(out, f"evaluate it with: jmeta evaluate {path}")
        problem = warning(run.read_metrics(), settings.num_tasks) or problem
        if problem is not None:
            say(out, f"warning: {problem}")


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
        try:
            say(out, "stopping after the iterations that are running; a second signal ends at once")
        except OSError:  # the terminal was closed: what is printed from now on must not end the training
            discard_output(sys.stdout, sys.stderr)

    def say_goodbye() -> None:
        out.show_cursor(True)
        say(out, f"jmeta: ended at once; {hint}")

    stop = StopRequests(answer, say_goodbye)
    report = ProgressReporter(out, settings.iterations, settings.num_tasks)
    try:
        with user_errors(hint=f"; when that is mended, {hint}"), stop, report:
            end = loop(callback=report, stop=stop)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None
    if int(end.meta.step) < settings.iterations:
        words = {signal.SIGINT: "interrupted", HANGUP: "hung up"}
        raise Stopped(f"{words.get(stop.signum, 'terminated')}; {hint}", stop.signum or signal.SIGTERM)
    return report.warning and f"since the last report, {report.warning}"


def numbered_path(parent: pathlib.Path, config: RunConfig) -> pathlib.Path:
    """ALGORITHM-FAMILY-SEED in a folder, with a number if there is one already."""
    name = f"{config.algorithm['name']}-{config.family['name']}-{config.training.seed}"
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(path for number in numbers if not (path := parent / (name + number)).exists())


def _create(request: Request, start: training.TrainState | None) -> RunFolder:
    """Makes the run folder."""
    path = request.path
    while True:
        try:
            return RunFolder.create(path, request.config, start)
        except (FileExistsError, RunInUseError):
            if not request.numbered or not path.exists():
                raise
            path = numbered_path(path.parent, request.config)


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
