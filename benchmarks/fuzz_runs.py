"""Damages the folder of a small run in every way, then resumes and evaluates it.

Every file of a checkpoint and every line of the other files is truncated, emptied, deleted or changed in one
bit. Every file and folder is also replaced by a link (to nothing, to /dev/zero, to a folder, to itself), by
a folder, by a pipe, or by 10 GB of zeros that take no space. After each damage one copy of the run is resumed
and two are evaluated, at the newest and at the best checkpoint. Each command must work on that checkpoint, or
work on an older one and say so, or end with status 2, one line and nothing changed. A run that goes on must
end with the parameters and metrics of the run that was never damaged.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import pathlib
import random
import shutil
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks import common

TRAIN = [
    *("train", "maml", "bandit", "--iterations", "8", "--tasks", "2", "--log-every", "2"),
    *("--checkpoint-every", "2", "--num-episodes", "2", "--num-inner-steps", "1", "--outer-epochs", "1"),
    *("--policy.hidden", "4", "--evaluate-every", "4"),
]
EVALUATE = ["--tasks", "2", "--steps", "1", "--episodes", "2"]
NEWEST = 8
ZEROS = 10 * 10**9  # bytes of a sparse file
MEMORY = 1024  # MiB that no case may need on top of what the first commands did
LINES = ("config.json", "metrics.jsonl", "timings.jsonl", "evaluations.jsonl", "best.json")
COMMANDS = {
    "resume": "train --resume",
    "evaluate": "evaluate",
    "evaluate_best": "evaluate --checkpoint best",
}
OUTCOMES = ("newest", "older", "refused", "failed")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    cases: int = 500
    """Damages to try; every kind of damage to every place comes once before any is repeated."""
    seed: int = 0
    """Order and random places of the damages."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A damage, and what the commands then did."""

    place: str
    damage: str
    resume: str
    evaluate: str
    evaluate_best: str
    problem: str | None  # where an outcome is "failed"


class Problem(Exception):
    """A command did something that no damage excuses."""


# -- damages ------------------------------------------------------------------------------------------

Damage = Callable[[pathlib.Path, random.Random], None]


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\x01"
    position = rng.randrange(len(content))
    return content[:position] + bytes([content[position] ^ (1 << rng.randrange(8))]) + content[position + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))] if content else content


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _cut,
    "emptied": lambda content, rng: b"",
    "one bit flipped": _flip,
    "not UTF-8": lambda content, rng: b"\xff\xfe" + content,
    "nested deeply": lambda content, rng: b"[" * 100_000,
    "doubled": lambda content, rng: content + content,
}


def _changed(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    return lambda path, rng: path.write_bytes(change(path.read_bytes(), rng)) and None


def _line_changed(number: int, change: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(path: pathlib.Path, rng: random.Random) -> None:
        lines = path.read_bytes().split(b"\n")
        lines[number] = change(lines[number], rng)
        path.write_bytes(b"\n".join(lines))

    return damage


def _line_deleted(number: int) -> Damage:
    def damage(path: pathlib.Path, rng: random.Random) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))

    return damage


def _linked(target: Callable[[pathlib.Path], str | pathlib.Path]) -> Damage:
    def damage(path: pathlib.Path, rng: random.Random) -> None:
        _remove(path)
        path.symlink_to(target(path))

    return damage


def _folder(path: pathlib.Path, rng: random.Random) -> None:
    _remove(path)
    path.mkdir()
    (path / "something").write_text("in the way")


def _pipe(path: pathlib.Path, rng: random.Random) -> None:
    _remove(path)
    os.mkfifo(path)


def _zeros(path: pathlib.Path, rng: random.Random) -> None:
    _remove(path)
    with path.open("wb") as file:
        file.truncate(ZEROS)


def _zeros_appended(path: pathlib.Path, rng: random.Random) -> None:
    os.truncate(path, ZEROS)


REPLACEMENTS: dict[str, Damage] = {
    "deleted": lambda path, rng: _remove(path),
    "a link to nothing": _linked(lambda path: "nowhere"),
    "a link to /dev/zero": _linked(lambda path: "/dev/zero"),
    "a link to a folder": _linked(lambda path: "/usr"),
    "a link to itself": _linked(lambda path: path.name),
    "a folder": _folder,
    "a pipe": _pipe,
    "10 GB of zeros": _zeros,
}


