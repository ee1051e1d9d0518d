"""Progress of a training run in the terminal."""

from __future__ import annotations

import datetime
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console

if TYPE_CHECKING:
    from jmeta.training import Progress

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReporter:
    """A callback of `training.train`: a bar on a terminal, else a line now and then. Use it as a context.

    Args:
      console: where to write.
      iterations: meta-iterations in all.
    """

    def __init__(self, console: Console, iterations: int) -> None:
        self._console = console
        self._last_line = -float("inf")
        self._bar = progress.Progress(
            progress.TextColumn("{task.completed}/{task.total}"),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[status]}"),
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
        """Shows one chunk's progress."""
        status = describe(progress)
        self._bar.update(self._task, completed=progress.iteration, status=status)
        now = time.monotonic()
        last = progress.iteration == progress.iterations
        if self._bar.disable and (last or now - self._last_line >= _SECONDS_BETWEEN_LINES):
            self._last_line = now
            self._console.print(f"{progress.iteration}/{progress.iterations}  {status}", soft_wrap=True)


def describe(progress: Progress) -> str:
    """One line: return before and after adaptation, updates skipped if any, speed, time left."""
    before, after = progress.metrics["return_before"], progress.metrics["return_after"]
    left = datetime.timedelta(seconds=round(progress.seconds_left))
    skipped = progress.metrics.get("skipped", 0)
    warning = f"  skipped updates: {skipped:.0f}" if skipped > 0 else ""
    speed = f"{progress.env_steps_per_second:,.0f} env steps/s"
    return f"return {before:.1f} → {after:.1f}{warning}  {speed}  {left} left"
