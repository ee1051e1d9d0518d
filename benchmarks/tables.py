"""The published tables of bandits and random MDPs: our columns beside the published ones.

Ours alone: `optimal`, which knows every task, `q_learning`, and the policies with a memory
that were not published.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from benchmarks import common

PUBLISHED = pathlib.Path(__file__).parent / "published"
# Columns of RL²: of the first two there are published ones.
POLICIES = {"rl2": "gru", "snail": "snail", "lstm": "lstm", "mann": "mann", "transformer": "transformer"}
MEASURED, TUNED = 10_000, 20_000  # added to the seed: no task of the training, nor of the other


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    table: tyro.conf.Positional[Literal["bandits", "mdps"]]
    """Which table."""
    rows: tuple[str, ...] = ()
    """Rows to fill, such as 10x5 (pulls x arms) or 10 (episodes); none given means all."""
    learned: tuple[str, ...] = ()
    """Columns to train in every row, minutes to hours each: rl2 (a GRU), snail, lstm, mann, transformer."""
    iterations: int | None = None
    """Meta-iterations of each learned figure; None takes the preset's."""
    tasks: int = 2000
    """Fresh tasks of each figure, the same in a row."""
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


class Problem(NamedTuple):
    """What a row is about."""

    family: str
    arguments: dict[str, int]  # of the family
    episodes: int  # of a trial


def published(table: str) -> list[dict[str, str]]:
    """Rows of a published table."""
    name = {"bandits": "bandits.csv", "mdps": "tabular_mdps.csv"}[table]
    with open(PUBLISHED / name, newline="") as file:
        return list(csv.DictReader(file))


def problem_of(row: dict[str, str]) -> Problem:
    """The problem of a published row."""
    if "pulls" in row:
        return Problem("bandit", {"num_arms": int(row["arms"]), "num_pulls": int(row["pulls"])}, 1)
    return Problem("random-mdp", {}, int(row["episodes"]))


def family_of(problem: Problem) -> Any:
    """Its task family."""
    from jmeta import tasks

    return tasks.REGISTRY[problem.family](**problem.arguments)


def fresh(family: Any, num_tasks: int, seed: int) -> tuple[Any, Any]:
    """Tasks [num_tasks], and a key for what is done with them."""
    import jax

    from jmeta import parallel

    key_tasks, key_run = jax.random.split(jax.random.key(seed))
    return jax.vmap(family.sample)(parallel.task_keys(key_tasks, num_tasks)), key_run


def figure(totals: np.ndarray, note: str = "") -> Figure:
    """Mean and standard error of the totals [tasks]."""
    return Figure(float(totals.mean()), float(totals.std(ddof=1) / np.sqrt(len(totals))), note)


def tuned(total: Callable[[int, Any], np.ndarray], strategy: Any, seed: int) -> Figure:
    """A strategy's figure, its parameter chosen on other tasks than those it is measured on.

    Args:
      total: (seed of the tasks, parameter) -> totals [tasks].
      strategy: of `benchmarks.classical`.
      seed: the command's.
    """
    if not strategy.candidates:
        return figure(total(seed + MEASURED, 0.0))
    best = max(strategy.candidates, key=lambda value: total(seed + TUNED, value).mean())
    values = ", ".join(f"{x:g}" for x in np.atleast_1d(best))
    return figure(total(seed + MEASURED, best), f"{strategy.meaning} = {values}")


def classical(flags: Flags, problem: Problem) -> dict[str, Figure]:
    """The figures of every strategy, and of the optimum."""
    import jax

    from benchmarks.classical import bandits, mdps

    family = family_of(problem)
    strategies: dict[str, Any]
    total_reward: Callable[..., Any]
    if problem.family == "bandit":
        length = family.env.spec.horizon
        strategies, total_reward = bandits.strategies(length), bandits.total_reward
    else:
        length = problem.episodes
        strategies, total_reward = mdps.STRATEGIES, mdps.total_reward

    def total(strategy: Any, seed: int, parameter: Any) -> np.ndarray:
        sampled, key = fresh(family, flags.tasks, seed)
        return np.asarray(total_reward(strategy, sampled, key, parameter, length))

    measured = {
        name: tuned(functools.partial(total, strategy), strategy, flags.seed)
        for name, strategy in strategies.items()
    }
    assert family.optimal_return is not None
    sampled, _ = fresh(family, flags.tasks, flags.seed + MEASURED)
    measured["optimal"] = figure(problem.episodes * np.asarray(jax.vmap(family.optimal_return)(sampled)))
    return measured


