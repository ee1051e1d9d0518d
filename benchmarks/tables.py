"""The published tables of bandits and random MDPs: our columns beside the published ones.

Ours alone: `optimal`, which knows every task, `q_learning`, and the policies with a memory
that were not published.

TABLE.json, .md and .png in the folder `--results` hold all figures measured so far, those of earlier
commands too: a command replaces what it measures anew and keeps the others.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from benchmarks import common
from jmeta import statistics

PUBLISHED = pathlib.Path(__file__).parent / "published"
# Columns of RL²: of the first two there are published ones.
POLICIES = {"rl2": "gru", "snail": "snail", "lstm": "lstm", "mann": "mann", "transformer": "transformer"}
MEASURED, TUNED = 10_000, 20_000  # seeds of tasks: none of the training, nor of the other
KEYS = {"bandits": ("pulls", "arms"), "mdps": ("episodes",)}  # columns that name a row
TASKS = {"bandits": 10_000, "mdps": 2_000}  # on which a figure is measured
TUNING_TASKS = 400  # on which a parameter is chosen
UNPUBLISHED = """\
Learned figures of one seed have an error over tasks only: how far another training run would come is not
measured. Compare them with `q_learning` and `bayes_greedy`, which were not published, rather than with the
best that was."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    table: tyro.conf.Positional[Literal["bandits", "mdps"]]
    """Which table."""
    rows: tuple[str, ...] = ()
    """Rows to fill, such as 10x5 (pulls x arms) or 10 (episodes); none given means all."""
    learned: tuple[str, ...] = ()
    """Columns to train in every row, minutes to hours each: rl2 (a GRU), snail, lstm, mann, transformer; none
    given measures the classical ones and the optimum."""
    iterations: int | None = None
    """Meta-iterations of each learned figure; None takes the preset's."""
    tasks: int | None = None
    """Fresh tasks of each figure, the same in a row; None takes 10,000 of bandits and 2,000 of MDPs."""
    seeds: int = 1
    """Training runs of each learned figure."""
    results: pathlib.Path = pathlib.Path("benchmarks/results")
    """Folder of TABLE.json, TABLE.md and TABLE.png."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured figure."""

    mean: float
    standard_error: float
    note: str = ""  # the tuned parameter, or the training that it took


class Problem(NamedTuple):
    """What a row is about."""

    family: str
    arguments: tuple[tuple[str, int], ...]  # of the family
    episodes: int  # of a trial


def published(table: str) -> list[dict[str, str]]:
    """Rows of a published table."""
    name = {"bandits": "bandits.csv", "mdps": "tabular_mdps.csv"}[table]
    with open(PUBLISHED / name, newline="") as file:
        return list(csv.DictReader(file))


def problem_of(row: dict[str, str]) -> Problem:
    """The problem of a published row."""
    if "pulls" in row:
        return Problem("bandit", (("num_arms", int(row["arms"])), ("num_pulls", int(row["pulls"]))), 1)
    return Problem("random-mdp", (), int(row["episodes"]))


@functools.cache
def family_of(problem: Problem) -> Any:
    """Its task family: one object, so that nothing is compiled twice."""
    from jmeta import tasks

    return tasks.REGISTRY[problem.family](**dict(problem.arguments))


def figure(totals: np.ndarray, note: str = "") -> Figure:
    """Mean and standard error of the totals [tasks]."""
    return Figure(float(totals.mean()), float(totals.std(ddof=1) / np.sqrt(len(totals))), note)


def over_seeds(totals: np.ndarray, note: str) -> Figure:
    """Mean of totals [seeds, tasks] of the same tasks; of one seed, the error is over tasks only."""
    if len(totals) == 1:
        return figure(totals[0], note)
    found = statistics.over_seeds_and_tasks(totals)
    return Figure(float(found.mean), float(found.standard_error), note)


def tuned(total: Callable[[int, int, Any], np.ndarray], strategy: Any, flags: Flags) -> Figure:
    """A strategy's figure, its parameter chosen on other tasks than those it is measured on.

    Args:
      total: (tasks, their seed, parameter) -> totals [tasks].
      strategy: of `benchmarks.classical`.
      flags: the command's.
    """
    if not strategy.candidates:
        return figure(total(flags.tasks, MEASURED, 0.0))
    best = max(strategy.candidates, key=lambda value: total(TUNING_TASKS, TUNED, value).mean())
    note = f"{strategy.meaning} = {described(best, strategy.candidates)}"
    return figure(total(flags.tasks, MEASURED, best), note)


def described(chosen: Any, candidates: tuple[Any, ...]) -> str:
    """A parameter, or the numbers that make one; starred where none tried is smaller, or none larger."""
    tried = np.transpose([np.atleast_1d(value) for value in candidates])
    numbers = zip(np.atleast_1d(chosen), tried, strict=True)
    return ", ".join(f"{x:g}" + "*" * (x in (values.min(), values.max())) for x, values in numbers)


