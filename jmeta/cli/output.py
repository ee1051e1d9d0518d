"""What a command prints, whatever the terminal can show."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import shlex
import sys
import typing
import unicodedata

if typing.TYPE_CHECKING:
    import pathlib
    from typing import TextIO

    from rich.console import Console

_PLAIN = {"→": "->", "←": "<-", "—": "-", "–": "-", "−": "-", "…": "...", "×": "x", "ε": "e", "λ": "lambda"}
_PLAIN |= {"‘": "'", "’": "'", "“": '"', "”": '"'}


def print_anything() -> None:
    """Makes the standard streams write what their encoding lacks in plainer characters, or as `?`.

    UTF-8 lacks something as well: bytes of a path that are no text. A stream that is closed, as by the
    shell's `>&-`, swallows everything.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    codecs.register_error("jmeta", _plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="jmeta")


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints text as it is: no brackets, colons or numbers in it mean anything."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)


def say(out: Console, text: str) -> None:
    """Prints a line with all of its white space, where Rich would wrap it and expand tabs."""
    from rich.segment import Segment, Segments

    out.print(Segments([Segment(text), Segment.line()]), soft_wrap=True)


def shell_word(path: pathlib.Path) -> str:
    """A path as the shell reads it, and as no flag."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def discard_output(*streams: TextIO) -> None:
    """Points streams at nothing, so that writing or flushing them does not fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):  # a stream in memory has no number
            os.dup2(nothing, stream.fileno())
    os.close(nothing)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(map(_plain, found)), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if 0x2500 <= ord(character) < 0x2580:  # box drawing
        return "-" if "HORIZONTAL" in unicodedata.name(character).split() else "|"
    text = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return text or "?"
