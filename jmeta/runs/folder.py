"""The folder of a run.

config.json        everything that rebuilds the run; written last, so a folder with it is whole
environment.json   what it ran on
metrics.jsonl      one line a logged iteration: deterministic values only
timings.jsonl      wall-clock times of the same iterations
checkpoints/       see `jmeta.runs.checkpoints`
evaluation.json    the last evaluation

Numbers that are not finite are null: JSON has no others. Of several processes only the first one writes; the
others see the same folder where a run goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jmeta.runs import checkpoints, environment
from jmeta.runs.checkpoints import DamagedRunError
from jmeta.runs.config import RunConfig
from jmeta.types import PyTree


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run on disk. Make one with `create` or `open`.

    Attributes:
      path: the folder.
      config: the run's configuration.
    """

    path: pathlib.Path
    config: RunConfig

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: RunConfig) -> RunFolder:
        """Makes the folder of a new run and writes its configuration and environment.

        Raises:
          FileExistsError: if there is anything at `path`; see `check_free`. Nothing is changed.
        """
        path = pathlib.Path(path)
        if jax.process_index() == 0:
            check_free(path)
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "environment.json", environment.describe())
            write_atomically(path / "config.json", config.to_json())
        return cls(path, config)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Opens the folder of an existing run.

        Raises:
          FileNotFoundError: if there is no such folder.
          DamagedRunError: if it is not the folder of a run, or its configuration is damaged.
        """
        path = pathlib.Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no run folder {str(path)!r}")
        try:
            config = RunConfig.from_json((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DamagedRunError(f"run folder {str(path)!r} is damaged: config.json: {reason}") from error
        return cls(path, config)

    def append_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records {"iteration": ..., metric: value}; values are deterministic, never times."""
        _append(self.path / "metrics.jsonl", records)

    def append_timings(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records {"iteration": ..., time or speed: value}."""
        _append(self.path / "timings.jsonl", records)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All metrics records, NaN for null; a last line that was cut off while being written is left out.

        Raises:
          DamagedRunError: if another line is damaged.
        """
        return _read(self.path / "metrics.jsonl")

    def truncate_metrics(self, iteration: int, latest: int) -> None:
        """Drops metrics and timings beyond `iteration`, and a last line that was cut off.

        A run that resumes from the checkpoint of `iteration` writes those records again.

        Args:
          iteration: that of the last checkpoint, 0 without one.
          latest: how far the metrics can be ahead of it.

        Raises:
          DamagedRunError: if a line is damaged, or if the metrics are not those of iterations 1, 2, 3 and so
            on up to one from `iteration` to `latest`: some were lost, or a checkpoint. Nothing is changed.
        """
        done = [record["iteration"] for record in self.read_metrics()]
        if done != list(range(1, len(done) + 1)):
            raise DamagedRunError("metrics.jsonl is damaged: its iterations are not 1, 2, 3 and so on")
        if not iteration <= len(done) <= latest:
            last = (
                f"the last checkpoint is of iteration {iteration}" if iteration else "there is no checkpoint"
            )
            raise DamagedRunError(
                f"metrics.jsonl holds {len(done)} iterations, but {last}: files are missing"
            )
        paths = [self.path / name for name in ("metrics.jsonl", "timings.jsonl")]
        paths = [path for path in paths if path.exists()]
        kept = [[record for record in _read(path) if record["iteration"] <= iteration] for path in paths]
        if jax.process_index() == 0:
            for path, records in zip(paths, kept, strict=True):
                write_atomically(path, _lines(records))

    def latest_checkpoint(self) -> int | None:
        """The iteration of the last complete checkpoint; None if there is none."""
        return checkpoints.latest(self.path / "checkpoints")

    def save_checkpoint(self, iteration: int, tree: PyTree) -> None:
        """Writes a checkpoint and removes all but the last three; see `checkpoints.save`."""
        checkpoints.save(self.path / "checkpoints", iteration, tree)

    def restore_checkpoint(self, iteration: int, like: PyTree) -> PyTree:
        """Reads a checkpoint into a tree like `like`; see `checkpoints.restore`."""
        return checkpoints.restore(self.path / "checkpoints", iteration, like)


def check_free(path: pathlib.Path) -> None:
    """Raises FileExistsError unless a run can be created at `path`.

    It can where there is nothing, an empty folder, or what `RunFolder.create` leaves when it is killed.
    """
    leftovers = {"environment.json", "environment.json.tmp", "config.json.tmp"}
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= leftovers:
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{str(path)!r} already exists; choose another run folder, or --resume it")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise FileExistsError(f"{str(path)!r} cannot be a folder: {str(parent)!r} is a file")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is either whole or not there."""
    write_atomically(path, json.dumps(_strict(value), indent=2) + "\n")


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file that is either whole or, as far as it was there, the former one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(_strict(record)) + "\n" for record in records)


def _strict(value: Any) -> Any:
    """A JSON value with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _append(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    if jax.process_index() > 0:
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(_lines(records))


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
        del unfinished  # every whole line ends in a newline, so this is empty or cut off
        return [_record(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DamagedRunError(f"{path.name} is damaged: {error}") from error


def _record(line: str) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or type(record.get("iteration")) is not int:
        raise ValueError("a line is not the record of an iteration")
    return {name: math.nan if value is None else value for name, value in record.items()}
