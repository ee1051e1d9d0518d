"""`jmeta train`: its flags. None is declared here except those of the run itself."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import typing

from jmeta.cli.errors import user_errors
from jmeta.cli.flags import (
    component_field,
    field,
    first_line,
    flags_class,
    hyperparameter_fields,
    nested_field,
    parse,
    positionals,
    value_of,
)
from jmeta.cli.start import Processes

if typing.TYPE_CHECKING:
    from jmeta.cli.run import Request
    from jmeta.runs.config import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class New(Processes):
    """Flags of a new run that its configuration does not hold."""

    run_dir: str | None = None
    """New folder; by default a fresh runs/ALGORITHM-FAMILY-SEED."""
    init_from: str | None = None
    """RUN, RUN@best or RUN@ITERATION: start from the parameters in the last, the best or that checkpoint of
    another run. The state of the optimizer is fresh."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume(Processes):
    """Flags of a run that goes on."""

    run_dir: str
    """Folder of the run, which goes on from its last checkpoint with its own settings."""
    iterations: int | None = None
    """Meta-iterations in all from now on, for instance to train a finished run further."""


def main(argv: list[str]) -> None:
    """Meta-trains in a new run folder, or goes on in an existing one."""
    with user_errors():
        request = _resumed_run(argv) if "--resume" in argv else _new_run(argv)
        processes = request.processes
        if not processes.launcher and not processes.distributed and processes.addresses != (None, None, None):
            raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
    if processes.launcher is None:
        from jmeta.cli.run import train_run

        train_run(request)
    else:
        _launch(request)


def _launch(request: Request) -> None:
    from jmeta import launcher
    from jmeta.cli.run import train_run

    def work(coordinator: str, process_id: int) -> None:
        own = dataclasses.replace(
            request.processes, distributed=True, coordinator=coordinator, process_id=process_id
        )
        train_run(dataclasses.replace(request, processes=own))

    processes = request.processes
    with user_errors():
        if processes.num_processes is None or processes.coordinator or processes.process_id is not None:
            raise ValueError(
                "--launcher needs --num-processes, and gives --coordinator and --process-id itself"
            )
        request = request.absolute()
        launcher.launch(work, processes.num_processes)


def _resumed_run(argv: list[str]) -> Request:
    from jmeta.cli.run import Request
    from jmeta.runs.folder import RunFolder

    argv = [word for word in argv if word != "--resume"]
    names = positionals(argv)
    flags = parse(Resume, argv[len(names) :], "jmeta train --resume", "Goes on with a run.")
    run = RunFolder.open(flags.run_dir)
    config = run.config
    own = [config.algorithm["name"], config.family["name"]]
    if names not in ([], own):
        raise ValueError(f"run folder {flags.run_dir!r} is of {' '.join(own)}, not of {' '.join(names)}")
    if flags.iterations is not None:
        training = dataclasses.replace(config.training, iterations=flags.iterations)
        config = dataclasses.replace(config, training=training)
    return Request(run.path, config, flags, resumed=True)


def _new_run(argv: list[str]) -> Request:
    from jmeta.cli.run import Request, Source, numbered_path
    from jmeta.runs.files import local_path
    from jmeta.runs.folder import check_free

    names = positionals(argv)
    if len(names) != 2:
        raise ValueError("give ALGORITHM and FAMILY first: jmeta train ALGORITHM FAMILY [flags]")
    config, flags = _configure_run(names[0], names[1], argv[2:])
    numbered = flags.run_dir is None
    path = local_path(flags.run_dir or numbered_path(pathlib.Path("runs"), config))
    check_free(path)
    source = None if flags.init_from is None else Source.parse(flags.init_from)
    return Request(path, config, flags, resumed=False, source=source, numbered=numbered)


def _configure_run(algorithm: str, family: str, argv: list[str]) -> tuple[RunConfig, New]:
    """The configuration that the preset and the flags ask for, and the other flags."""
    from jmeta.presets import preset
    from jmeta.runs.config import factory, resolve

    # `--policy gru` is short for `--policy.name gru`.
    argv = [re.sub(r"^--(policy|optimizer)(?==|$)", r"--\1.name", word) for word in argv]
    chosen = {"optimizer": value_of("--optimizer.name", argv), "inner": value_of("--inner", argv)}
    defaults = preset(algorithm, family, **chosen)
    training = defaults.training
    fields = [
        field("iterations", int, training.iterations, "meta-iterations in all"),
        field("tasks", int, training.num_tasks, "tasks in a meta-batch, any number"),
        field("seed", int, training.seed, "of everything random in the run"),
        field("log_every", int, training.log_every, "meta-iterations in one compiled call, then logged"),
        field("checkpoint_every", int, training.checkpoint_every, "a multiple of --log-every"),
        field(
            "evaluate_every",
            int | None,
            training.evaluate_every,
            "a multiple of --log-every: evaluate then"
            " on held-out tasks, or on fresh ones if the family has none, and keep the best checkpoint",
        ),
        *hyperparameter_fields("algorithm", defaults.algorithm, argv),
        component_field("policy", "policy", defaults.policy, argv),
        nested_field("family", hyperparameter_fields("family", defaults.family, argv)),
    ]
    summary = first_line(factory("algorithm", algorithm))
    known = flags_class("train", fields, New)
    flags = dataclasses.asdict(parse(known, argv, f"jmeta train {algorithm} {family}", summary))
    options = New(**{field.name: flags.pop(field.name) for field in dataclasses.fields(New)})
    names = {"tasks": "num_tasks"}
    run_flags = ("iterations", "tasks", "seed", "log_every", "checkpoint_every", "evaluate_every")
    config = resolve(
        training={names.get(name, name): flags.pop(name) for name in run_flags},
        policy=flags.pop("policy"),
        family={"name": family, **flags.pop("family")},
        algorithm={"name": algorithm, **flags},
    )
    return config, options
