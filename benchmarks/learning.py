"""What is learned: returns after 0..k adaptation steps of each algorithm, over seeds, references tuned like
the rest.

Every row of a table has the same budget of tuning at test time, references included. Its inner steps are
scaled by each factor of a geometric grid on *validation* tasks, and for each number of steps the best factor
is taken to the *test* tasks. Training tasks, validation tasks and test tasks of a seed are drawn with
different keys, and choosing is repeated for every seed, so that its luck is part of the intervals. Nothing
else is tuned: the number of episodes and everything of training are the preset's. Methods that adapt by their
memory have no step to scale.

A seed of a row is written as soon as it is measured, to FOLDER/FAMILY/ROW-SEED.json (`--parts FOLDER`), and a
command measures only what is not there. So a killed command goes on where it was, and several commands with
other `--rows` may run at the same time. Each one ends with the table of all that is there. One process for
each core is fastest:

    for core in 0 1; do JAX_NUM_CPU_DEVICES=1 taskset -c $core python -m benchmarks.learning ... & done
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import common
from jmeta import statistics

# Rows that are not simply an algorithm with its preset: name -> (algorithm, arguments that differ).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml-first-order": ("fomaml", {}),
    # Its magic boxes have a meaning only near the parameters that sampled.
    "maml-loaded-dice": ("maml", {"surrogate": "loaded-dice", "outer_epochs": 3}),
    "meta-sgd-per-step": ("meta-sgd", {"per_step": True, "num_inner_steps": 2}),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "all-gradient": (
        "maml",
        "maml-first-order",
        "maml-loaded-dice",
        "promp",
        "e-maml",
        "meta-sgd",
        "meta-sgd-per-step",
        "meta-gradient",
        "reptile",
        "imaml",
        "es-maml",
        "cavia",
        "anil",
        "oracle",
        "pretrain",
        "scratch",
    )
}
REFERENCE = "pretrain"  # what the last column compares with
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the test tasks' returns
NOTES = "\n---\n"  # what follows it in a table's file is written by hand, and kept


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    family: str = "point-goal"
    """Task family, one of those that `jmeta list` shows."""
    rows: tuple[str, ...] = ("maml", "maml-first-order", "pretrain", "scratch")
    """Rows of the table: algorithms, variants of them, or `all-gradient` for every gradient-based one."""
    seeds: int = 5
    """Training runs of each row. Ten, where an interval decides a sentence."""
    tasks: int = 100
    """Test tasks of each run."""
    validation_tasks: int = 40
    """Tasks of each run on which the factor on its inner steps is chosen."""
    steps: int = 3
    """Adaptation steps in evaluation; of an algorithm with a memory, episodes before the last."""
    iterations: int | None = None
    """Meta-iterations; None takes the preset's."""
    parts: pathlib.Path = pathlib.Path("runs/learning")
    """Folder of what is measured so far; it is for you to remove."""
    results: pathlib.Path = pathlib.Path("benchmarks/results")
    """Folder of learning-FAMILY.json and .md."""


@dataclasses.dataclass(frozen=True)
class Seed:
    """One training run of one row."""

    iterations: int
    env_steps: float  # of training
    scale: list[float] | None  # [steps + 1] the factor that was chosen; None where there is nothing to choose
    mean: list[float]  # [steps + 1] mean return over the test tasks that were not lost, at that factor
    as_trained: list[float]  # [steps + 1] the same at a factor of 1
    quantiles: list[list[float]]  # [steps + 1] of the test tasks' returns
    tasks_lost: list[int]  # [steps + 1]
    measures: dict[str, list[float]]  # name -> [steps + 1]
    seconds: float  # of training, tuning and test


def config_of(name: str, flags: Flags) -> Any:
    """The configuration of a row."""
    from jmeta.presets import preset

    algorithm, arguments = VARIANTS.get(name, (name, {}))
    config = preset(algorithm, flags.family)
    config = dataclasses.replace(config, algorithm={**config.algorithm, **arguments})
    if flags.iterations is None:
        return config
    training = dataclasses.replace(config.training, iterations=flags.iterations)
    return dataclasses.replace(config, training=training)


