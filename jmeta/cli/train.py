"""`jmeta train`. No flag is declared here except those of the run itself."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import shlex
import typing
from typing import Literal

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
from jmeta.cli.output import console
from jmeta.cli.start import start_jax

if typing.TYPE_CHECKING:
    from jmeta.runs.config import RunConfig
    from jmeta.runs.folder import RunFolder
    from jmeta.types import MetaAlgorithm, TaskFamily


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Flags of how a run is started, which its configuration does not hold."""

    distributed: bool = False
    """Train with other processes, each started with these words, over the devices of all."""
    coordinator: str | None = None
    """HOST:PORT of process 0. It and the next two come from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or from Slurm, if none is given."""
    num_processes: int | None = None
    """Processes of the run."""
    process_id: int | None = None
    """This one, counted from 0, which alone prints and writes."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process is given up, and the run with it."""
    launcher: Literal["ray"] | None = None
    """Start --num-processes of them as workers of a Ray cluster, over the devices of all."""

    @property
    def addresses(self) -> tuple[str | None, int | None, int | None]:
        """What `runtime.connect` takes."""
        return self.coordinator, self.num_processes, self.process_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume(Processes):
    """Flags of a run that goes on."""

    run_dir: str
    """Folder of the run, which goes on from its last checkpoint with its own settings."""


def main(argv: list[str]) -> None:
    """Meta-trains in a new run folder, or goes on in an existing one."""
    resumed = "--resume" in argv
    with user_errors():
        run, processes = _resumed_run(argv) if resumed else _new_run(argv)
        if not processes.launcher and not processes.distributed and processes.addresses != (None, None, None):
            raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
    if processes.launcher is None:
        every_core = processes.distributed or value_of("--tasks", argv) is not None
        _train(run, resumed, processes, every_core)
    else:
        _launch(run, resumed, processes)


def _launch(run: RunFolder, resumed: bool, processes: Processes) -> None:
    from jmeta import launcher

    def work(coordinator: str, process_id: int) -> None:
        own = dataclasses.replace(processes, distributed=True, coordinator=coordinator, process_id=process_id)
        _train(run, resumed, own, every_core=True)

    with user_errors():
        if processes.num_processes is None or processes.coordinator or processes.process_id is not None:
            raise ValueError(
                "--launcher needs --num-processes, and gives --coordinator and --process-id itself"
            )
        run = dataclasses.replace(run, path=run.path.absolute())
        launcher.launch(work, processes.num_processes)


