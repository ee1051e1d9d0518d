"""The folder of a run.

config.json        everything that rebuilds the run; written last, so a folder with it is whole
environment.json   what it ran on
metrics.jsonl      one line per iteration: deterministic values only
timings.jsonl      wall-clock times of the same iterations
evaluations.jsonl  one line per evaluation while training: deterministic values only
checkpoints/       see `jmeta.runs.checkpoints`
best.json          which checkpoint had the highest return on held-out tasks, and that return
evaluation.json    the last evaluation: means and intervals
evaluation.npz     every episode of it, with its task
lock               empty; locked by the process that trains, see `jmeta.runs.files.Lock`

Numbers that are not finite are null: JSON has no others. Of several processes only the first one writes; the
others see the same folder where a run goes on. Reading needs no lock, also while the run is trained.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax

from jmeta.runs import checkpoints, environment, files
from jmeta.runs.checkpoints import DamagedRunError
from jmeta.runs.config import RunConfig
from jmeta.types import PyTree

_LONGEST_LINE = 2**20  # bytes of a record


class Restored(NamedTuple):
    """What was read of a run."""

    iteration: int  # of the checkpoint; 0 without one
    tree: PyTree  # its content; None where the run starts from its beginning
    notes: tuple[str, ...]  # why newer checkpoints were passed over and what else was left out, a line each


class Best(NamedTuple):
    """The best checkpoint of a run."""

    iteration: int
    mean_return: float  # on held-out tasks


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run on disk. Make one with `create` or `open`.

    Attributes:
      path: the folder.
      config: the run's configuration.
    """

    path: pathlib.Path
    config: RunConfig

    @functools.cached_property
    def lock(self) -> files.Lock:
        """`with run.lock:` whoever writes metrics and checkpoints; RunInUseError if another process does."""
        return files.Lock(self.path / "lock")

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: RunConfig, start: PyTree | None = None
    ) -> RunFolder:
        """Makes the folder of a new run and writes its configuration and environment.

        Args:
          path: where there is nothing yet.
          config: the run's configuration.
          start: saved as the checkpoint of iteration 0, for a run that does not start as its configuration
            says. The configuration is written last, so a run without its start is no run.

        Raises:
          FileExistsError: there is something at `path`; see `check_free`. Nothing is changed.
          RunInUseError: another process makes the same run.
          ValueError: `path` is not the path of a local folder; see `files.local_path`.
        """
        run = cls(files.local_path(path), config)
        if jax.process_index() == 0:
            check_free(run.path)
            run.path.mkdir(parents=True, exist_ok=True)
            with run.lock:
                check_free(run.path)
                run._remove_temporaries()
                files.write_json(run.path / "environment.json", environment.describe())
                if start is not None:
                    run.save_checkpoint(0, start)
                run.write_config()
            files.sync_folder(run.path.parent)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Opens the folder of an existing run.

        Raises:
          FileNotFoundError: there is no such folder.
          DamagedRunError: it is not the folder of a run, or its configuration is damaged.
          ValueError: `path` is not the path of a local folder; see `files.local_path`.
        """
        path = files.local_path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no run folder {str(path)!r}")
        try:
            config = RunConfig.from_json(files.read_text(path / "config.json"))
        except (OSError, ValueError) as error:
            reason = f"config.json: {files.reason(error)}"
            raise DamagedRunError(f"run folder {str(path)!r} is damaged: {reason}") from error
        return cls(path, config)

    def write_config(self) -> None:
        """Replaces the configuration on the disk by this one, for instance to train longer."""
        if jax.process_index() == 0:
            files.write_atomically(self.path / "config.json", self.config.to_json().encode())

    # -- records

    def append_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records {"iteration": ..., metric: value}; values are deterministic, never times."""
        self._append("metrics.jsonl", records)

    def append_timings(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records {"iteration": ..., time or speed: value}."""
        self._append("timings.jsonl", records)

    def append_evaluations(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records {"iteration": ..., value of an evaluation: ...}; values are deterministic."""
        self._append("evaluations.jsonl", records)

    def read_evaluations(self) -> list[dict[str, Any]]:
        """All records of evaluations while training; see `read_metrics`."""
        return [record for record, _ in _records(self.path / "evaluations.jsonl")]

    def read_metrics(self) -> list[dict[str, Any]]:
        """All metrics records, NaN for null; a last line that was cut off while being written is left out.

        Raises:
          DamagedRunError: another line is damaged.
        """
        return [record for record, _ in _records(self.path / "metrics.jsonl")]

    # -- checkpoints

    def latest_checkpoint(self) -> int | None:
        """The iteration of the newest checkpoint, which `restore` may find damaged; None if there is none."""
        return max(self._iterations(), default=None)

    def best_checkpoint(self) -> Best | None:
        """The best checkpoint and its return; None if none was marked.

        Raises:
          DamagedRunError: best.json is damaged.
        """
        try:
            content = files.parse_json(files.read_text(self.path / "best.json"))
            if not isinstance(content, dict) or sorted(content) != ["iteration", "return"]:
                raise ValueError("it has not exactly the keys iteration and return")
            iteration, mean_return = content["iteration"], content["return"]
            if type(iteration) is not int or iteration < 0:
                raise ValueError("its iteration is no number of iterations")
            if type(mean_return) not in (int, float) or not math.isfinite(mean_return):
                raise ValueError("its return is no finite number")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, OverflowError) as error:
            reason = "its return is too large" if isinstance(error, OverflowError) else files.reason(error)
            raise DamagedRunError(f"best.json is damaged: {reason}") from error
        return Best(iteration, float(mean_return))

    def mark_best(self, iteration: int, mean_return: float) -> bool:
        """Makes a checkpoint the best one if its return is higher than that of the best so far.

        Args:
          iteration: of a checkpoint.
          mean_return: on held-out tasks; one that is not finite is never the best.

        Returns:
          Whether it is the best one now.

        Raises:
          ValueError: there is no such checkpoint.
        """
        self._check_exists(iteration)
        best = self.best_checkpoint()
        if not math.isfinite(mean_return) or (best is not None and mean_return <= best.mean_return):
            return False
        if jax.process_index() == 0:
            files.write_json(self.path / "best.json", {"iteration": iteration, "return": mean_return})
        return True

    def save_checkpoint(self, iteration: int, tree: PyTree) -> None:
        """Writes a checkpoint; the last three and the best one stay. See `checkpoints.save`.

        The records so far are on the disk before it is.
        """
        best = self.best_checkpoint()
        if jax.process_index() == 0:
            for name in ("metrics.jsonl", "evaluations.jsonl"):
                files.sync_file(self.path / name)
        keep = () if best is None else (best.iteration,)
        checkpoints.save(self.path / "checkpoints", iteration, tree, keep)

    def restore(self, which: int | Literal["last", "best"], like: PyTree) -> Restored:
        """Reads a checkpoint into a tree like `like`, bit for bit; nothing is changed.

        The run may be in training at the same time: "last" is the newest checkpoint at the moment of reading,
        "best" the best one then.

        Args:
          which: an iteration, "best", or "last": the newest one that is whole.
          like: a tree of the same structure, shapes and dtypes, or of `jax.ShapeDtypeStruct`s.

        Raises:
          ValueError: there is no such checkpoint; the message lists those there are.
          DamagedRunError: it is damaged or does not belong to the run's configuration.
        """
        if which == "last":
            return self._restore_last(like)
        if which == "best":
            return self._restore_best(like)
        return self._restore_one(which, like)

    def resume(self, like: PyTree, checkpoint_every: int) -> Restored:
        """Reads the newest checkpoint from which the run can go on, and drops what was written after it.

        It can go on from a checkpoint that is whole and whose iterations all have whole records, or from the
        beginning if no checkpoint was written yet. Call it with the lock. A run that is finished and
        whole is left as it is, bit for bit.

        Args:
          like: see `restore`.
          checkpoint_every: iterations between checkpoints.

        Raises:
          DamagedRunError: it cannot go on from any checkpoint. Nothing is changed.
        """
        ends, problem = _numbered(self.path / "metrics.jsonl")
        iteration, tree, passed_over = self._newest_to_go_on_from(
            like, len(ends) - 1, problem, checkpoint_every
        )
        notes = list(passed_over)
        forget_best = self._outdated_best(iteration, notes)
        cuts = {"metrics.jsonl": ends[iteration]}
        for name in ("timings.jsonl", "evaluations.jsonl"):
            cuts[name] = self._end_of_records(name, iteration, notes)
        if jax.process_index() == 0:
            self._remove_temporaries()
            for name, end in cuts.items():
                if (self.path / name).exists():
                    files.truncate(self.path / name, end)
            if forget_best:
                (self.path / "best.json").unlink()
        return Restored(iteration, tree, tuple(notes))

    def _newest_to_go_on_from(
        self, like: PyTree, logged: int, problem: str | None, checkpoint_every: int
    ) -> Restored:
        """The newest whole checkpoint of an iteration that was logged, or the beginning; see `resume`."""
        holds = problem or f"metrics.jsonl holds {logged} iterations"
        there = self._iterations()
        beyond = [iteration for iteration in there if iteration > logged]
        notes = [f"checkpoints newer than the records ({_list(beyond)}): {holds}"] if beyond else []
        for iteration in there[: len(there) - len(beyond)][::-1]:
            try:
                tree = checkpoints.restore(self.path / "checkpoints", iteration, like)
            except DamagedRunError as error:
                notes.append(str(error))
                continue
            if logged > iteration + checkpoint_every and not notes:
                notes.append(f"{holds}, but the newest checkpoint is of iteration {iteration}")
            return Restored(iteration, tree, tuple(notes))
        if notes or problem or logged > checkpoint_every:
            found = "; ".join(notes) or f"{holds}, but there is no checkpoint"
            raise DamagedRunError(f"run folder {str(self.path)!r} cannot go on: {found}")
        return Restored(0, None, ())

    def _restore_last(self, like: PyTree) -> Restored:
        notes: list[str] = []
        left = there = self._iterations()
        while left:
            *left, iteration = left
            try:
                tree = checkpoints.restore(self.path / "checkpoints", iteration, like)
                return Restored(iteration, tree, tuple(notes))
            except DamagedRunError as error:
                notes.append(str(error))
            if there != (now := self._iterations()):  # it may have been removed because there are newer ones
                notes, left, there = [], now, now
        if notes:
            raise DamagedRunError(
                f"run folder {str(self.path)!r} has no whole checkpoint: {'; '.join(notes)}"
            )
        raise ValueError(f"run folder {str(self.path)!r} has no checkpoint yet")

    def _restore_best(self, like: PyTree) -> Restored:
        while (best := self.best_checkpoint()) is not None:
            try:
                return self._restore_one(best.iteration, like)
            except ValueError:
                if self.best_checkpoint() == best:  # otherwise a better one has taken its place
                    raise
        raise ValueError(f"run folder {str(self.path)!r} has no best checkpoint: it {self._listed()}")

    def _restore_one(self, iteration: int, like: PyTree) -> Restored:
        self._check_exists(iteration)
        try:
            return Restored(iteration, checkpoints.restore(self.path / "checkpoints", iteration, like), ())
        except DamagedRunError as error:
            self._check_exists(iteration)  # it may have been removed because there are newer ones
            raise DamagedRunError(f"{error}; run folder {str(self.path)!r} {self._listed()}") from error

    def _iterations(self) -> list[int]:
        try:
            return checkpoints.iterations(self.path / "checkpoints")
        except OSError as error:
            raise DamagedRunError(f"checkpoints is damaged: {files.reason(error)}") from error

    def _check_exists(self, iteration: int) -> None:
        if iteration not in self._iterations():
            raise ValueError(
                f"run folder {str(self.path)!r} has no checkpoint {iteration}: it {self._listed()}"
            )

    def _listed(self) -> str:
        there = self._iterations()
        return f"has checkpoints {_list(there)}" if there else "has no checkpoint yet"

    def _outdated_best(self, iteration: int, notes: list[str]) -> bool:
        """Whether best.json must go: it is damaged, or its checkpoint is gone or yet to come."""
        try:
            best = self.best_checkpoint()
        except DamagedRunError as error:
            path = self.path / "best.json"
            if path.is_dir() and not path.is_symlink():
                raise
            notes.append(f"{error}; the best checkpoint is chosen again")
            return True
        if best is None or best.iteration in self._iterations():
            return best is not None and best.iteration > iteration
        if best.iteration <= iteration:
            gone = f"best.json names checkpoint {best.iteration}, which is gone"
            notes.append(f"{gone}; the best checkpoint is chosen again")
        return True

    def _end_of_records(self, name: str, iteration: int, notes: list[str]) -> int:
        """How many bytes of a file are whole records up to an iteration."""
        end = 0
        try:
            for record, end_of_line in _records(self.path / name):
                if record["iteration"] > iteration:
                    break
                end = end_of_line
        except _DamagedLineError as error:  # the run itself does not depend on them
            notes.append(f"{error}; the records from there on are dropped")
        return end

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        if jax.process_index() == 0:
            files.append(self.path / name, "".join(map(files.json_text, records)).encode())

    def _remove_temporaries(self) -> None:
        """Removes what a killed process left of files that only the holder of the lock writes."""
        for entry in files.entries(self.path):
            ours = files.is_temporary(entry.name) and not entry.name.startswith("evaluation")
            if ours and entry.is_file(follow_symlinks=False):
                pathlib.Path(entry.path).unlink()


