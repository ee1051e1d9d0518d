"""jmeta beside PyTorch: seconds of the meta-gradient on a stored batch, and of whole meta-iterations.

All are on the CPU. Every side is a process of its own that waits while another is timed; they take turns, and
medians are given. The stored batch was collected by jmeta on point-goal, and all sides must find the same
meta-gradient; their relative difference is in the table. The sides of PyTorch are in `benchmarks/pytorch`: a
tape and a loop over the tasks (eager), `torch.func.vmap` over a few tasks at once, one task's derivatives
compiled; in one process with a thread a core, or in one process a core with one thread each. Physics is
Brax's on jmeta's side and MuJoCo's on the other, where there is any. RL² learns with a GRU; PyTorch's side
has all trials in one batch, eager. jmeta samples and updates in one program: its sampling is timed apart, and
its update is the rest. The first result counts from the start of the process; peak memory is that of the
timed runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import common
from benchmarks.sides import JMETA, PYTORCH, RL2, STORE, Case

TOLERANCE = 1e-4  # of a meta-gradient, relative
# Known to both sides.
FAMILIES = ("point-goal", "half-cheetah-direction", "half-cheetah-velocity", "ant-direction")
PROBLEMS = ("bandit", "random-mdp")
SAME_DYNAMICS = ("point-goal", *PROBLEMS)  # on both sides: their returns can be compared


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    families: tuple[str, ...] = FAMILIES
    """Task families of whole meta-iterations."""
    outer: str = "trpo"
    """Outer update of whole meta-iterations: trpo, or adam (epochs of PPO)."""
    tasks: int = 20
    """Tasks of a meta-iteration."""
    gradient_tasks: tuple[int, ...] = (20, 100, 1000)
    """Tasks of the stored batch."""
    gradient_steps: tuple[int, ...] = (1, 3, 5)
    """Inner steps on it."""
    sides: tuple[str, ...] = PYTORCH
    """Sides of PyTorch."""
    problems: tuple[str, ...] = PROBLEMS
    """Task families of whole iterations of RL², at its presets."""
    repeats: int = 5
    """Timed repetitions of each side."""
    curve: int = 60
    """Iterations of the curves of return against time, where the dynamics are the same: jmeta's and PyTorch's
    fastest side; 0: none."""
    results: pathlib.Path | None = None
    """Folder: in one of the machine's name, made there, go compare.json, .md and .png."""


@dataclasses.dataclass
class Row:
    """What was measured of one side."""

    case: Case
    first: float  # seconds until the first result, start and compilation included
    warm_up: list[dict[str, float]]  # the first two runs
    answers: list[dict[str, float]]  # of the others: seconds and the peak in MiB of all processes; of whole
    # iterations those of sampling, steps and the return; of a stored batch the difference from jmeta's

    def median(self, name: str) -> float:
        """Of all runs but the first two; NaN where it is not measured."""
        return statistics.median(one.get(name, math.nan) for one in self.answers)