def damages(run: pathlib.Path) -> list[tuple[str, str, Damage]]:
    """Every (place, damage) of a run and the function that does it."""
    files = [*LINES, "environment.json", "lock"]
    folders = ["checkpoints"]
    for checkpoint in sorted((run / "checkpoints").iterdir()):
        folders.append(f"checkpoints/{checkpoint.name}")
        files += [f"checkpoints/{checkpoint.name}/{path.name}" for path in sorted(checkpoint.iterdir())]
    found: list[tuple[str, str, Damage]] = []
    for name in [*files, *folders]:
        found += [(name, kind, damage) for kind, damage in REPLACEMENTS.items()]
    for name in files:
        found += [(name, kind, _changed(change)) for kind, change in CHANGES.items()]
        found.append((name, "10 GB of zeros appended", _zeros_appended))
    for name in LINES:
        for number in range(len((run / name).read_bytes().splitlines())):
            place = f"{name}, line {number + 1}"
            found += [(place, kind, _line_changed(number, change)) for kind, change in CHANGES.items()]
            found.append((place, "deleted", _line_deleted(number)))
    return found


# -- commands -----------------------------------------------------------------------------------------


def command(words: list[str]) -> tuple[int, str, str]:
    """Status, output and errors of `jmeta` with these words, in this process."""
    from jmeta import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(words)
        except Exception as error:
            trace = "".join(traceback.format_exception(error)[-3:])
            raise Problem(f"{words[0]} ended in {trace}") from error
    return status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Within it, equal configurations give the same objects, whose programs are compiled already."""
    from jmeta.runs import config as configs

    build = configs.build
    known: dict[str, Any] = {}

    @functools.wraps(build)
    def remembered(config: Any) -> Any:
        text = config.to_json()
        if text not in known:
            known[text] = build(config)
        return known[text]

    with mock.patch.object(configs, "build", remembered):
        yield


def snapshot(folder: pathlib.Path) -> dict[str, tuple[Any, ...]]:
    """What is in a folder: kind, size, time and small content of everything."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        entry: tuple[Any, ...] = (stat.S_IFMT(status.st_mode),)
        if path.is_symlink():
            entry += (os.readlink(path),)
        elif stat.S_ISREG(status.st_mode):
            entry += (status.st_size, status.st_mtime_ns)
            entry += (path.read_bytes(),) if status.st_size < 2**20 else ()
        found[str(path.relative_to(folder))] = entry
    return found


class Reference:
    """The run that is damaged, and what is expected of what becomes of it."""

    def __init__(self, folder: pathlib.Path) -> None:
        from jmeta.runs import RunFolder

        self.path = folder / "reference"
        status, _, errors = command([*TRAIN, "--run-dir", str(self.path)])
        if status:
            raise Problem(errors)
        run = RunFolder.open(self.path)
        best = run.best_checkpoint()
        assert best is not None
        self.config, self.best = run.config, best.iteration
        self.metrics = (self.path / "metrics.jsonl").read_bytes()
        self.state = self._state(self.path)
        command(["evaluate", str(self.path), *EVALUATE])
        self.memory = common.peak_memory()

    @staticmethod
    def _state(path: pathlib.Path) -> bytes:
        return (path / "checkpoints" / str(NEWEST) / "manifest.json").read_bytes()

    def check_end(self, path: pathlib.Path, damage: str) -> None:
        """A resumed run must have become the reference."""
        from jmeta.runs import RunFolder

        run = RunFolder.open(path)
        if run.config != self.config:
            return  # the damage made another run of it, which is one as well
        if self._state(path) != self.state:
            raise Problem("resume ended with other parameters")
        same = (path / "metrics.jsonl").read_bytes() == self.metrics
        if not same and damage != "one bit flipped":  # a number may have become another one
            raise Problem("resume ended with other metrics")


def outcome(status: int, errors: str, is_newest: Callable[[], bool], unchanged: bool) -> str:
    """What a command did with a damaged run; Problem if it should not have."""
    if status == 2:
        if not errors.startswith("jmeta: error: ") or errors.count("\n") != 1:
            raise Problem(f"refused in other than one line: {errors}")
        if not unchanged:
            raise Problem(f"refused, and files were changed: {errors}")
        return "refused"
    if status:
        raise Problem(f"ended with status {status}: {errors}")
    return "newest" if is_newest() else "older"


