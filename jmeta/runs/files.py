"""Reading and writing the files of a run: the only code that opens them.

A file of a run may be damaged, or replaced by anything: a link, a folder, a device, gigabytes of zeros.
So only regular files are opened, never links, and nothing is read before its size is known to be bearable.
What is written is on the disk when the function returns (`fsync`), and a file that is replaced is, at every
moment, either the old one or the new one. Every failure is an OSError or a ValueError of one line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax

_LOGGER = logging.getLogger(__name__)
_LARGEST_TEXT = 2**24  # bytes; no file that is read as a whole comes near
_DEEPEST_JSON = 16  # objects and lists within one another
_TEMPORARY = re.compile(r".+\.[0-9a-f]{8}\.tmp")


class RunInUseError(OSError):
    """Another process writes this run folder."""


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path as users write it, with `~` expanded. Every path that a user gives passes through here.

    Raises:
      ValueError: the path is empty, a URL, or names the home folder of nobody.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("path must not be empty")
    if "\0" in text:
        raise ValueError(f"path must not contain a zero byte, got {text!r}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # a `pathlib.Path` has made one slash of two
        raise ValueError(f"path must be a local path, not a URL, got {text!r}: mount the storage first")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"path must start with the home folder of a known user, got {text!r}")
    return pathlib.Path(expanded)


# -- reading ------------------------------------------------------------------------------------------


def open_file(path: pathlib.Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """Opens a regular file; OSError if it is anything else. Without waiting, as opening a pipe would."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "is a link, not a file", str(path)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a file", str(path))
        return os.fdopen(descriptor, "ab" if flags & os.O_APPEND else "r+b" if flags & os.O_RDWR else "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: pathlib.Path) -> str:
    """The text of a small file.

    Raises:
      OSError: the file cannot be read, or is far larger than such files are.
      ValueError: it is not UTF-8.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_TEXT:
            raise OSError(errno.EFBIG, f"is too large: {size} bytes", str(path))
        return file.read().decode()


def parse_json(text: str) -> Any:
    """Reads JSON as its standard has it: no NaN, no infinity, no name twice; ValueError otherwise."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        _check_depth(value, _DEEPEST_JSON)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return value


def reason(error: OSError | ValueError) -> str:
    """Why something could not be read or written, without the path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} occurs twice")
    return found


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError("is nested too deeply")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


# -- writing ------------------------------------------------------------------------------------------


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON; numbers that are not finite are null, because JSON has no others."""
    return json.dumps(_strict(value), indent=indent) + "\n"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file; see `write_atomically`."""
    write_atomically(path, json_text(value, indent=2).encode())


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file: whatever happens, `path` holds its former content or the new one.

    Raises:
      OSError: it cannot be written, for instance because the disk is full; it names `path`, which is as it
        was.
    """
    temporary = path.with_name(
        f"{path.name}.{secrets.token_hex(4)}.tmp"
    )  # nothing of that name is in the way
    try:
        with temporary.open("xb") as file:
            file.write(content)
            sync(file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def append(path: pathlib.Path, content: bytes) -> None:
    """Adds to the end of a file, which is made if there is none. It is not synchronized; see `sync_file`."""
    with open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
        file.write(content)


def truncate(path: pathlib.Path, size: int) -> None:
    """Cuts a file down to its first bytes; needs no space on the disk."""
    with open_file(path, os.O_RDWR) as file:
        if os.fstat(file.fileno()).st_size > size:
            file.truncate(size)
            sync(file)


def sync(file: BinaryIO) -> None:
    """Waits until what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_file(path: pathlib.Path) -> None:
    """Waits until a file, if there is one, is on the disk."""
    with contextlib.suppress(FileNotFoundError), open_file(path) as file:
        os.fsync(file.fileno())


def sync_folder(path: pathlib.Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what `write_atomically` leaves when its process is killed."""
    return _TEMPORARY.fullmatch(name) is not None


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- the lock -----------------------------------------------------------------------------------------


class Lock(contextlib.AbstractContextManager[None]):
    """Whoever is within it is the only process that writes a run folder.

    The lock is one of the kernel (`flock`) on the file `lock` of the folder: it ends with the process,
    whatever ends that. It may be entered again by the object that holds it. Of the processes of one
    distributed run only the first writes, and so only the first takes it.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._depth = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> None:
        """Raises RunInUseError if another process, or another object of this one, holds the lock."""
        if self._depth == 0 and jax.process_index() == 0:
            self._file = self._take()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """Gives the lock back where it was first entered."""
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            self._file.close()
            self._file = None

    def _take(self) -> BinaryIO:
        import fcntl

        file = open_file(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            folder = str(self._path.parent)
            raise RunInUseError(f"run folder {folder!r} is in use: another process trains in it") from None
        except OSError as error:  # some network file systems have no locks
            _LOGGER.warning("run folder %r cannot be locked: %s", str(self._path.parent), reason(error))
        return file


def entries(folder: pathlib.Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds; nothing if there is no folder. OSError if it is something else."""
    try:
        with os.scandir(folder) as found:
            yield from found
    except FileNotFoundError:
        if folder.is_symlink():
            raise OSError(errno.ENOENT, "is a link to nothing", str(folder)) from None
