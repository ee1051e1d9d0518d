"""Mistakes of the user, which end a command with one line and no traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Something that the user can put right; the message is one line."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Bad values and files, found before anything runs, are for the user to correct."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(error) from error
