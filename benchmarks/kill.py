"""Interrupts training at random moments, and goes on until the run is finished.

`kill -9` ends the process at once. SIGTERM asks it to end: it saves a checkpoint and says how to go on. On a
full disk (a small tmpfs where mounting is allowed, else a limit on the size of files) it ends with one line.
Half of the signals come while a process starts, half while it trains. Every run is resumed until it is
finished, and must then have the same parameters, metrics and evaluations, bit for bit, as one that was never
interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import common

ITERATIONS = 300
TRAIN = [
    *("train", "maml", "point-goal", "--iterations", str(ITERATIONS), "--tasks", "4", "--log-every", "2"),
    *("--checkpoint-every", "4", "--family.horizon", "5", "--num-episodes", "3", "--outer-epochs", "2"),
    *("--policy.hidden", "8", "--evaluate-every", "20"),
]
REPOSITORY = pathlib.Path(__file__).parents[1]
KINDS = ("kill -9", "SIGTERM", "full disk")
PATIENCE = 120  # seconds in which a process must end when it is asked to


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    kills: int = 50
    """Times that a process is killed."""
    terms: int = 10
    """Times that a process is asked to end."""
    full_disks: int = 5
    """Times that the disk is full."""
    seed: int = 0
    """Of the moments."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass
class Interruption:
    """One interruption, and what became of it."""

    kind: str
    moment: str  # "starting" or "training"
    iterations: int  # logged when the process had ended
    problem: str | None = None  # None: the process ended as it should, and the run became the same


class Run:
    """A run on the disk and the processes that train it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def process(self, limit: int | None = None) -> Iterator[subprocess.Popen[str]]:
        """A process that starts the run, or goes on with it.

        Args:
          limit: largest size of a file that it may write, in bytes.
        """
        known = (self.path / "config.json").exists()
        words = ["train", "--resume"] if known else TRAIN
        command = [sys.executable, "-m", "jmeta", *words, "--run-dir", str(self.path)]
        # Coverage would write files of its own, for which a full disk has no room either.
        environment = {name: value for name, value in os.environ.items() if "COV" not in name}
        environment["PYTHONPATH"] = str(REPOSITORY)

        if limit is not None:  # by a shell: JAX warns of a fork in a process that it runs in
            command = ["sh", "-c", f'ulimit -f {limit // 512} && exec "$@"', "sh", *command]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def logged(self) -> int:
        """Iterations in the metrics."""
        return self._content("metrics.jsonl").count(b"\n")

    def is_finished(self) -> bool:
        """Whether the last checkpoint is there."""
        return (self.path / "checkpoints" / str(ITERATIONS) / "manifest.json").exists()

    def finish(self) -> None:
        """Goes on until the end; RuntimeError if the process fails."""
        with self.process() as process:
            _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"a run could not go on, status {process.returncode}: {errors[-500:]}")

    def result(self) -> dict[str, bytes]:
        """What must be the same in every run."""
        names = ["metrics.jsonl", "evaluations.jsonl", "best.json"]
        return {name: self._content(name) for name in [*names, f"checkpoints/{ITERATIONS}/manifest.json"]}

    def _content(self, name: str) -> bytes:
        path = self.path / name
        return path.read_bytes() if path.exists() else b""


class Reference:
    """A run that is never interrupted."""

    def __init__(self, path: pathlib.Path) -> None:
        run = Run(path)
        run.finish()  # compiles, and fills the cache of programs for all others
        run = Run(path.with_name(path.name + "-again"))
        started = time.monotonic()
        with run.process() as process:
            wait_for(process, lambda: run.logged() > 0)
            self.starting = time.monotonic() - started  # seconds
            process.communicate()
            self.training = time.monotonic() - started - self.starting
        if process.returncode:
            raise RuntimeError(f"training ended with status {process.returncode}")
        self.result = run.result()
        if self.result != Run(path).result():
            raise RuntimeError("two runs that nobody interrupted differ")
        self.size = disk_usage(run.path)


def wait_for(
    process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = float("inf")
) -> None:
    """Waits until something is true, the process has ended or the time is over."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.001)