@functools.cache
def cumulative(strategy: Any, problem: Problem, num_tasks: int, seed: int, parameter: Any) -> np.ndarray:
    """What a strategy got on fresh tasks up to the end of every episode of a trial, [tasks, E]."""
    import jax

    from benchmarks.classical import bandits, mdps
    from jmeta import parallel

    family = family_of(problem)
    tasks, keys = common.fresh_tasks(family, num_tasks, jax.random.key(seed))
    with jax.set_mesh(parallel.task_mesh()):
        if problem.family == "bandit":
            rewards = bandits.total_reward(strategy, family, parameter, tasks, keys)[:, None]
        else:
            rewards = mdps.episode_rewards(strategy, family, problem.episodes, parameter, tasks, keys)
    return np.cumsum(np.asarray(rewards, float), axis=1)


def classical(flags: Flags, problem: Problem, most_episodes: int) -> dict[str, Figure]:
    """The figures of every strategy, and of the optimum.

    Args:
      flags: the command's.
      problem: the row's.
      most_episodes: of any row's trials. None of the strategies knows how many are to come, so that the
        trials of all rows are the first episodes of the same ones.
    """
    import jax

    from benchmarks.classical import bandits, mdps

    family, longest = family_of(problem), problem._replace(episodes=most_episodes)
    strategies: dict[str, Any] = mdps.STRATEGIES
    if problem.family == "bandit":
        strategies = bandits.strategies(family.env.spec.horizon)

    def total(strategy: Any, num_tasks: int, seed: int, parameter: Any) -> np.ndarray:
        return cumulative(strategy, longest, num_tasks, seed, parameter)[:, problem.episodes - 1]

    measured = {
        name: tuned(functools.partial(total, strategy), strategy, flags)
        for name, strategy in strategies.items()
    }
    tasks, _ = common.fresh_tasks(family, flags.tasks, jax.random.key(MEASURED))
    measured["optimal"] = figure(problem.episodes * np.asarray(jax.vmap(family.optimal_return)(tasks)))
    return measured


def config_of(flags: Flags, problem: Problem, column: str) -> Any:
    """How a column's policy is trained for a row."""
    name, arguments = POLICIES[column], dict(problem.arguments)
    config = common.rl2_config(problem.family, name, iterations=flags.iterations, **arguments)
    policy = dict(config.policy)
    if "max_steps" in policy:
        policy["max_steps"] = problem.episodes * family_of(problem).env.spec.horizon
    algorithm = {**config.algorithm, "num_episodes": problem.episodes}
    return dataclasses.replace(config, policy=policy, algorithm=algorithm)


def learned(flags: Flags, column: str, config: Any) -> Figure:
    """Trains a column's policy, once a seed, and measures it."""
    import jax

    import jmeta
    from jmeta.runs.config import build

    family, policy, algorithm = build(config)
    env_steps, totals = 0.0, []

    def show(progress: jmeta.training.Progress) -> None:
        nonlocal env_steps
        env_steps = progress.iteration * progress.metrics["env_steps"]
        reached = progress.metrics["return_trial"]
        print(f"{column}: {progress.iteration} {reached:.1f}", file=sys.stderr, flush=True)

    episodes = config.algorithm["num_episodes"]
    play = common.trial_player(family, policy, episodes, flags.tasks, lambda _, steps, returns: returns.sum())
    seconds = 0.0
    for seed in range(flags.seeds):
        training = dataclasses.asdict(config.training) | {"seed": seed}
        started = time.perf_counter()
        state = jmeta.train(algorithm, family, **training, callback=show)
        seconds += time.perf_counter() - started
        totals.append(play(state.params, jax.random.key(MEASURED)))
    minutes = seconds / 60 / flags.seeds
    means = ", ".join(f"{total.mean():.1f}" for total in totals)
    note = (
        f"{config.training.iterations} iterations, {minutes:.1f} minutes, {env_steps / 1e6:.1f} million steps"
        + (f" a seed; seeds {means}" if flags.seeds > 1 else "")
        + f"; {common.machine_line(common.machine())}"
    )
    return over_seeds(np.stack(totals), note)


def cell(found: Figure | None, known: str | None) -> str:
    """Our figure and the published one, as far as there are."""
    ours = "-"
    if found:
        digits = 2 if found.standard_error < 0.05 else 1
        ours = f"{found.mean:.{digits}f} ± {found.standard_error:.{digits}f}"
    return f"{ours} ({known})" if known else ours


def columns_of(rows: dict[str, dict[str, str]], measured: dict[str, dict[str, Figure]]) -> list[str]:
    """Columns that have a figure, the published ones first."""
    known = [
        column for row in rows.values() for column in row if column not in KEYS["bandits"] + KEYS["mdps"]
    ]
    return list(dict.fromkeys([*known, *(column for found in measured.values() for column in found)]))


