"""Search, then go there: RL² on a 5 x 5 grid with a hidden goal, episode by episode of a trial.

A policy with a memory is trained on `grid-goal` and tried on fresh tasks. Beside the return of each episode
stands its share of the optimum, the return of an agent that knows the goal of the same task, and how many
cells it visits before it first reaches the goal: distinct ones, the start among them, or all those of the
episode if it never does. The agent that knows walks straight.

The target: the third episode at least 90 % of the optimum.

The picture is of trials of the first seed, none of them selected by what happens in it: the first tasks
with goals on the right, in the middle and on the left.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import common
from jmeta import statistics

SIZE = 5  # cells in a row of the family's grid
TARGET_EPISODE, TARGET_SHARE = 3, 0.9
SHARE = "of the optimum"
FORMATS = {"return": ".2f", SHARE: ".1%", "goal reached": ".1%", "cells before the goal": ".1f"}
DRAWN = ((4, 1), (2, 2), (0, 4))  # goals of the trials in the plot, or those of the tasks that are nearest


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    policy: str = "gru"
    """Policy with a memory, one of those that `jmeta list` shows."""
    seeds: int = 5
    """Training runs."""
    tasks: int = 1000
    """Fresh tasks that each run is tried on."""
    iterations: int | None = None
    """Meta-iterations; None takes the preset's."""
    plot: pathlib.Path = pathlib.Path("benchmarks/results/grid-goal.png")
    """File for the picture of a few trials."""
    json: pathlib.Path | None = None
    """File for what is printed."""


class Trials(NamedTuple):
    """Arrays of trials as they were played; leading axes [tasks] or [seeds, tasks]."""

    goal: Any  # [2]
    optimum: Any  # [] return of an episode of an agent that knows the goal
    cells: Any  # [E, T + 1, 2] before each step and after the last
    returns: Any  # [E]


@dataclasses.dataclass(frozen=True)
class Row:
    """One measure, of every episode of a trial."""

    name: str
    mean: list[float]  # [E]
    low: list[float]
    high: list[float]
    informed: float  # mean of an agent that knows the goal


def keep(family: Any) -> Callable[..., Trials]:
    """What is kept of a trial, for `common.trial_player`."""
    import jax.numpy as jnp

    spec = family.env.spec

    def trial(task: Any, steps: Any, returns: Any) -> Trials:
        obs = steps.inputs.obs.reshape(spec.trial_episodes, spec.horizon, 2)  # no episode ends early
        obs = jnp.concatenate([obs, steps.last_obs[:, None]], axis=1)
        cells = jnp.round((obs + 1) / 2 * (SIZE - 1)).astype(int)
        return Trials(task, family.optimal_return(task), cells, returns)

    return trial


