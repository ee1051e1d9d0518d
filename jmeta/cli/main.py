"""The entry point: chooses the command, and turns whatever ends it into one line and an exit status."""

from __future__ import annotations

import importlib
import re
import signal
import sys
from collections.abc import Sequence

from jmeta.cli.errors import Stopped, UserError, reason
from jmeta.cli.output import discard_output, print_anything

USAGE = """\
usage: jmeta list
       jmeta train ALGORITHM FAMILY [flags]
       jmeta train --resume --run-dir RUN_DIR [--iterations N]
       jmeta evaluate RUN_DIR [flags]

Meta-reinforcement learning in JAX.

  list      the algorithms, task families, policies and optimizers there are
  train     meta-train an algorithm on a task family
  evaluate  adapt a trained run to fresh tasks and tabulate the returns

`jmeta train ALGORITHM FAMILY --help` and `jmeta evaluate --help` list the flags.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after `jmeta`; by default those of the process.

    Returns:
      The exit status: 0; 2 for something that the user can put right (one line on standard error); 129, 130
      or 143 if SIGHUP, Ctrl-C or SIGTERM ended it; 1 if nobody reads the output any more.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    print_anything()
    try:
        status = _status(argv)
        sys.stdout.flush()  # now, since Python would only complain about a pipe that is closed
    except BrokenPipeError:  # as with `jmeta list | head -1`
        discard_output(sys.stdout, sys.stderr)
        return 1
    except OSError as error:  # as with `jmeta list > /dev/full`
        discard_output(sys.stdout)
        return _fail(f"error: {reason(error)}", 2)
    return status


def _status(argv: list[str]) -> int:
    try:
        _run(argv)
    except UserError as error:
        return _fail(f"error: {error}", 2)
    except Stopped as stop:
        return _fail(str(stop), 128 + stop.signum)
    except KeyboardInterrupt as interrupt:
        return _fail("; ".join(["interrupted", *map(str, interrupt.args)]), 128 + signal.SIGINT)
    except SystemExit as stop:  # --help, which tyro has printed
        return int(stop.code or 0)
    return 0


def _fail(message: str, status: int) -> int:
    """Says why in one line, if there is where to say it."""
    try:
        print("jmeta:", re.sub(r"\s*[\r\n]\s*", " ", message.strip()), file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr)
    return status


# Modules are imported by the command that needs them, so that `jmeta --help` waits for none.
_COMMANDS = {"list": "listing", "train": "train", "evaluate": "evaluate"}


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help") or argv == ["train", "--help"]:
        print(USAGE, end="")
    elif argv == ["--version"]:
        import jmeta

        print(jmeta.__version__)
    elif argv[0] in _COMMANDS:
        importlib.import_module(f"jmeta.cli.{_COMMANDS[argv[0]]}").main(argv[1:])
    else:
        from jmeta.runs.config import unknown

        raise UserError(unknown("command", argv[0], _COMMANDS))
