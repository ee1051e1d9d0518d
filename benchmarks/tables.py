"""The published tables of bandits and random MDPs: our column beside every published one."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from benchmarks import common

PUBLISHED = pathlib.Path(__file__).parent / "published"
POLICIES = {"rl2": "gru", "snail": "snail"}  # published column -> the policy that it compares with


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    table: tyro.conf.Positional[Literal["bandits", "mdps"]]
    """Which table."""
    rows: tuple[str, ...] = ()
    """Rows to fill, such as 10x5 (pulls x arms) or 10 (episodes); none given means all."""
    learned: tuple[str, ...] = ()
    """Columns to train, rl2 or snail, in every row: minutes to hours each."""
    iterations: int | None = None
    """Meta-iterations of each learned figure; None takes the preset's."""
    tasks: int = 2000
    """Fresh tasks of each figure."""
    seed: int = 0
    """Of tasks, episodes and training."""
    plot: pathlib.Path | None = None
    """File of the plot; None takes benchmarks/results/TABLE.png."""
    json: pathlib.Path | None = None
    """File for what is printed."""


class Figure(NamedTuple):
    """One measured figure."""

    mean: float
    standard_error: float
    note: str = ""  # the tuned parameter, or the training that it took


def published(table: str) -> list[dict[str, str]]:
    """Rows of a published table."""
    name = {"bandits": "bandits.csv", "mdps": "tabular_mdps.csv"}[table]
    with open(PUBLISHED / name, newline="") as file:
        return list(csv.DictReader(file))


def figure(samples: np.ndarray, note: str = "") -> Figure:
    """Mean and standard error of the totals [tasks]."""
    return Figure(float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(len(samples))), note)


def tuned(total: Callable[[int, float], np.ndarray], candidates: tuple[float, ...], seed: int) -> Figure:
    """A strategy's figure, its parameter chosen on other tasks than those it is measured on.

    Args:
      total: (seed of the tasks, parameter) -> totals [tasks].
      candidates: values of the parameter; () if it has none.
      seed: of the tasks that it is measured on.
    """
    if not candidates:
        return figure(total(seed, 0.0))
    best = max(candidates, key=lambda value: total(seed + 1_000_000, value).mean())
    return figure(total(seed, best), f"{best:g}")


def classical(flags: Flags, row: dict[str, str]) -> dict[str, Figure]:
    """Every classical column of a row."""
    import jax

    from benchmarks.classical import bandits, mdps
    from jmeta import tasks

    measured = {}
    if flags.table == "bandits":
        pulls = int(row["pulls"])
        family = tasks.bandit(num_arms=int(row["arms"]), num_pulls=pulls)
        strategies: dict[str, Any] = bandits.strategies(pulls)

        def run(strategy: Any, seed: int, parameter: float) -> np.ndarray:
            key_tasks, key_run = jax.random.split(jax.random.key(seed))
            sampled = jax.vmap(family.sample)(jax.random.split(key_tasks, flags.tasks))
            return np.asarray(bandits.total_reward(strategy.choose, sampled, key_run, parameter, pulls))
    else:
        episodes = int(row["episodes"])
        family = tasks.random_mdp()
        strategies = mdps.STRATEGIES

        def run(strategy: Any, seed: int, parameter: float) -> np.ndarray:
            key_tasks, key_run = jax.random.split(jax.random.key(seed))
            sampled = jax.vmap(family.sample)(jax.random.split(key_tasks, flags.tasks))
            return np.asarray(mdps.total_reward(strategy.plan, sampled, key_run, parameter, episodes)).sum(1)

    for name, strategy in strategies.items():
        measured[name] = tuned(lambda seed, p, s=strategy: run(s, seed, p), strategy.candidates, flags.seed)
    return measured


