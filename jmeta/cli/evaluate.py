"""`jmeta evaluate`."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from jmeta.cli.errors import user_errors
from jmeta.cli.flags import parse
from jmeta.cli.start import start_jax


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Arguments of `jmeta evaluate`."""

    run_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of a run."""
    tasks: int = 100
    """Fresh tasks."""
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


def main(argv: list[str]) -> None:
    """Adapts a run to fresh tasks, prints the returns and writes them to evaluation.json."""
    from rich.console import Console

    summary = "Adapts a trained run to fresh tasks and tabulates the returns."
    flags = parse(Evaluate, argv, "jmeta evaluate", summary)
    with user_errors():
        from jmeta.runs.config import SEED_LIMIT, build
        from jmeta.runs.files import write_json
        from jmeta.runs.folder import RunFolder

        for name, least in (("tasks", 1), ("steps", 0), ("episodes", 1), ("seed", 0)):
            if (value := getattr(flags, name)) is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        if flags.seed >= SEED_LIMIT:
            raise ValueError(f"--seed must be below {SEED_LIMIT}, got {flags.seed}")
        run = RunFolder.open(flags.run_dir)
        if run.latest_checkpoint() is None:
            raise ValueError(f"run folder {flags.run_dir!r} has no checkpoint yet")
        start_jax(flags.tasks)
        family, _, algorithm = build(run.config)
        if flags.split == "heldout" and family.sample_heldout is family.sample:
            raise ValueError(f"{family.name} has no held-out tasks; use --split train")

        import jax

        from jmeta import evaluation, parallel, training
        from jmeta.reporting import plots
        from jmeta.reporting.tables import adaptation_table

        steps = evaluation.adaptation_steps(algorithm, flags.steps)
        if flags.plot is not None:
            plots.check(flags.plot)
        iteration, state, notes = training.restore(run, algorithm, "last")
    if notes:
        print(f"evaluating iteration {iteration}: {'; '.join(notes)}", file=sys.stderr)
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