def measure(config: Any, built: Any, seed: int, flags: Flags) -> Seed:
    """Trains one row with one seed, tunes it on validation tasks, and tests it."""
    import jax

    import jmeta
    from jmeta import evaluation, parallel

    started, env_steps = time.perf_counter(), 0.0
    family, _, algorithm = built

    def count(progress: jmeta.training.Progress) -> None:
        nonlocal env_steps
        env_steps = progress.iteration * progress.metrics["env_steps"]

    training = dataclasses.asdict(config.training) | {"seed": seed}
    if config.algorithm["name"] == "scratch":  # nothing is learned
        training["iterations"] = 0
    state = jmeta.train(algorithm, family, **training, callback=count)
    key_validation, key_test = jax.random.split(evaluation.evaluation_key(seed))
    validation = {"num_tasks": flags.validation_tasks, "num_steps": flags.steps}
    with jax.set_mesh(parallel.task_mesh()):
        adaptable = algorithm.trial_steps is None
        chosen = None
        if adaptable:
            chosen = evaluation.tune_step_scale(algorithm, family, state.params, key_validation, **validation)

        def test(scale: float | None) -> evaluation.Evaluation:
            sizes = {"num_tasks": flags.tasks, "num_steps": flags.steps}
            return evaluation.evaluate(algorithm, family, state.params, key_test, **sizes, step_scale=scale)

        as_trained = 1.0 if adaptable else None
        tested = {scale: test(scale) for scale in {as_trained, *(chosen or [])}}
    found = [tested[scale] for scale in (chosen or [as_trained] * (flags.steps + 1))]
    return Seed(
        iterations=training["iterations"],
        env_steps=env_steps,
        scale=chosen,
        mean=[one.return_mean[step] for step, one in enumerate(found)],
        as_trained=tested[as_trained].return_mean,
        quantiles=[
            np.nanquantile(one.returns[~one.lost, step], QUANTILES).tolist()
            if not one.lost.all()
            else [np.nan] * len(QUANTILES)
            for step, one in enumerate(found)
        ],
        tasks_lost=[one.tasks_lost for one in found],
        measures={
            name: [one.measure_means[name][step] for step, one in enumerate(found)]
            for name in found[0].measure_means
        },
        seconds=time.perf_counter() - started,
    )


# -- what is on the disk ------------------------------------------------------------------------------


def settings(flags: Flags) -> dict[str, Any]:
    """What must agree for parts to stand in one table."""
    from jmeta.evaluation import STEP_SCALES

    known = {
        name: getattr(flags, name) for name in ("family", "tasks", "validation_tasks", "steps", "iterations")
    }
    return known | {"step_scales": list(STEP_SCALES)}


def write_part(flags: Flags, name: str, seed: int, found: Seed) -> None:
    """Keeps one seed of one row."""
    record = {"settings": settings(flags), "machine": common.machine(), "seed": dataclasses.asdict(found)}
    common.write_json(part(flags, name, seed), record)


def part(flags: Flags, name: str, seed: int) -> pathlib.Path:
    """The file of one seed of one row."""
    return flags.parts / flags.family / f"{name}-{seed}.json"


def read_parts(flags: Flags, names: Sequence[str]) -> tuple[dict[str, list[Seed]], dict[str, Any]]:
    """All seeds of these rows that were measured so far, and the machine of one of them.

    Raises:
      ValueError: one was measured with other settings.
    """
    rows: dict[str, list[Seed]] = {}
    machine: dict[str, Any] = {}
    for name in names:
        for seed in range(flags.seeds):
            path = part(flags, name, seed)
            if not path.exists():
                continue
            record = json.loads(path.read_text())
            if record["settings"] != settings(flags):
                raise ValueError(f"{path} was measured with other settings; choose another --parts")
            rows.setdefault(name, []).append(Seed(**record["seed"]))
            machine = record["machine"]
    return rows, machine


# -- the table ----------------------------------------------------------------------------------------


def table(rows: Mapping[str, Sequence[Seed]]) -> str:
    """The rows as text. The last column compares with the reference seed by seed, on the same test tasks."""
    steps = len(next(iter(rows.values()))[0].mean) - 1
    reference = [seed.mean for seed in rows.get(REFERENCE, [])]
    after = [f"after {k}" for k in range(steps + 1)]
    header = ["algorithm", "seeds", "iterations", "million steps", *after, "step size x", "lost"]
    header.append(f"after 1, above {REFERENCE}")
    cells = []
    for name, seeds in rows.items():
        means = as_array(seeds)
        found = statistics.over_seeds(means)
        beyond = "-"
        if len(reference) == len(seeds) and name != REFERENCE:
            beyond = interval(statistics.over_seeds((means - np.array(reference, float))[:, 1]))
        cells.append(
            [
                name,
                str(len(seeds)),
                str(seeds[0].iterations),
                f"{seeds[0].env_steps / 1e6:.1f}",
                *(interval(statistics.Estimate(*(x[k] for x in found))) for k in range(steps + 1)),
                scales(seeds),
                str(sum(max(seed.tasks_lost) for seed in seeds)),
                beyond,
            ]
        )
    return common.markdown(header, cells)