def draw(path: pathlib.Path, measured: dict[str, dict[str, Figure]], rows: dict[str, Any]) -> None:
    """A panel a row: our figures with two standard errors, the published ones as rings."""
    plt = common.pyplot()
    columns = min(3, len(measured))
    lines = -(-len(measured) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(4.5 * columns, 2.8 * lines + 0.8), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(measured) :]:
        panel.set_visible(False)
    for panel, (name, found) in zip(panels.flat, measured.items(), strict=False):
        figures = {column: found[column] for column in columns_of(rows, measured) if column in found}
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
        row = rows[name]
        title = [f"{row[key]} {key}" for keys in KEYS.values() for key in keys if key in row]
        panel.set_title(", ".join(title), fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("total reward", fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", frameon=False, fontsize=8, ncols=2)
    common.save_figure(figure, path)


def report(flags: Flags, rows: dict[str, dict[str, str]], measured: dict[str, dict[str, Figure]]) -> str:
    """The table as text, published columns first, and the notes."""
    keys = KEYS[flags.table]
    columns = columns_of(rows, measured)
    cells = [
        [name, *(cell(found.get(column), rows[name].get(column)) for column in columns)]
        for name, found in measured.items()
    ]
    lines = [
        f"{flags.table}: total reward, ours ± standard error over {flags.tasks} fresh tasks (published); of"
        " learned columns with several seeds the error is of those, too",
        common.markdown([" x ".join(keys), *columns], cells),
    ]
    for name, found in measured.items():
        notes = [f"- {column}: {one.note}" for column, one in found.items() if one.note]
        lines.append("\n".join([f"{name}:", "", *notes]))
    remarks = "`*`: the smallest or the largest of the values tried"
    if flags.table == "mdps":
        remarks = f"{UNPUBLISHED}\n\n{remarks}"
    return "\n\n".join([*lines, remarks])


def earlier(path: pathlib.Path, rows: dict[str, Any], tasks: int) -> dict[str, dict[str, Figure]]:
    """The figures that other commands wrote.

    Raises:
      ValueError: another file, or figures of another number of tasks.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        measured_on, found = record["tasks"], record["rows"]
        figures = {name: {column: Figure(**one) for column, one in found[name].items()} for name in found}
        alien = not figures.keys() <= rows.keys()
    except (ValueError, TypeError, KeyError, AttributeError):
        alien = True
    if alien:
        raise ValueError(f"{path} is not a table that this command wrote; choose another --results")
    if measured_on != tasks:
        raise ValueError(f"{path} has figures of {measured_on} tasks, so tasks must be so many, got {tasks}")
    return figures


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    if flags.tasks is None:
        flags = dataclasses.replace(flags, tasks=TASKS[flags.table])
    rows = {"x".join(row[key] for key in KEYS[flags.table]): row for row in published(flags.table)}
    for name in flags.rows:
        if name not in rows:
            common.fail(f"rows must be among {', '.join(rows)}, got {name!r}")
    for column in flags.learned:
        if column not in POLICIES:
            common.fail(f"learned must be among {', '.join(POLICIES)}, got {column!r}")
    common.at_least(2, tasks=flags.tasks)
    common.at_least(1, seeds=flags.seeds)
    common.pyplot()
    problems = {name: problem_of(row) for name, row in rows.items() if name in (flags.rows or rows)}
    path = flags.results / f"{flags.table}.json"
    from jmeta.runs.config import build

    try:
        flags.results.mkdir(parents=True, exist_ok=True)
        earlier(path, rows, flags.tasks)
        configs = {
            name: {column: config_of(flags, problem, column) for column in flags.learned}
            for name, problem in problems.items()
        }
        flat = [config for columns in configs.values() for config in columns.values()]
        common.start((flags.tasks, 1), (TUNING_TASKS, 1), *map(common.shared_in_training, flat))
        for config in flat:
            build(config)  # names what is out of its range
    except (ValueError, OSError) as error:
        common.fail(str(error))

    def keep(row: str, figures: dict[str, Figure]) -> None:
        measured = earlier(path, rows, flags.tasks)  # other commands may have written since
        measured[row] = measured.get(row, {}) | figures
        measured = {name: measured[name] for name in rows if name in measured}  # in the published order
        common.write_json(path, {"tasks": flags.tasks, "rows": measured})
        path.with_suffix(".md").write_text(report(flags, rows, measured) + "\n")
        draw(path.with_suffix(".png"), measured, rows)

    most_episodes = max(problem.episodes for problem in problems.values())
    for name, problem in problems.items():
        started = time.perf_counter()
        if not flags.learned:
            keep(name, classical(flags, problem, most_episodes))
        for column, config in configs[name].items():
            keep(name, {column: learned(flags, column, config)})
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(f"\n{report(flags, rows, earlier(path, rows, flags.tasks))}")


if __name__ == "__main__":
    main()