def check_free(path: pathlib.Path) -> None:
    """Raises FileExistsError unless a run can be created at `path`.

    It can where there is nothing, an empty folder, or what `RunFolder.create` leaves when it is killed.
    """
    if path.is_dir():
        names = {entry.name for entry in files.entries(path)}
        leftovers = ("environment.json", "lock", "checkpoints")
        if all(name in leftovers or files.is_temporary(name) for name in names):
            return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{str(path)!r} already exists; choose another run folder, or --resume it")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise FileExistsError(f"{str(path)!r} cannot be a folder: {str(parent)!r} is a file")


def _list(iterations: Iterable[int]) -> str:
    return ", ".join(map(str, iterations))


class _DamagedLineError(DamagedRunError):
    """A file of records can be read, but one of its lines is damaged."""


def _records(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The records of a file, line by line, each with the number of bytes up to its end."""
    try:
        with files.open_file(path) as file:
            end = 0
            for number in itertools.count(1):
                line = file.readline(_LONGEST_LINE)
                if not line.endswith(b"\n"):
                    if len(line) == _LONGEST_LINE:
                        raise _DamagedLineError(f"{path.name} is damaged: line {number} is too long")
                    return  # the end, or a line that was cut off while it was written
                try:
                    record = _record(line)
                except ValueError as error:
                    raise _DamagedLineError(f"{path.name} is damaged: line {number}: {error}") from error
                end += len(line)
                yield record, end
    except FileNotFoundError:
        return
    except OSError as error:
        raise DamagedRunError(f"{path.name} is damaged: {files.reason(error)}") from error


def _record(line: bytes) -> dict[str, Any]:
    record = files.parse_json(line.decode())
    if not isinstance(record, dict) or type(record.get("iteration")) is not int:
        raise ValueError("it is not the record of an iteration")
    return {name: math.nan if value is None else value for name, value in record.items()}


def _numbered(path: pathlib.Path) -> tuple[list[int], str | None]:
    """The bytes up to the end of records 0, 1, 2 and so on, and what is wrong with the one that follows."""
    ends = [0]
    try:
        for record, end in _records(path):
            if record["iteration"] != len(ends):
                found = record["iteration"]
                return ends, f"{path.name} is damaged: iteration {found} follows {len(ends) - 1}"
            ends.append(end)
    except _DamagedLineError as error:
        return ends, str(error)
    return ends, None
