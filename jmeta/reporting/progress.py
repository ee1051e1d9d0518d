"""Progress of a training run in the terminal."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.console import Console

if TYPE_CHECKING:
    from jmeta.training import Progress

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReporter:
    """A callback of `training.train` that shows a bar on a terminal, and otherwise a line now and then.

    Use it as a context.

    Args:
      console: where to write.
      iterations: total number of meta-iterations.
      num_tasks: tasks of a meta-iteration.
    """

    def __init__(self, console: Console, iterations: int, num_tasks: int) -> None:
        self._console = console
        self._num_tasks = num_tasks
        self._last_line = -float("inf")
        self._recent: list[Mapping[str, Any]] = []  # the records since the last report
        self.warning: str | None = None  # what went wrong most of the time before the last report
        self._bar = progress.Progress(
            progress.TextColumn("{task.completed}/{task.total}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[status]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=iterations, status="compiling")

    def __enter__(self) -> ProgressReporter:
        """Starts the bar."""
        if self._bar.disable:
            self._console.print("compiling", soft_wrap=True)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        del kind, error, trace
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows the progress of one chunk."""
        self._recent += progress.records
        if progress.evaluation is not None:
            self._console.print(describe_evaluation(progress.evaluation), soft_wrap=True)
        now = time.monotonic()
        last = progress.iteration == progress.iterations
        if self._bar.disable and not last and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        lost = sum(record.get("tasks_lost", 0) for record in self._recent)
        status = describe(progress, lost, len(self._recent) * self._num_tasks)
        self.warning = warning(self._recent, self._num_tasks)
        self._recent, self._last_line = [], now
        if self._bar.disable:
            self._console.print(f"{progress.iteration}/{progress.iterations}  {status}", soft_wrap=True)
        else:
            self._bar.update(self._task, completed=progress.iteration, status=status)


def describe(progress: Progress, tasks_lost: int = 0, num_tasks: int = 0) -> str:
    """One line: return before and after adaptation, what was lost if anything was, speed, time left.

    Args:
      progress: of the last chunk.
      tasks_lost: tasks since the last report that were left out because they were not finite.
      num_tasks: all tasks since the last report.
    """
    before, after = progress.metrics["return_before"], progress.metrics["return_after"]
    left = datetime.timedelta(seconds=round(progress.seconds_left))
    skipped = progress.metrics.get("skipped", 0)
    return "  ".join(
        [
            f"return {before:.1f} → {after:.1f}",
            *([f"tasks lost: {tasks_lost:,} of {num_tasks:,}"] if tasks_lost > 0 else []),
            *([f"skipped updates: {skipped:.0f}"] if skipped > 0 else []),
            f"{progress.env_steps_per_second:,.0f} env steps/s",
            f"{left} left",
        ]
    )


def describe_evaluation(record: Mapping[str, Any]) -> str:
    """One line about an evaluation while training; see `training.train`."""
    returns = " → ".join(f"{value:.1f}" for value in record["return_mean"])
    tasks = "held-out tasks" if record["split"] == "heldout" else "fresh tasks"
    lost = f", of which {record['tasks_lost']} were lost" if record["tasks_lost"] else ""
    return f"evaluation after {record['iteration']}: return {returns} on {record['num_tasks']} {tasks}{lost}"


def warning(records: Iterable[Mapping[str, Any]], num_tasks: int) -> str | None:
    """One line if most tasks were lost, or if most iterations skipped an update; None otherwise.

    Args:
      records: metrics of consecutive iterations: `tasks_lost` of each and `skipped`, the sum of all so far,
        where the algorithm reports them.
      num_tasks: tasks of an iteration.
    """
    records = list(records)
    tasks = len(records) * num_tasks
    lost = sum(record.get("tasks_lost", 0) for record in records)
    so_far = [record.get("skipped", 0) for record in records]
    if records and records[0]["iteration"] == 1:
        so_far.insert(0, 0)
    skipped = sum(after > before for before, after in itertools.pairwise(so_far))
    found = []
    if 2 * lost > tasks:
        found.append(f"{lost:,} of {tasks:,} tasks were lost because something in them was not finite")
    if 2 * skipped > len(records):
        found.append(f"updates were skipped in {skipped:,} of {len(records):,} iterations")
    return " and ".join(found) or None
