"""The folder of a run.

config.json        everything that rebuilds the run; written last, so a folder with it is whole
environment.json   what it ran on
metrics.jsonl      one line a logged iteration: deterministic values only
timings.jsonl      wall-clock times of the same iterations
checkpoints/       see `jmeta.runs.checkpoints`
evaluation.json    the last evaluation
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

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
          FileExistsError: if `path` exists and is anything but an empty folder; nothing is changed.
        """
        path = pathlib.Path(path)
        check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "environment.json", environment.describe())
        _write_atomically(path / "config.json", config.to_json())
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
        """All metrics records; a last line that was cut off while being written is left out.

        Raises:
          DamagedRunError: if another line is damaged.
        """
        return _read(self.path / "metrics.jsonl")

    def truncate_metrics(self, iteration: int) -> None:
        """Drops metrics and timings beyond `iteration`, and a last line that was cut off.

        A run that resumes from the checkpoint of `iteration` writes those records again.
        """
        for name in ("metrics.jsonl", "timings.jsonl"):
            path = self.path / name
            if path.exists():
                kept = [record for record in _read(path) if record["iteration"] <= iteration]
                _write_atomically(path, _lines(kept))

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
    """Raises FileExistsError unless `path` does not exist or is an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{str(path)!r} already exists; choose another run folder, or --resume it")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise FileExistsError(f"{str(path)!r} cannot be a folder: {str(parent)!r} is a file")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is either whole or not there."""
    _write_atomically(path, json.dumps(value, indent=2) + "\n")


def _write_atomically(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _append(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_lines(records))


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    del unfinished  # every whole line ends in a newline, so this is empty or cut off
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise DamagedRunError(f"{path.name} is damaged: {error}") from error