def learned(flags: Flags, problem: Problem, column: str) -> Figure:
    """Trains a column's policy and measures it."""
    import jax

    import jmeta
    from jmeta import parallel, rollouts
    from jmeta.presets import preset
    from jmeta.runs.config import build, factory, hyperparameters
    from jmeta.types import Adapted, Array, Key, Params, Task

    family, name = family_of(problem), POLICIES[column]
    policy: dict[str, Any] = {"name": name}
    if "max_steps" in hyperparameters(factory("policy", name)):
        policy["max_steps"] = problem.episodes * family.env.spec.horizon
    config = preset("rl2", problem.family)
    config = dataclasses.replace(
        config,
        family={**config.family, **problem.arguments},
        policy=policy,
        algorithm={**config.algorithm, "num_episodes": problem.episodes},
    )
    algorithm = build(config)[2]
    training = dataclasses.replace(config.training, seed=flags.seed)
    if flags.iterations is not None:
        training = dataclasses.replace(training, iterations=flags.iterations)
    env_steps = 0.0

    def report(progress: jmeta.training.Progress) -> None:
        nonlocal env_steps
        env_steps = progress.iteration * progress.metrics["env_steps"]
        reached = progress.metrics["return_trial"]
        print(f"{column}: {progress.iteration} {reached:.1f}", file=sys.stderr, flush=True)

    started = time.perf_counter()
    state = jmeta.train(algorithm, family, **dataclasses.asdict(training), callback=report)
    minutes = (time.perf_counter() - started) / 60

    def total(params: Params, task: Task, key: Key) -> Array:
        start = Adapted(params, algorithm.policy.initial_carry())
        return rollouts.trial(family.env, algorithm.policy, start, task, key, problem.episodes)[2].sum()

    sampled, key = fresh(family, flags.tasks, flags.seed + MEASURED)
    block = parallel.tasks_per_block(1)
    with jax.set_mesh(parallel.task_mesh()):
        keys = parallel.task_keys(key, flags.tasks)
        totals = jax.jit(lambda *x: parallel.map_tasks(total, *x, block=block))(state.params, sampled, keys)
    compute = f"{training.iterations} iterations, {minutes:.1f} minutes, {env_steps / 1e6:.1f} million steps"
    return figure(np.asarray(totals), compute)


def cell(found: Figure | None, known: str | None) -> str:
    """Our figure and the published one, as far as there are."""
    ours = f"{found.mean:.1f} ± {found.standard_error:.1f}" if found else "-"
    return f"{ours} ({known})" if known else ours


def draw(path: pathlib.Path, plt: Any, measured: dict[str, dict[str, Figure]], rows: dict[str, Any]) -> None:
    """A panel a row: our figures with two standard errors, the published ones as rings."""
    columns = min(3, len(measured))
    lines = -(-len(measured) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(4.5 * columns, 2.8 * lines + 0.8), squeeze=False, layout="constrained"
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
        known = [float(rows[name].get(column, np.nan)) for column in figures]
        panel.plot(places, known, "o", markersize=9, fillstyle="none", color="0.4", label="published")
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
    keys = {"bandits": ("pulls", "arms"), "mdps": ("episodes",)}[flags.table]
    rows = {"x".join(row[key] for key in keys): row for row in published(flags.table)}
    for name in flags.rows:
        if name not in rows:
            common.fail(f"rows must be among {', '.join(rows)}, got {name!r}")
    for column in flags.learned:
        if column not in POLICIES:
            common.fail(f"learned must be among {', '.join(POLICIES)}, got {column!r}")
    plt = common.pyplot()
    import jax

    from jmeta import parallel, runtime

    runtime.configure()
    machine = common.machine()
    record: dict[str, Any] = {
        "table": flags.table,
        "tasks": flags.tasks,
        "seed": flags.seed,
        "machine": machine,
        "rows": {},
    }
    measured: dict[str, dict[str, Figure]] = {}
    try:
        parallel.check_divisible(flags.tasks, jax.device_count())
        for name in flags.rows or rows:
            started = time.perf_counter()
            problem = problem_of(rows[name])
            measured[name] = classical(flags, problem)
            for column in flags.learned:
                measured[name][column] = learned(flags, problem, column)
            record["rows"][name] = {column: found._asdict() for column, found in measured[name].items()}
            common.write_json(flags.json, record)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    except ValueError as error:
        common.fail(str(error))
    order = [column for column in next(iter(rows.values())) if column not in keys]
    columns = list(dict.fromkeys([*order, *(column for found in measured.values() for column in found)]))
    measured = {
        name: {column: found[column] for column in columns if column in found}
        for name, found in measured.items()
    }
    print(
        f"\n{flags.table}: total reward, ours ± standard error over {flags.tasks} fresh tasks (published)\n"
    )
    print(f"{machine['cpu']}, {machine['cores']} cores; devices: {', '.join(machine['devices'])}\n")
    cells = [
        [name, *(cell(found.get(column), rows[name].get(column)) for column in columns)]
        for name, found in measured.items()
    ]
    print(common.markdown([" x ".join(keys), *columns], cells))
    for name, found in measured.items():
        notes = [f"{column}: {one.note}" for column, one in found.items() if one.note]
        print(f"\n{name}: {'; '.join(notes)}")
    path = flags.plot or pathlib.Path(f"benchmarks/results/{flags.table}.png")
    draw(path, plt, measured, rows)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
