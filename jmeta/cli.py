"""The command line: parse, call, print.

Flags are the keyword-only arguments of the factories that the user chose, so no flag is declared here
except those of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn

import docstring_parser
import tyro

USAGE = """\
usage: jmeta list
       jmeta train ALGORITHM FAMILY [flags]
       jmeta train --resume --run-dir RUN_DIR
       jmeta evaluate RUN_DIR [flags]

Meta-reinforcement learning in JAX.

  list      the algorithms, task families, policies and optimizers there are
  train     meta-train an algorithm on a task family
  evaluate  adapt a trained run to fresh tasks and tabulate the returns

`jmeta train ALGORITHM FAMILY --help` and `jmeta evaluate --help` list the flags.
"""
_KIND_OF_NAME = {"optimizer.name": "optimizer", "policy.name": "policy"}
_TITLES = {
    "algorithm": "Algorithms",
    "family": "Task families",
    "policy": "Policies",
    "optimizer": "Optimizers",
}


class UserError(Exception):
    """Something that the user can put right; the message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: words after `jmeta`; those of the process by default.

    Returns:
      The exit status: 0, 2 for a mistake of the user (one line on standard error), 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(argv)
    except UserError as error:
        return _fail(f"error: {error}", 2)
    except KeyboardInterrupt as interrupt:
        return _fail(" ".join(["interrupted", *map(str, interrupt.args)]), 130)
    return 0


def _fail(message: str, status: int) -> int:
    print("jmeta:", " ".join(message.split()), file=sys.stderr)
    return status


def _run(argv: list[str]) -> None:
    commands = {"list": list_components, "train": train, "evaluate": evaluate}
    if not argv or argv[0] in ("-h", "--help", "help") or argv == ["train", "--help"]:
        print(USAGE, end="")
    elif argv == ["--version"]:
        import jmeta

        print(jmeta.__version__)
    elif argv[0] in commands:
        commands[argv[0]](argv[1:])
    else:
        from jmeta.runs.config import unknown

        raise UserError(unknown("command", argv[0], commands))


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Bad values and files, met before anything runs, are the user's to put right."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(error) from error


# -- jmeta list ---------------------------------------------------------------------------------------


def list_components(argv: list[str]) -> None:
    """Prints the names in the registries with the first lines of their docstrings."""
    from rich.console import Console

    from jmeta.reporting.tables import components_table
    from jmeta.runs.config import registry

    _parse(dataclasses.make_dataclass("List", []), argv, "jmeta list", "Lists what there is.")
    console = Console()
    for kind, title in _TITLES.items():
        rows = [(name, _summary(make)) for name, make in registry(kind).items()]  # type: ignore[arg-type]
        console.print(components_table(title, rows))
        console.print()


# -- jmeta train --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Resume:
    """Flags of a run that goes on."""

    run_dir: str
    """Folder of the run, which goes on with its own settings."""
    resume: bool
    """Go on from the last checkpoint."""


def train(argv: list[str]) -> None:
    """Meta-trains in a new run folder, or goes on in an existing one."""
    from rich.console import Console

    from jmeta import runtime
    from jmeta.reporting.progress import ProgressReporter
    from jmeta.runs import config as configs
    from jmeta.runs import folder as folders

    names = [word for word in argv[:2] if not word.startswith("-")][: 2 if argv[:1] != [] else 0]
    with _user_errors():
        if "--resume" in argv:
            flags = _parse(Resume, argv[len(names) :], "jmeta train --resume", "Goes on with a run.")
            run = folders.RunFolder.open(flags.run_dir)
            config = run.config
            own = [config.algorithm["name"], config.family["name"]]
            if names and names != own:
                raise ValueError(f"run {flags.run_dir!r} is of {' '.join(own)}, not of {' '.join(names)}")
            num_tasks_given = False
        else:
            if len(names) < 2:
                raise ValueError("give ALGORITHM and FAMILY first: jmeta train ALGORITHM FAMILY [flags]")
            config, run_dir = _train_config(names[0], names[1], argv[2:])
            num_tasks_given = any(re.match(r"--tasks(=|$)", word) for word in argv)
            folders.check_free(run_dir)
        training = config.training
        runtime.configure(num_tasks=None if num_tasks_given else training.num_tasks)
        _check_devices(training.num_tasks)
        family, _, algorithm = configs.build(config)
        if "--resume" not in argv:
            run = folders.RunFolder.create(run_dir, config)

    from jmeta.training import train as run_training

    console = Console(stderr=True)
    console.print(f"run folder: {run.path}", soft_wrap=True, highlight=False)
    try:
        with ProgressReporter(console, training.iterations) as progress:
            run_training(
                algorithm, family, **dataclasses.asdict(training), run=run, callback=progress
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; go on with: jmeta train --resume --run-dir {run.path}") from None


def _train_config(algorithm: str, family: str, argv: list[str]) -> tuple[Any, pathlib.Path]:
    """The configuration and run folder that a preset and the flags ask for."""
    from jmeta.presets import preset
    from jmeta.runs import config as configs

    defaults = preset(algorithm, family)
    components = {
        "policy": _component_flags("policy", defaults.policy, argv),
        "family": _hyperparameter_flags("family", defaults.family, argv),
    }
    run_flags = {
        "iterations": (int, defaults.training.iterations, "meta-iterations in all"),
        "tasks": (int, defaults.training.num_tasks, "tasks in a meta-batch, a multiple of the devices"),
        "seed": (int, defaults.training.seed, "of everything random in the run"),
        "log_every": (int, defaults.training.log_every, "meta-iterations between lines of metrics"),
        "checkpoint_every": (
            int,
            defaults.training.checkpoint_every,
            "meta-iterations between checkpoints, a multiple of --log-every",
        ),
        "run_dir": (str | None, None, "new folder of the run; runs/ALGORITHM-FAMILY-SEED by default"),
    }
    own = _hyperparameter_flags("algorithm", defaults.algorithm, argv)
    fields = [
        *(_field(name, kind, default, text) for name, (kind, default, text) in run_flags.items()),
        *own,
        *((name, kind, dataclasses.field(default_factory=kind)) for name, kind in ()),
        *(_nested(name, fields) for name, fields in components.items()),
    ]
    flags = _parse(
        _dataclass("Train", fields),
        argv,
        f"jmeta train {algorithm} {family}",
        _summary(configs.factory("algorithm", algorithm)),
    )
    return flags, pathlib.Path()