def disk_usage(folder: pathlib.Path) -> int:
    """Bytes that a folder takes, in whole pages."""
    page = resource.getpagesize()
    return sum(-(-path.stat().st_size // page) * page for path in folder.rglob("*") if path.is_file())


# -- interruptions ------------------------------------------------------------------------------------


def by_signal(kind: str, run: Run, reference: Reference, rng: random.Random) -> Interruption | None:
    """Sends a signal to a process of the run at a random moment; None if it had ended before."""
    before = run.logged()
    with run.process() as process:
        if rng.random() < 0.5:
            wait_for(process, lambda: False, rng.uniform(0, reference.starting))
        else:
            wait_for(process, lambda: run.logged() > before)
            wait_for(process, lambda: False, rng.uniform(0, reference.training / 5))
        training = run.logged() > before
        process.send_signal(signal.SIGKILL if kind == "kill -9" else signal.SIGTERM)
        try:
            _, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            errors = f"it did not end within {PATIENCE} seconds"
    if process.returncode == 0:
        return None
    problem = asked(process.returncode, errors, run, training) if kind == "SIGTERM" else None
    return Interruption(kind, "training" if training else "starting", run.logged(), problem)


def asked(status: int, errors: str, run: Run, training: bool) -> str | None:
    """What is wrong with how a process ended that was asked to; None if nothing is."""
    if not training and status == -signal.SIGTERM:
        return None  # it had not begun, so there was nothing to save
    last = (errors.strip().splitlines() or [""])[-1]
    if "Traceback" in errors or f"--resume --run-dir {run.path}" not in last:
        return f"ended with status {status} and: {errors[-500:]}"
    if training and not (run.path / "checkpoints" / str(run.logged()) / "manifest.json").exists():
        return "ended without a checkpoint of its last iteration"
    return None


def by_full_disk(run: Run, reference: Reference, rng: random.Random) -> Interruption | None:
    """Trains on a disk with less space than the run needs; None if it was enough."""
    page = resource.getpagesize()
    size = page * rng.randint(2, max(2, reference.size // page - 1))
    run.path.mkdir()
    if mounted(run.path, size):
        try:
            with run.process() as process:
                _, errors = process.communicate()
        finally:
            subprocess.run(["mount", "-o", "remount,size=1g", str(run.path)], check=True, capture_output=True)
    else:
        largest = max(path.stat().st_size for path in pathlib.Path(run.path.parent).rglob("metrics.jsonl"))
        with run.process(limit=rng.randrange(largest)) as process:
            _, errors = process.communicate()
    if process.returncode == 0:
        return None
    last = (errors.strip().splitlines() or [""])[-1]
    problem = None
    if process.returncode != 2 or not last.startswith("jmeta: error: ") or "Traceback" in errors:
        problem = f"ended with status {process.returncode} and: {errors[-500:]}"
    elif run.logged() and "--resume --run-dir" not in last:
        problem = f"did not say how to go on: {last}"
    return Interruption("full disk", "training" if run.logged() else "starting", run.logged(), problem)


def mounted(path: pathlib.Path, size: int) -> bool:
    """Mounts a tmpfs of so many bytes, if this process may."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def unmount(path: pathlib.Path) -> None:
    """Undoes `mounted`."""
    if path.is_mount():
        subprocess.run(["umount", str(path)], check=True)


def interrupt(
    counts: dict[str, int], seed: int, report: Callable[[Interruption], None] = lambda one: None
) -> list[Interruption]:
    """Interrupts runs as often as asked for, and finishes each.

    Args:
      counts: how often, by kind.
      seed: of the moments.
      report: called for each interruption when its run is finished.
    """
    rng = random.Random(seed)
    found: list[Interruption] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        reference = Reference(folder / "reference")
        numbers = iter(range(10**9))
        for kind in KINDS:
            left = counts.get(kind, 0)
            while left:
                run = Run(folder / f"run-{next(numbers)}")
                try:
                    interruptions = _until_finished(kind, run, reference, rng, left)
                finally:
                    unmount(run.path)
                found += interruptions
                left -= len(interruptions)
                for one in interruptions:
                    report(one)
    return found


def _until_finished(
    kind: str, run: Run, reference: Reference, rng: random.Random, most: int
) -> list[Interruption]:
    """The interruptions of one run, which is then compared with the reference."""
    interruptions: list[Interruption] = []
    if kind == "full disk":
        one = by_full_disk(run, reference, rng)
        interruptions = [] if one is None else [one]
    else:
        while len(interruptions) < most and not run.is_finished():
            one = by_signal(kind, run, reference, rng)
            if one is not None:
                interruptions.append(one)
    problem = None
    try:
        run.finish()
    except RuntimeError as error:
        problem = str(error)
    else:
        result = run.result()
        differing = [name for name, content in reference.result.items() if result[name] != content]
        if differing:
            problem = f"the run ended with another {', '.join(differing)}"
    return [
        one if one.problem or not problem else dataclasses.replace(one, problem=problem)
        for one in interruptions
    ]


def rows(found: list[Interruption]) -> list[list[str]]:
    """The table: how often each kind, when, and what became of it."""
    table = []
    for kind in KINDS:
        own = [one for one in found if one.kind == kind]
        starting = sum(one.moment == "starting" for one in own)
        failed = sum(one.problem is not None for one in own)
        numbers: list[Any] = [len(own), starting, len(own) - starting, len(own) - failed, failed]
        table.append([kind, *map(str, numbers)])
    return table


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(0, kills=flags.kills, terms=flags.terms, full_disks=flags.full_disks)

    def report(one: Interruption) -> None:
        outcome = one.problem or "ended the same"
        print(f"{one.kind}, {one.moment}, {one.iterations} iterations: {outcome}", file=sys.stderr)

    counts = dict(zip(KINDS, (flags.kills, flags.terms, flags.full_disks), strict=True))
    found = interrupt(counts, flags.seed, report)
    header = ["interruption", "times", "while starting", "while training", "ended the same", "failed"]
    print(common.markdown(header, rows(found)))
    common.write_json(
        flags.json,
        {"flags": common.settings(flags), "machine": common.machine(), "interruptions": found},
    )
    if any(one.problem for one in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