def learned(flags: Flags, row: dict[str, str], column: str) -> Figure:
    """Trains a column's policy on a row and measures it."""
    import jax

    import jmeta
    from jmeta import parallel, rollouts
    from jmeta.presets import preset
    from jmeta.runs.config import build
    from jmeta.types import Adapted, Array, Key, Params, Task

    if flags.table == "bandits":
        family_name, episodes, length = "bandit", 1, int(row["pulls"])
        sizes = {"num_arms": int(row["arms"]), "num_pulls": int(row["pulls"])}
    else:
        family_name, episodes, length = "random-mdp", int(row["episodes"]), 10 * int(row["episodes"])
        sizes = {}
    config = preset("rl2", family_name)
    policy = {"name": POLICIES[column]} | ({"max_steps": length} if column == "snail" else {})
    config = dataclasses.replace(
        config,
        family={**config.family, **sizes},
        policy=policy,
        algorithm={**config.algorithm, "num_episodes": episodes},
    )
    family, _, algorithm = build(config)
    training = dataclasses.asdict(config.training) | {"seed": flags.seed}
    if flags.iterations is not None:
        training["iterations"] = flags.iterations

    def report(progress: jmeta.training.Progress) -> None:
        print(f"{column}: {progress.iteration} {progress.metrics['return_trial']:.1f}", file=sys.stderr)

    started = time.perf_counter()
    state = jmeta.train(algorithm, family, **training, callback=report)
    minutes = (time.perf_counter() - started) / 60

    def total(params: Params, task: Task, key: Key) -> Array:
        start = Adapted(params, algorithm.policy.initial_carry())
        return rollouts.trial(family.env, algorithm.policy, start, task, key, episodes)[2].sum()

    key_tasks, key_run = jax.random.split(jax.random.key(flags.seed + 10_000))  # no task of the training
    sampled = jax.vmap(family.sample)(parallel.task_keys(key_tasks, flags.tasks))
    with jax.set_mesh(parallel.task_mesh()):
        keys = parallel.task_keys(key_run, flags.tasks)
        totals = jax.jit(lambda *x: parallel.map_tasks(total, *x, block=64))(state.params, sampled, keys)
    return figure(np.asarray(totals), f"{training['iterations']} iterations, {minutes:.0f} minutes")


def draw(path: pathlib.Path, plt: Any, measured: dict[str, dict[str, Figure]], rows: dict[str, Any]) -> None:
    """A panel a row: our figures with two standard errors, the published ones as rings."""
    columns = min(3, len(measured))
    lines = -(-len(measured) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(4 * columns, 2.6 * lines + 0.8), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(measured) :]:
        panel.set_visible(False)
    for panel, (name, figures) in zip(panels.flat, measured.items(), strict=False):
        places = range(len(figures))
        panel.errorbar(
            places,
            [f.mean for f in figures.values()],
            [2 * f.standard_error for f in figures.values()],
            fmt="o",
            markersize=4,
            label="ours, ± 2 standard errors",
        )
        shown = [float(rows[name][column]) for column in figures]
        panel.plot(places, shown, "o", markersize=9, fillstyle="none", color="0.4", label="published")
        panel.set_xticks(places, [column.replace("_", "-") for column in figures], rotation=40, ha="right")
        panel.tick_params(labelsize=7)
        panel.set_title(name, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("total reward", fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", frameon=False, fontsize=8, ncols=2)
    common.save_figure(figure, path)


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    rows = published(flags.table)
    keys = ("pulls", "arms") if flags.table == "bandits" else ("episodes",)
    names = ["x".join(row[key] for key in keys) for row in rows]
    for name in flags.rows:
        if name not in names:
            common.fail(f"rows must be among {', '.join(names)}, got {name!r}")
    for column in flags.learned:
        if column not in POLICIES:
            common.fail(f"learned must be among {', '.join(POLICIES)}, got {column!r}")
    plt = common.pyplot()
    from jmeta import runtime

    runtime.configure()
    record: dict[str, Any] = {
        "table": flags.table,
        "tasks": flags.tasks,
        "machine": common.machine(),
        "rows": {},
    }
    columns = [column for column in rows[0] if column not in keys]
    cells, everything = [], {}
    for name, row in zip(names, rows, strict=True):
        if flags.rows and name not in flags.rows:
            continue
        started = time.perf_counter()
        measured = classical(flags, row)
        for column in flags.learned:
            measured[column] = learned(flags, row, column)
        everything[name] = {column: measured[column] for column in columns if column in measured}
        record["rows"][name] = {column: value._asdict() for column, value in measured.items()}
        common.write_json(flags.json, record)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        line = [name]
        for column in columns:
            found = measured.get(column)
            ours = f"{found.mean:.1f} ± {found.standard_error:.1f}" if found else "-"
            line.append(f"{ours} ({row[column]})")
        cells.append(line)
    print(
        f"\n{flags.table}: total reward, ours ± standard error over {flags.tasks} fresh tasks (published)\n"
    )
    print(common.markdown(["x".join(keys), *columns], cells))
    for name, figures in everything.items():
        notes = [f"{column}: {found.note}" for column, found in figures.items() if found.note]
        if notes:
            print(f"\n{name}: {'; '.join(notes)}")
    path = flags.plot or pathlib.Path(f"benchmarks/results/{flags.table}.png")
    draw(path, plt, everything, dict(zip(names, rows, strict=True)))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