def _train(run: RunFolder, resumed: bool, processes: Processes, every_core: bool) -> None:
    """What every process of a run does."""
    import jax

    from jmeta import training
    from jmeta.reporting.progress import ProgressReporter, warning
    from jmeta.runs.folder import RunFolder

    settings = run.config.training
    notes: tuple[str, ...] = ()
    with user_errors():
        family, algorithm = _build(run.config, processes, every_core)
        if resumed:  # fails now rather than under way
            iteration, _, notes = training.resume(run, algorithm, settings.checkpoint_every)
        else:
            RunFolder.create(run.path, run.config)
    out = console(stderr=True, quiet=jax.process_index() > 0)
    path = shlex.quote(str(run.path))
    out.print(f"run folder: {run.path}", soft_wrap=True)
    if notes:
        out.print(f"going on from iteration {iteration}: {'; '.join(notes)}", soft_wrap=True)
    try:
        with ProgressReporter(out, settings.iterations, settings.num_tasks) as report:
            training.train(algorithm, family, **dataclasses.asdict(settings), run=run, callback=report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with: jmeta train --resume --run-dir {path}") from None
    out.print(f"evaluate it with: jmeta evaluate {path}", soft_wrap=True)
    if problem := report.warning or warning(run.read_metrics(), settings.num_tasks):
        out.print(f"warning: {problem}", soft_wrap=True)


def _resumed_run(argv: list[str]) -> tuple[RunFolder, Processes]:
    from jmeta.runs.folder import RunFolder

    argv = [word for word in argv if word != "--resume"]
    names = positionals(argv)
    flags = parse(Resume, argv[len(names) :], "jmeta train --resume", "Goes on with a run.")
    run = RunFolder.open(flags.run_dir)
    own = [run.config.algorithm["name"], run.config.family["name"]]
    if names not in ([], own):
        raise ValueError(f"run folder {flags.run_dir!r} is of {' '.join(own)}, not of {' '.join(names)}")
    return run, flags


def _new_run(argv: list[str]) -> tuple[RunFolder, Processes]:
    """A run that is not on the disk yet."""
    from jmeta.runs.files import local_path
    from jmeta.runs.folder import RunFolder, check_free

    names = positionals(argv)
    if len(names) != 2:
        raise ValueError("give ALGORITHM and FAMILY first: jmeta train ALGORITHM FAMILY [flags]")
    config, run_dir, processes = _configure_run(names[0], names[1], argv[2:])
    path = _fresh_run_dir(config) if run_dir is None else local_path(run_dir)
    check_free(path)
    return RunFolder(path, config), processes


def _configure_run(algorithm: str, family: str, argv: list[str]) -> tuple[RunConfig, str | None, Processes]:
    """The configuration, run folder and processes that the preset and the flags ask for."""
    from jmeta.presets import preset
    from jmeta.runs.config import factory, resolve

    # `--policy gru` is short for `--policy.name gru`.
    argv = [re.sub(r"^--(policy|optimizer)(?==|$)", r"--\1.name", word) for word in argv]
    defaults = preset(algorithm, family)
    training = defaults.training
    fields = [
        field("iterations", int, training.iterations, "meta-iterations in all"),
        field("tasks", int, training.num_tasks, "tasks in a meta-batch, a multiple of the devices"),
        field("seed", int, training.seed, "of everything random in the run"),
        field("log_every", int, training.log_every, "meta-iterations in one compiled call, then logged"),
        field("checkpoint_every", int, training.checkpoint_every, "a multiple of --log-every"),
        field("run_dir", str | None, None, "new folder; by default a fresh runs/ALGORITHM-FAMILY-SEED"),
        *hyperparameter_fields("algorithm", defaults.algorithm, argv),
        component_field("policy", "policy", defaults.policy, argv),
        nested_field("family", hyperparameter_fields("family", defaults.family, argv)),
    ]
    summary = first_line(factory("algorithm", algorithm))
    known = flags_class("train", fields, Processes)
    flags = dataclasses.asdict(parse(known, argv, f"jmeta train {algorithm} {family}", summary))
    run_dir = flags.pop("run_dir")
    processes = Processes(**{field.name: flags.pop(field.name) for field in dataclasses.fields(Processes)})
    names = {"tasks": "num_tasks"}
    run_flags = ("iterations", "tasks", "seed", "log_every", "checkpoint_every")
    config = resolve(
        training={names.get(name, name): flags.pop(name) for name in run_flags},
        policy=flags.pop("policy"),
        family={"name": family, **flags.pop("family")},
        algorithm={"name": algorithm, **flags},
    )
    return config, run_dir, processes


def _fresh_run_dir(config: RunConfig) -> pathlib.Path:
    name = f"{config.algorithm['name']}-{config.family['name']}-{config.training.seed}"
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(path for number in numbers if not (path := pathlib.Path("runs", name + number)).exists())


def _build(config: RunConfig, processes: Processes, every_core: bool) -> tuple[TaskFamily, MetaAlgorithm]:
    """Starts JAX and builds a configuration; raises ValueError for whatever could not run.

    As many cores are used as divide the tasks; all of them where the user chose the number of tasks, or where
    those of other processes count too.
    """
    from jmeta.runs.config import build

    minibatches = max(1, config.algorithm.get("minibatches", 1))
    start_jax(config.training.num_tasks, every_core, minibatches, processes)
    family, _, algorithm = build(config)
    return family, algorithm