def race(case: Case, sides: Sequence[str], repeats: int) -> list[Row]:
    """Times the sides in turn, `repeats` times; one of PyTorch's that ends without a result is left out."""
    rows, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        case = dataclasses.replace(case, file=str(pathlib.Path(folder) / "common.pickle"))
        stored = subprocess.run(
            common.worker("benchmarks.sides", dataclasses.replace(case, side=STORE)), check=False
        )
        if stored.returncode:
            common.fail(f"{case.family} with {case.tasks} tasks cannot be run")
        for side in sides:
            one = dataclasses.replace(case, side=side)
            started = time.perf_counter()
            process = subprocess.Popen(
                common.worker("benchmarks.sides", one),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            result = answer(process)
            first = time.perf_counter() - started
            warm_up = [result, answer(process)]
            rows.append(Row(dataclasses.replace(one, file=""), first, warm_up, []))
            processes.append(process)
        for _ in range(repeats):
            for row, process in zip(rows, processes, strict=True):
                if None not in (*row.warm_up, *row.answers):
                    assert process.stdin is not None
                    process.stdin.write("once\n")
                    process.stdin.flush()
                    row.answers.append(answer(process))
        for process in processes:
            process.communicate()
    return [row for row in rows if ended(row)]


def answer(process: Any) -> Any:
    """The next answer of a side, None where there is none."""
    line = process.stdout.readline()
    return json.loads(line) if line else None


def ended(row: Row) -> bool:
    """Whether all is there; jmeta's side has to."""
    whole = None not in (*row.warm_up, *row.answers)
    message = f"{row.case.side} on {row.case.family} with {row.case.tasks} tasks ended without a result"
    if not whole and row.case.side == JMETA:
        common.fail(message)
    if not whole:
        print(f"benchmarks: {message}", file=sys.stderr, flush=True)
    return whole


# -- tables and the plot --------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """Rows of one race, jmeta's first."""
    header = ["side", "seconds", "fastest", "slowest", "sampling", "update", "times jmeta's", "steps/s"]
    header += ["difference", "first result s", "peak MiB"]
    cells = []
    for row in rows:
        each = [one["seconds"] for one in row.answers]
        seconds, sampling = row.median("seconds"), row.median("sampling")
        found = [seconds, min(each), max(each), sampling, seconds - sampling]
        line = [row.case.side, *(known(x, ".3g") for x in found)]
        line.append(f"{seconds / rows[0].median('seconds'):.2f}")
        line += [known(row.median("steps") / seconds, ",.0f"), known(row.median("difference"), ".0e")]
        cells.append([*line, f"{row.first:.1f}", f"{row.median('peak'):,.0f}"])
    return common.markdown(header, cells)


def known(value: float, form: str) -> str:
    """The number, or nothing where it was not measured."""
    return "" if math.isnan(value) else f"{value:{form}}"


def curve(row: Row) -> tuple[list[float], list[float]]:
    """Seconds from the start of the process to the end of every iteration, and its return."""
    every = [*row.warm_up, *row.answers]
    seconds = itertools.accumulate((one["seconds"] for one in every[1:]), initial=row.first)
    return list(seconds), [one["return"] for one in every]


def curve_table(rows: list[Row]) -> str:
    """How long the iterations took, and where they led."""
    cells = []
    for row in rows:
        seconds, returns = curve(row)
        last = statistics.mean(returns[-5:])
        cells.append(
            [row.case.side, str(len(returns)), f"{seconds[-1]:.0f}", f"{returns[0]:.1f}", f"{last:.1f}"]
        )
    return common.markdown(["side", "iterations", "seconds", "first return", "mean of the last 5"], cells)


def draw(gradients: list[Row], iterations: list[Row], curves: list[Row], path: pathlib.Path) -> None:
    """Seconds of the meta-gradient and of whole iterations by part, and returns against time."""
    plt = common.pyplot()
    panels: list[tuple[Callable[[Any, list[Row]], None], str, list[Row]]] = []
    for steps in dict.fromkeys(row.case.inner_steps for row in gradients):
        rows = [row for row in gradients if row.case.inner_steps == steps]
        panels.append((draw_gradients, f"meta-gradient, inner steps: {steps}", rows))
    for family in dict.fromkeys(row.case.family for row in iterations):
        rows = [row for row in iterations if row.case.family == family]
        panels.append((draw_iterations, f"an iteration, {family}", rows))
    for family in dict.fromkeys(row.case.family for row in curves):
        panels.append((draw_curves, family, [row for row in curves if row.case.family == family]))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (4.4 * columns, 3.2 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (draw_panel, title, rows) in zip(axes.flat, panels, strict=False):
        draw_panel(axis, rows)
        axis.set_title(title)
    common.save_figure(figure, path)
    plt.close(figure)


def draw_gradients(axis: Any, rows: list[Row]) -> None:
    """Seconds against tasks, a line for each side."""
    from matplotlib.ticker import LogLocator

    for side in dict.fromkeys(row.case.side for row in rows):
        of_side = [row for row in rows if row.case.side == side]
        tasks, seconds = zip(*((row.case.tasks, row.median("seconds")) for row in of_side), strict=True)
        axis.plot(tasks, seconds, "o-", label=side, color="black" if side == JMETA else None)
    axis.set(xscale="log", yscale="log", xlabel="tasks", ylabel="seconds")
    sizes = sorted({row.case.tasks for row in rows})
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(frameon=False, fontsize="small")


def draw_iterations(axis: Any, rows: list[Row]) -> None:
    """A bar for each side: sampling, then the update."""
    sides = [row.case.side for row in rows]
    sampling = [row.median("sampling") for row in rows]
    axis.barh(sides, sampling, label="sampling", color="0.7")
    update = [row.median("seconds") - part for row, part in zip(rows, sampling, strict=True)]
    axis.barh(sides, update, left=sampling, label="update", color="C0")
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.legend(frameon=False, fontsize="small")


def draw_curves(axis: Any, rows: list[Row]) -> None:
    """Return against seconds, a line for each side."""
    for row in rows:
        axis.plot(*curve(row), label=row.case.side, color="black" if row.case.side == JMETA else None)
    axis.set(xlabel="seconds", ylabel="return after adaptation")
    axis.legend(frameon=False, fontsize="small")


def main() -> None:
    """Runs the command."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # as the sides
    flags = common.parse(Flags, __doc__)
    for name, allowed in (("families", FAMILIES), ("problems", PROBLEMS), ("sides", PYTORCH)):
        for given in getattr(flags, name):
            if given not in allowed:
                common.fail(f"{name} must be among {', '.join(allowed)}, got {given!r}")
    if flags.outer not in ("trpo", "adam"):
        common.fail(f"outer must be trpo or adam, got {flags.outer!r}")
    common.at_least(1, tasks=flags.tasks, repeats=flags.repeats)
    common.at_least(1, gradient_tasks=min(flags.gradient_tasks, default=1))
    common.at_least(1, gradient_steps=min(flags.gradient_steps, default=1))
    common.at_least(0, curve=flags.curve)
    try:
        import torch
    except ModuleNotFoundError:
        common.fail("PyTorch is not installed: pip install '.[benchmarks]'")
    from jmeta.presets import preset

    results, machine = None, common.machine_apart()
    if flags.results is not None:
        common.pyplot()
        results = common.machine_folder(flags.results, machine)
    record = {"flags": common.settings(flags), "machine": machine, "torch": torch.__version__}
    lines = [f"{common.machine_line(machine)}, torch {torch.__version__}; medians of {flags.repeats}"]
    found: dict[str, list[Row]] = {"gradients": [], "iterations": [], "curves": []}

    def show(kind: str, title: str, rows: list[Row], text: str) -> None:
        lines.extend([title, text])
        found[kind] += rows
        print(f"{title}\n\n{text}\n", flush=True)
        if results is not None:  # hours in all: what is there is kept
            (results / "compare.md").write_text("\n\n".join(lines) + "\n")
            common.write_json(results / "compare.json", record | found)
            draw(*found.values(), results / "compare.png")

    def compare(title: str, case: Case, sides: tuple[str, ...]) -> None:
        rows = race(case, [JMETA, *sides], flags.repeats)
        if case.gradient:
            wrong = [row.case.side for row in rows[1:] if not row.median("difference") <= TOLERANCE]
            if wrong:
                common.fail(f"the meta-gradient differs from jmeta's: {', '.join(wrong)}")
        show("gradients" if case.gradient else "iterations", title, rows, table(rows))
        if not case.gradient and flags.curve and len(rows) > 1 and case.family in SAME_DYNAMICS:
            fastest = min(rows[1:], key=lambda row: row.median("seconds")).case.side
            rows = race(case, [JMETA, fastest], flags.curve)
            show("curves", f"Learning {case.family}, {case.outer}", rows, curve_table(rows))

    for tasks in flags.gradient_tasks:
        for steps in flags.gradient_steps:
            case = Case(JMETA, "point-goal", "trpo", tasks, steps, gradient=True, file="")
            compare(f"Meta-gradient of {tasks} tasks, inner steps: {steps}", case, flags.sides)
    for family in flags.families:
        case = Case(JMETA, family, flags.outer, flags.tasks, 1, gradient=False, file="")
        compare(
            f"A meta-iteration on {flags.tasks} tasks of {family}, outer {flags.outer}", case, flags.sides
        )
    for family in flags.problems:
        trials = preset("rl2", family).training.num_tasks
        case = Case(JMETA, family, RL2, trials, 0, gradient=False, file="")
        compare(f"An iteration of RL² on {trials} trials of {family}", case, ("eager",))


if __name__ == "__main__":
    main()