def train_and_play(flags: Flags, config: Any) -> Trials:
    """Trials [seeds, tasks] after each run of training."""
    import jax

    import jmeta
    from jmeta.runs.config import build

    family, policy, algorithm = build(config)
    play = common.trial_player(family, policy, family.env.spec.trial_episodes, flags.tasks, keep(family))
    started, played = time.perf_counter(), []
    for seed in range(flags.seeds):
        state = jmeta.train(algorithm, family, **{**dataclasses.asdict(config.training), "seed": seed})
        played.append(play(state.params, jax.random.key(10_000 + seed)))  # no task of any training run
        returns, seconds = played[-1].returns.mean(0), time.perf_counter() - started
        print(f"seed {seed}: {np.round(returns, 2)}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return Trials(*(np.stack(field) for field in zip(*played, strict=True)))


def search(cells: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether an episode reaches the goal, and how many distinct cells it visits before.

    Args:
      cells: [..., E, T + 1, 2].
      goal: [..., 2].

    Returns:
      Two arrays [..., E].
    """
    there = (cells == goal[..., None, None, :]).all(-1)
    before = np.cumsum(there, axis=-1) == 0
    index = cells[..., 0] * SIZE + cells[..., 1]
    visited = ((index[..., None] == np.arange(SIZE**2)) & before[..., None]).any(-2)
    return there.any(-1), visited.sum(-1)


def measure(trials: Trials) -> list[Row]:
    """Means over trials [seeds, tasks], with intervals."""
    reached, searched = search(trials.cells, trials.goal)
    share = trials.returns.mean((0, 1)) / trials.optimum.mean()
    # The ratio of the means, to first order as a mean, so that it can be resampled like the others.
    shares = share + (trials.returns - share * trials.optimum[..., None]) / trials.optimum.mean()
    distance = trials.goal.sum(-1).mean()
    measures = (trials.returns, trials.optimum.mean()), (shares, 1.0), (reached, 1.0), (searched, distance)
    rows = []
    for name, (samples, informed) in zip(FORMATS, measures, strict=True):
        # Every run is tried on tasks of its own.
        mean, low, high, _ = (x.tolist() for x in statistics.over_seeds(samples.mean(1)))
        rows.append(Row(name, mean, low, high, float(informed)))
    return rows


def table(rows: list[Row]) -> str:
    """The measures as text."""
    episodes = range(len(rows[0].mean))
    cells = [
        [row.name, *(interval(row, episode) for episode in episodes), f"{row.informed:{FORMATS[row.name]}}"]
        for row in rows
    ]
    return common.markdown(["", *(f"episode {e + 1}" for e in episodes), "knows the goal"], cells)


def interval(row: Row, episode: int) -> str:
    """A mean and its interval as text."""
    mean, low, high = (f"{x[episode]:{FORMATS[row.name]}}" for x in (row.mean, row.low, row.high))
    return f"{mean} [{low}, {high}]"


def draw_path(axis: Any, cells: np.ndarray, goal: np.ndarray) -> tuple[Any, Any, Any]:
    """One episode's path from early to late; returns its start, its goal and its steps as drawn.

    Args:
      axis: where.
      cells: [T + 1, 2].
      goal: [2].
    """
    times = np.arange(len(cells))
    late = times[-1]
    points = cells + 0.6 * (times[:, None] / late - 0.5)  # across a cell, so that every visit to it is seen
    moves = np.diff(points, axis=0)
    colors = {"cmap": "cool", "clim": (0, late)}
    square = goal[:, None] + np.array([[-0.5, 0.5, 0.5, -0.5], [-0.5, -0.5, 0.5, 0.5]])
    (shaded,) = axis.fill(*square, color="gold", alpha=0.6, label="goal")
    axis.quiver(
        *points[:-1].T, *moves.T, times[1:], angles="xy", scale_units="xy", scale=1, width=0.012, **colors
    )
    dots = axis.scatter(*points.T, c=times, s=9, label="a step (slanted within its cell: stays)", **colors)
    (start,) = axis.plot(*points[0], "o", markersize=9, markerfacecolor="none", color="black", label="start")
    lines, limits = np.arange(SIZE) - 0.5, (-0.5, SIZE - 0.5)
    axis.set(xticks=lines, yticks=lines, xlim=limits, ylim=limits, aspect="equal", axisbelow=True)
    axis.tick_params(length=0, labelbottom=False, labelleft=False)
    axis.grid(color="0.85")
    return start, shaded, dots


def draw(trials: Trials, policy: str, path: pathlib.Path) -> None:
    """A few trials [tasks] as rows, an episode a panel."""
    pyplot = common.pyplot()

    distance = trials.goal.sum(-1)
    chosen = [np.abs(trials.goal - np.array(goal)).sum(-1).argmin() for goal in DRAWN]
    episodes = trials.returns.shape[-1]
    size = (2.5 * episodes + 1, 2.6 * len(chosen) + 0.7)
    figure, axes = pyplot.subplots(len(chosen), episodes, figsize=size, squeeze=False, layout="constrained")
    for row, trial in zip(axes, chosen, strict=True):
        row[0].set_ylabel(f"goal {distance[trial]} steps away\nbest return {trials.optimum[trial]:.1f}")
        for episode, axis in enumerate(row):
            start, goal, dots = draw_path(axis, trials.cells[trial, episode], trials.goal[trial])
            axis.set_title(
                f"episode {episode + 1}: return {trials.returns[trial, episode]:.1f}", fontsize="medium"
            )
    figure.colorbar(dots, ax=axes, label="step of the episode", shrink=0.6)
    figure.legend(handles=[start, goal, dots], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"A trial a row: the goal is hidden, the memory ({policy}) lasts from episode to episode")
    common.save_figure(figure, path)


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(1, seeds=flags.seeds, tasks=flags.tasks)
    common.check_plot(flags.plot)
    started = time.perf_counter()
    try:
        config = common.rl2_config("grid-goal", flags.policy, iterations=flags.iterations)
        common.start((flags.tasks, 1), common.shared_in_training(config))
        trials = train_and_play(flags, config)
    except ValueError as error:
        common.fail(str(error))
    seconds, iterations = time.perf_counter() - started, config.training.iterations
    rows = measure(trials)
    share = next(row for row in rows if row.name == SHARE)
    reached = share.mean[TARGET_EPISODE - 1] >= TARGET_SHARE
    record = {
        "flags": common.settings(flags),
        "machine": common.machine(),
        "iterations": iterations,
        "seconds": seconds,
        "rows": rows,
        "seed_returns": trials.returns.mean(1).tolist(),
        "target": {"episode": TARGET_EPISODE, "share": TARGET_SHARE, "reached": reached},
    }
    common.write_json(flags.json, record)
    print(
        f"\ngrid-goal, rl2 with {flags.policy}, {iterations} iterations; {seconds / 60:.0f} minutes."
        f" {flags.tasks} fresh tasks a seed; {statistics.heading(flags.seeds)}\n\n{table(rows)}\n"
    )
    print(
        f"Target: episode {TARGET_EPISODE} at least {TARGET_SHARE:.0%} of the optimum:"
        f" {interval(share, TARGET_EPISODE - 1)}, {'reached' if reached else 'missed'}"
    )
    draw(Trials(*(field[0] for field in trials)), flags.policy, flags.plot)


if __name__ == "__main__":
    main()
