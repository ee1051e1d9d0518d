"""What is learned: returns after 0..k adaptation steps of each algorithm, over seeds and fresh tasks."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Any

import numpy as np

from benchmarks import common

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
        "pretrain",
        "scratch",
    )
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    family: str = "half-cheetah-direction"
    """Task family, one of those that `jmeta list` shows."""
    algorithms: tuple[str, ...] = ("maml", "maml-first-order", "pretrain", "scratch")
    """Rows of the table: algorithms, variants of them, or `all-gradient` for every gradient-based one."""
    seeds: int = 3
    """Training runs of each algorithm."""
    tasks: int = 100
    """Fresh tasks that each run is evaluated on."""
    steps: int = 5
    """Adaptation steps in evaluation; of an algorithm with a memory, episodes before the last."""
    iterations: int | None = None
    """Meta-iterations; None takes the preset's."""
    json: pathlib.Path | None = None
    """File for what is printed, and every return."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm's result."""

    name: str
    iterations: int
    env_steps: float  # of one training run
    returns: list[list[list[float]]]  # [seeds, tasks, steps + 1]
    mean: list[float]  # [steps + 1]
    low: list[float]
    high: list[float]
    gain: list[float]  # what the first step adds to the return: mean, low, high
    seconds: float  # of all seeds, compilation and evaluation included


def bootstrap(returns: np.ndarray, resamples: int = 10_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and 95 % interval over runs and tasks: seeds are resampled, then the tasks of each.

    Args:
      returns: [seeds, tasks, ...].
      resamples: bootstrap samples.
    """
    rng = np.random.default_rng(0)
    seeds, tasks = returns.shape[:2]
    means = []
    for _ in range(resamples):
        chosen = rng.integers(seeds, size=seeds)
        means.append(returns[chosen[:, None], rng.integers(tasks, size=(seeds, tasks))].mean((0, 1)))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return returns.mean((0, 1)), low, high


def measure(name: str, flags: Flags) -> Row:
    """Trains and evaluates one algorithm with every seed."""
    import jax

    import jmeta
    from jmeta import parallel
    from jmeta.presets import preset
    from jmeta.runs.config import build

    algorithm_name, arguments = VARIANTS.get(name, (name, {}))
    config = preset(algorithm_name, flags.family)
    config = dataclasses.replace(config, algorithm={**config.algorithm, **arguments})
    if flags.iterations is not None:
        training = dataclasses.replace(config.training, iterations=flags.iterations)
        config = dataclasses.replace(config, training=training)
    family, _, algorithm = build(config)
    training = config.training
    started, returns, env_steps = time.perf_counter(), [], 0.0

    def count(progress: jmeta.training.Progress) -> None:
        nonlocal env_steps
        env_steps = progress.iteration * progress.metrics["env_steps"]

    for seed in range(flags.seeds):
        if algorithm_name == "scratch":  # nothing is learned
            state = algorithm.init(jax.random.key(seed))
        else:
            settings = dataclasses.asdict(training) | {"seed": seed}
            state = jmeta.train(algorithm, family, **settings, callback=count)
        with jax.set_mesh(parallel.task_mesh()):
            key = jax.random.key(10_000 + seed)  # no task of any training run
            result = jmeta.evaluate(
                algorithm, family, state.params, key, num_tasks=flags.tasks, num_steps=flags.steps
            )
        returns.append(result.returns)
        print(f"{name}, seed {seed}: {np.round(result.return_mean, 1)}", file=sys.stderr, flush=True)
    stacked = np.stack(returns)
    mean, low, high = bootstrap(stacked)
    return Row(
        name,
        training.iterations,
        env_steps,
        np.round(stacked, 3).tolist(),
        mean.tolist(),
        low.tolist(),
        high.tolist(),
        np.stack(bootstrap(stacked[:, :, 1] - stacked[:, :, 0])).tolist(),
        time.perf_counter() - started,
    )


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(1, seeds=flags.seeds, tasks=flags.tasks, steps=flags.steps)
    from jmeta.presets import preset

    def interval(mean: float, low: float, high: float) -> str:
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"

    rows: list[Row] = []
    try:
        names = [row for name in flags.algorithms for row in GROUPS.get(name, (name,))]
        presets = [preset(VARIANTS.get(name, (name, {}))[0], flags.family) for name in names]
        common.start((flags.tasks, 1), *((config.training.num_tasks, 1) for config in presets))
        for name in names:
            rows.append(measure(name, flags))
            record = {"flags": common.settings(flags), "machine": common.machine(), "rows": rows}
            common.write_json(flags.json, record)
    except ValueError as error:
        common.fail(str(error))
    header = [
        "algorithm",
        "iterations",
        "million steps",
        *(f"after {k}" for k in range(flags.steps + 1)),
        "first gain",
        "minutes",
    ]
    cells = [
        [
            row.name,
            str(row.iterations if row.env_steps else 0),
            f"{row.env_steps / 1e6:.1f}",
            *map(interval, row.mean, row.low, row.high),
            interval(*row.gain),
            f"{row.seconds / 60:.1f}",
        ]
        for row in rows
    ]
    print(
        f"\n{flags.family}: return after k adaptation steps, mean [95 % interval] over {flags.seeds} seeds x"
    )
    print(f"{flags.tasks} fresh tasks; {common.machine_line(common.machine())}\n")
    print(common.markdown(header, cells))


if __name__ == "__main__":
    main()