def as_array(seeds: Sequence[Seed]) -> np.ndarray:
    """Mean returns [seeds, steps + 1]."""
    return np.array([seed.mean for seed in seeds], float)


def interval(found: statistics.Estimate) -> str:
    """A mean with its interval, as text."""
    if np.isnan(found.low):
        return f"{found.mean:.1f}"
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def scales(seeds: Sequence[Seed]) -> str:
    """The factors that were chosen for 1, 2, ... steps: medians over the seeds; starred at an end."""
    from jmeta.evaluation import STEP_SCALES

    if any(seed.scale is None for seed in seeds):
        return "-"
    ends = (STEP_SCALES[0], STEP_SCALES[-1])
    chosen = np.array([seed.scale for seed in seeds])[:, 1:]
    return ", ".join(f"{np.median(one):g}" + "*" * bool(np.isin(one, ends).any()) for one in chosen.T)


def caption(rows: Mapping[str, Sequence[Seed]], found: Mapping[str, Any], machine: dict[str, Any]) -> str:
    """What a table is of."""
    num_seeds = min(map(len, rows.values()))
    heading = statistics.heading(num_seeds) if num_seeds > 1 else "mean of one training run"
    grid = ", ".join(f"{scale:g}" for scale in found["step_scales"])
    lines = [
        f"{found['family']}: return after k adaptation steps, {heading},",
        f"each evaluated on {found['tasks']} test tasks of its own.",
        "Test-time tuning is the same for every row and seed: the inner step sizes of training are scaled by",
        f"{grid}, and the best factor is taken",
        f"for each number of steps, on {found['validation_tasks']} validation tasks.",
        '"step size x" is what was chosen for 1, 2, ... steps (median over the seeds; *: an end of the grid',
        'in some seed). "lost" counts the test tasks of all seeds that were not finite.',
        f"{common.machine_line(machine)}.",
    ]
    return "\n".join(lines)


def write_table(flags: Flags, rows: Mapping[str, Sequence[Seed]], machine: dict[str, Any]) -> str:
    """Writes learning-FAMILY.json and .md, and returns the text; notes in the latter are kept."""
    path = flags.results / f"learning-{flags.family}.json"
    common.write_json(path, {"settings": settings(flags), "machine": machine, "rows": rounded(rows)})
    text = f"{caption(rows, settings(flags), machine)}\n\n{table(rows)}\n"
    path = path.with_suffix(".md")
    notes = path.read_text().partition(NOTES)[2] if path.exists() else ""
    path.write_text(text + (NOTES + notes if notes else ""))
    return text


def rounded(rows: Mapping[str, Sequence[Seed]]) -> Any:
    """Rows for a file: numbers with as many digits as anyone reads."""
    text = json.dumps({name: [dataclasses.asdict(seed) for seed in seeds] for name, seeds in rows.items()})
    return json.loads(text, parse_float=lambda number: round(float(number), 3))


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(1, seeds=flags.seeds, steps=flags.steps)
    common.at_least(2, tasks=flags.tasks, validation_tasks=flags.validation_tasks)
    from jmeta.runs.config import build

    try:
        names = list(dict.fromkeys(row for name in flags.rows for row in GROUPS.get(name, (name,))))
        configs = {name: config_of(name, flags) for name in names}
        read_parts(flags, names)  # before anything is measured in vain
        common.start(*((config.training.num_tasks, 1) for config in configs.values()))
        for name, config in configs.items():
            missing = [seed for seed in range(flags.seeds) if not part(flags, name, seed).exists()]
            built = build(config) if missing else None
            for seed in missing:
                found = measure(config, built, seed, flags)
                write_part(flags, name, seed, found)
                shown = f"{np.round(found.mean, 1)}, {found.seconds:.0f} s"
                print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
        # Rows that other commands measured stand in the table, too.
        known = [name for name in (*GROUPS["all-gradient"], *names) if part(flags, name, 0).exists()]
        rows, machine = read_parts(flags, list(dict.fromkeys(known)))
    except ValueError as error:
        common.fail(str(error))
    print(f"\n{write_table(flags, rows, machine)}")


if __name__ == "__main__":
    main()
