"""What ends a command with one line and an exit status instead of a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Something that the user can put right; the message is one line."""


class Stopped(Exception):
    """A signal asked a run to end, and it has ended; the message says how to resume.

    Args:
      message: one line.
      signum: the number of the signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def user_errors(kinds: tuple[type[Exception], ...] = (ValueError, OSError), hint: str = "") -> Iterator[None]:
    """Turns exceptions into errors for the user to correct.

    Args:
      kinds: of exceptions; by default bad values and everything that the system refuses, such as files.
      hint: the end of the message.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more: see `main`
        raise
    except kinds as error:
        raise UserError(f"{reason(error)}{hint}") from error


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turns the many ways to say that there is too little memory into one line, which ends in an advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # XLA's errors are of the latter kind
        short = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
        if isinstance(error, MemoryError) or any(words in str(error) for words in short):
            raise UserError(f"there is too little memory: {advice}") from error
        raise


def reason(error: Exception) -> str:
    """The message of an error; of one that the system reports, without its number."""
    if isinstance(error, OSError) and error.strerror:
        path = "" if error.filename is None else f"{error.filename!r}: "
        return path + error.strerror
    return str(error) or type(error).__name__
