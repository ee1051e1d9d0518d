"""`jmeta evaluate`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jmeta.cli.errors import memory_errors, user_errors
from jmeta.cli.flags import parse
from jmeta.cli.output import console
from jmeta.cli.start import start_jax

if TYPE_CHECKING:
    from jmeta.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Arguments of `jmeta evaluate`."""

    run_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of a run."""
    tasks: int = 100
    """Tasks, drawn anew."""
    steps: int | None = None
    """Adaptation steps; default 3. Of a policy with a memory, episodes; default all but the trial's last."""
    episodes: int = 20
    """Measured episodes of each task after each adaptation step; adaptation does not learn from them."""
    deterministic: bool = False
    """Act by the mode of the policy's distribution in the measured episodes. Adaptation always samples."""
    checkpoint: str = "last"
    """Which checkpoint: last, best (by the return on held-out tasks while training), or an iteration."""
    split: Literal["train", "heldout"] = "train"
    """Distribution of the tasks: that of training, or the family's held-out one."""
    seed: int = 0
    """Of the tasks and the episodes."""
    plot: pathlib.Path | None = None
    """File to draw the adaptation curve in, .png, .pdf or .svg; needs Matplotlib."""


def main(argv: list[str]) -> None:
    """Adapts a run to fresh tasks, prints the returns, and writes evaluation.json and evaluation.npz."""
    summary = "Adapts a trained run to fresh tasks and tabulates the returns."
    flags = parse(Evaluate, argv, "jmeta evaluate", summary)
    with user_errors():
        from jmeta.checks import at_least
        from jmeta.runs.config import build
        from jmeta.runs.files import local_path
        from jmeta.runs.folder import RunFolder

        for name, least in (("tasks", 1), ("steps", 0), ("episodes", 1), ("seed", 0)):
            if (value := getattr(flags, name)) is not None:
                at_least(least, **{f"--{name}": value})
        checkpoint = _checkpoint(flags.checkpoint)
        plot = None if flags.plot is None else local_path(flags.plot)
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
        if plot is not None:
            plots.check(plot)
        iteration, state, notes = training.restore(run, algorithm, checkpoint)
    if notes:
        console(stderr=True).print(f"evaluating iteration {iteration}: {'; '.join(notes)}", soft_wrap=True)
    mesh = parallel.task_mesh()
    with memory_errors("lower --tasks or --episodes"), jax.set_mesh(mesh):
        result = evaluation.evaluate(
            algorithm,
            family,
            parallel.replicate(state.meta.params, mesh),
            evaluation.evaluation_key(flags.seed),
            num_tasks=flags.tasks,
            num_steps=steps,
            num_episodes=flags.episodes,
            heldout=flags.split == "heldout",
            deterministic=flags.deterministic,
        )
    title = f"{run.config.algorithm['name']} on {flags.tasks} tasks of {family.name}, iteration {iteration}"
    curve = (result.steps, result.return_mean, result.return_low, result.return_high, result.optimal_mean)
    try:
        out = console()
        out.print(title, soft_wrap=True)
        out.print(adaptation_table(*curve, measures=result.measure_means))
        if result.tasks_lost:
            out.print(_lost(result), soft_wrap=True)
    finally:
        # Nothing that was computed is lost because something else, be it the table, cannot be written.
        with user_errors(), contextlib.ExitStack() as each:
            if plot is not None:
                each.callback(plots.adaptation_curve, plot, title, *curve)
            each.callback(_write_summary, run.path / "evaluation.json", result, flags, iteration)
            each.callback(_write_arrays, run.path / "evaluation.npz", result)


def _checkpoint(word: str) -> int | Literal["last", "best"]:
    """Which checkpoint the user wants; ValueError for anything but last, best or an iteration."""
    if word == "last":
        return "last"
    if word == "best":
        return "best"
    if not word.isascii() or not word.isdecimal():
        raise ValueError(f"--checkpoint must be last, best or an iteration, got {word!r}")
    return int(word)


def _lost(result: Evaluation) -> str:
    lost, because = f"{result.tasks_lost} of {result.num_tasks} tasks were lost", "was not finite"
    if result.tasks_lost == result.num_tasks:
        return f"{lost}: something in the episodes of each {because}. There is no return to report."
    return f"{lost}, because something in their episodes {because}. The table is of the others."


def _write_arrays(path: pathlib.Path, result: Evaluation) -> None:
    """Writes every episode with its task."""
    import numpy as np

    from jmeta.runs.files import write_atomically

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **result.arrays())
    write_atomically(path, buffer.getvalue())


def _write_summary(path: pathlib.Path, result: Evaluation, flags: Evaluate, iteration: int) -> None:
    """Writes means and intervals."""
    from jmeta.runs.files import write_json

    record = {
        "steps": result.steps,
        "return_mean": result.return_mean,
        "return_low": result.return_low,
        "return_high": result.return_high,
        "interval": "95 % over the tasks of this run",
        "optimal_mean": result.optimal_mean,
        "measures": result.measure_means,
        "num_tasks": flags.tasks,
        "tasks_lost": result.tasks_lost,
        "num_episodes": flags.episodes,
        "deterministic": flags.deterministic,
        "split": flags.split,
        "seed": flags.seed,
        "iteration": iteration,
    }
    write_json(path, record)