def evaluated(path: pathlib.Path, which: str, expected: int) -> str:
    """Evaluates a checkpoint of a damaged run; which outcome, or Problem."""
    before = snapshot(path)
    status, printed, errors = command(["evaluate", str(path), *EVALUATE, "--checkpoint", which])
    after = snapshot(path)
    written = ("evaluation.json", "evaluation.npz")
    kept = {name: entry for name, entry in after.items() if name not in written}
    if kept != {name: entry for name, entry in before.items() if name not in written}:
        raise Problem("evaluate changed files of the run")
    used = [number for number in range(NEWEST + 2) if f"iteration {number}\n" in printed]
    return outcome(status, errors, lambda: used[0] >= expected, after == before)


def resumed(path: pathlib.Path, reference: Reference, damage: str) -> str:
    """Resumes a damaged run; which outcome, or Problem."""
    before = snapshot(path)
    status, _, errors = command(["train", "--resume", "--run-dir", str(path)])
    unchanged = snapshot(path) == before

    def is_newest() -> bool:
        reference.check_end(path, damage)
        return not any(f"going on from iteration {number}" in errors for number in range(NEWEST))

    return outcome(status, errors, is_newest, unchanged)


def try_one(reference: Reference, folder: pathlib.Path, case: tuple[str, str, Damage], seed: int) -> Case:
    """Does one damage to a copy for each command."""
    place, kind, damage = case
    outcomes, problem = {}, None
    for name, use in (
        ("evaluate", lambda path: evaluated(path, "last", NEWEST)),
        ("evaluate_best", lambda path: evaluated(path, "best", reference.best)),
        ("resume", lambda path: resumed(path, reference, kind)),
    ):
        copy = pathlib.Path(shutil.copytree(reference.path, folder / name))
        damage(copy / place.split(",")[0], random.Random(seed))
        try:
            outcomes[name] = use(copy)
            if common.peak_memory() > reference.memory + MEMORY:
                raise Problem(f"{name} needed {common.peak_memory() - reference.memory:.0f} MiB more")
        except Problem as error:
            outcomes[name], problem = "failed", str(error)
        shutil.rmtree(copy)
    return Case(place, kind, problem=problem, **outcomes)


def fuzz(cases: int, seed: int, report: Callable[[Case], None] = lambda case: None) -> list[Case]:
    """Tries damages on a run that it trains first.

    Args:
      cases: how many.
      seed: of their order and random places.
      report: called after each.
    """
    rng = random.Random(seed)
    found: list[Case] = []
    with tempfile.TemporaryDirectory() as name, compiled_once():
        folder = pathlib.Path(name)
        reference = Reference(folder)
        common.forget_peak_memory()
        while len(found) < cases:
            for case in _mixed(damages(reference.path), rng)[: cases - len(found)]:
                found.append(try_one(reference, folder, case, rng.randrange(2**32)))
                report(found[-1])
    return found


def _mixed(cases: list[tuple[str, str, Damage]], rng: random.Random) -> list[tuple[str, str, Damage]]:
    """All cases in a random order that goes around the kinds of files, because some have many more lines."""
    kinds: dict[str, list[tuple[str, str, Damage]]] = collections.defaultdict(list)
    for case in rng.sample(cases, len(cases)):
        kinds[case[0].split("/")[-1].split(",")[0]].append(case)
    rounds = itertools.zip_longest(*kinds.values())
    return [case for one_round in rounds for case in one_round if case is not None]


def rows(cases: list[Case]) -> list[list[str]]:
    """The table: for every command, how often each outcome."""
    found = []
    for name, words in COMMANDS.items():
        counts = collections.Counter(getattr(case, name) for case in cases)
        found.append([words, str(len(cases)), *(str(counts[outcome]) for outcome in OUTCOMES)])
    return found


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(1, cases=flags.cases)

    def report(case: Case) -> None:
        if case.problem is not None:
            print(f"{case.place}: {case.damage}: {case.problem}", file=sys.stderr, flush=True)

    cases = fuzz(flags.cases, flags.seed, report)
    header = ["command", "tried", "worked on the newest", "worked on an older one", "refused", "failed"]
    print(common.markdown(header, rows(cases)))
    common.write_json(
        flags.json, {"flags": common.settings(flags), "machine": common.machine(), "cases": cases}
    )
    if any(case.problem for case in cases):
        sys.exit(1)


if __name__ == "__main__":
    main()
