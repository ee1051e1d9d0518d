"""The command line: parse, call, print. No flag is declared here except those of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import tyro

from jmeta.flags import (
    UserError,
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

if typing.TYPE_CHECKING:
    from jmeta.runs.config import Kind, RunConfig
    from jmeta.runs.folder import RunFolder
    from jmeta.types import MetaAlgorithm, TaskFamily

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
_TITLES: dict[Kind, str] = {
    "algorithm": "Algorithms",
    "family": "Task families",
    "policy": "Policies",
    "optimizer": "Optimizers",
}


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
        return _fail("; ".join(["interrupted", *map(str, interrupt.args)]), 130)
    except SystemExit as stop:  # --help, which tyro has printed
        return int(stop.code or 0)
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

    parse(dataclasses.make_dataclass("List", []), argv, "jmeta list", "Lists what there is.")
    console = Console()
    for kind, title in _TITLES.items():
        rows = [(name, first_line(make)) for name, make in registry(kind).items()]
        console.print(components_table(title, rows))
        console.print()


# -- jmeta train --------------------------------------------------------------------------------------


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


def train(argv: list[str]) -> None:
    """Meta-trains in a new run folder, or goes on in an existing one."""
    resumed = "--resume" in argv
    with _user_errors():
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

    with _user_errors():
        if processes.num_processes is None or processes.coordinator or processes.process_id is not None:
            raise ValueError(
                "--launcher needs --num-processes, and gives --coordinator and --process-id itself"
            )
        run = dataclasses.replace(run, path=run.path.absolute())
        launcher.launch(work, processes.num_processes)


def _train(run: RunFolder, resumed: bool, processes: Processes, every_core: bool) -> None:
    """What every process of a run does."""
    import jax
    from rich.console import Console

    from jmeta import training
    from jmeta.reporting.progress import ProgressReporter
    from jmeta.runs.folder import RunFolder

    settings = run.config.training
    with _user_errors():
        family, algorithm = _build(run.config, processes, every_core)
        if resumed:
            training.resume(run, algorithm, settings.checkpoint_every)  # fails now rather than under way
        else:
            RunFolder.create(run.path, run.config)
    console = Console(stderr=True, highlight=False, quiet=jax.process_index() > 0)
    console.print(f"run folder: {run.path}", soft_wrap=True)
    try:
        with ProgressReporter(console, settings.iterations) as report:
            training.train(algorithm, family, **dataclasses.asdict(settings), run=run, callback=report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with: jmeta train --resume --run-dir {run.path}") from None
    console.print(f"evaluate it with: jmeta evaluate {run.path}", soft_wrap=True)


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
    from jmeta.runs.folder import RunFolder, check_free

    names = positionals(argv)
    if len(names) != 2:
        raise ValueError("give ALGORITHM and FAMILY first: jmeta train ALGORITHM FAMILY [flags]")
    config, run_dir, processes = _configure_run(names[0], names[1], argv[2:])
    path = _fresh_run_dir(config) if run_dir is None else pathlib.Path(run_dir)
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
    _start(config.training.num_tasks, every_core, minibatches, processes)
    family, _, algorithm = build(config)
    return family, algorithm


def _start(
    num_tasks: int, every_core: bool, minibatches: int = 1, processes: Processes | None = None
) -> None:
    import jax

    from jmeta import parallel, runtime

    shared = max(1, num_tasks // minibatches)  # every device has a part of every minibatch
    runtime.configure(num_tasks=None if every_core else shared)
    if processes is not None and processes.distributed:
        runtime.connect(*processes.addresses, heartbeat_timeout=processes.heartbeat_timeout)
    parallel.check_divisible(num_tasks, len(jax.devices()), minibatches)


# -- jmeta evaluate -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Arguments of `jmeta evaluate`."""

    run_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of a run."""
    tasks: int = 100
    """Fresh tasks, a multiple of the devices."""
    steps: int | None = None
    """Adaptation steps; default 3. Of a policy with a memory, episodes; default all but the trial's last."""
    episodes: int = 20
    """Episodes of a task after the last step."""
    split: Literal["train", "heldout"] = "train"
    """Distribution of the tasks: that of training, or the family's held-out one."""
    seed: int = 0
    """Of the tasks and the episodes."""
    plot: pathlib.Path | None = None
    """File to draw the adaptation curve in, .png, .pdf or .svg; needs Matplotlib."""


def evaluate(argv: list[str]) -> None:
    """Adapts a run to fresh tasks, prints the returns and writes them to evaluation.json."""
    from rich.console import Console

    summary = "Adapts a trained run to fresh tasks and tabulates the returns."
    flags = parse(Evaluate, argv, "jmeta evaluate", summary)
    with _user_errors():
        from jmeta.runs.config import SEED_LIMIT, build
        from jmeta.runs.folder import RunFolder, write_json

        for name, least in (("steps", 0), ("episodes", 1), ("seed", 0)):
            if (getattr(flags, name) or 0) < least:
                raise ValueError(f"--{name} must be at least {least}, not {getattr(flags, name)}")
        if flags.seed >= SEED_LIMIT:
            raise ValueError(f"--seed must be below {SEED_LIMIT}, not {flags.seed}")
        run = RunFolder.open(flags.run_dir)
        iteration = run.latest_checkpoint()
        if iteration is None:
            raise ValueError(f"run folder {flags.run_dir!r} has no complete checkpoint yet")
        _start(flags.tasks, value_of("--tasks", argv) is not None)
        family, _, algorithm = build(run.config)
        if flags.split == "heldout" and family.sample_heldout is family.sample:
            raise ValueError(f"{family.name} has no held-out tasks; use --split train")

        import jax

        from jmeta import evaluation, parallel
        from jmeta.reporting import plots
        from jmeta.reporting.tables import adaptation_table
        from jmeta.training import initial_state

        steps = evaluation.adaptation_steps(algorithm, flags.steps)
        if flags.plot is not None:
            plots.check(flags.plot)
        state = run.restore_checkpoint(iteration, jax.eval_shape(lambda: initial_state(algorithm, seed=0)))
    mesh = parallel.task_mesh()
    with jax.set_mesh(mesh):
        result = evaluation.evaluate(
            algorithm,
            family,
            parallel.replicate(state.meta.params, mesh),
            # Far from the numbers that training folds in, so that equal seeds share no key.
            jax.random.fold_in(jax.random.key(flags.seed), 2**31 - 1),
            num_tasks=flags.tasks,
            num_steps=steps,
            num_episodes=flags.episodes,
            heldout=flags.split == "heldout",
        )
    record = {
        "steps": result.steps,
        "return_mean": result.return_mean,
        "return_low": result.return_low,
        "return_high": result.return_high,
        "optimal_mean": result.optimal_mean,
        "num_tasks": flags.tasks,
        "num_episodes": flags.episodes,
        "split": flags.split,
        "seed": flags.seed,
        "iteration": iteration,
    }
    write_json(run.path / "evaluation.json", record)
    title = f"{run.config.algorithm['name']} on {flags.tasks} tasks of {family.name}, iteration {iteration}"
    console = Console(highlight=False)
    console.print(title, soft_wrap=True)
    curve = (result.steps, result.return_mean, result.return_low, result.return_high, result.optimal_mean)
    console.print(adaptation_table(*curve))
    if flags.plot is not None:
        plots.adaptation_curve(flags.plot, title, *curve)
