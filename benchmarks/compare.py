"""jmeta beside PyTorch: seconds of the meta-gradient on a stored batch, and of whole meta-iterations.

Every side is a process of its own that waits while another is timed; they take turns, and medians are given.
On the stored batch, which jmeta collected on point-goal, all sides must find the same meta-gradient; their
relative difference is in the table. The sides of PyTorch are in `benchmarks/pytorch`: a tape and a loop over
the tasks (eager), `torch.func.vmap` over all tasks, one task's derivatives compiled; in one process with a
thread a core, or in one process a core with one thread each. Physics is Brax's on jmeta's side and MuJoCo's
on the other, where there is any. RL² learns with a GRU; PyTorch's side has all trials in one batch, eager.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import common

JMETA = "jmeta"
TOLERANCE = 1e-4  # of a meta-gradient, relative
FAMILIES = ("point-goal", "half-cheetah-direction", "ant-direction")  # known to both sides
PROBLEMS = ("bandit", "random-mdp")  # likewise
SIDES = ("eager", "vmap", "compile", "eager x cores", "vmap x cores", "compile x cores")  # of PyTorch
RL2 = "rl2"


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
    sides: tuple[str, ...] = SIDES
    """Sides of PyTorch."""
    problems: tuple[str, ...] = PROBLEMS
    """Task families of whole iterations of RL², at its presets."""
    repeats: int = 5
    """Timed repetitions of each side."""
    curve: int = 60
    """Meta-iterations of the curves of return against time: jmeta's and PyTorch's fastest side; 0: none."""
    results: pathlib.Path | None = None
    """Folder: in one of the machine's name, made there, go compare.json, .md and .png."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures."""

    side: str
    family: str
    outer: str  # trpo, adam, or rl2
    tasks: int
    inner_steps: int
    batch: str | None  # file of the stored batch; None times whole meta-iterations


# -- one side, in a process of its own ------------------------------------------------------------------


def config_of(case: Case) -> Any:
    """RL²'s preset, or MAML's with the case's sizes."""
    from jmeta.presets import preset

    if case.outer == RL2:
        return preset("rl2", case.family)
    config = preset("maml", case.family)
    arguments = {**config.algorithm, "num_episodes": 20, "num_inner_steps": case.inner_steps}
    if case.outer == "trpo":
        arguments |= {"optimizer": {"name": "trpo"}, "outer_surrogate": "ratio", "outer_epochs": 1}
    return dataclasses.replace(config, algorithm=arguments)


def flat(params: Any) -> list[np.ndarray]:
    """The policy's parameters as PyTorch's side has them: kernels and biases in turn, log deviations."""
    layers = [np.asarray(x) for layer in params["policy"] for x in layer]
    return [*layers, np.asarray(params["log_std"])]


def jmeta_side(case: Case) -> tuple[Callable[[], dict[str, float]], Callable[[], float]]:
    """A function that runs the case once and returns its seconds, and one that returns the peak in MiB."""
    import jax
    import jax.numpy as jnp
    import optax

    from jmeta import parallel, runtime, training
    from jmeta.algorithms.gradient import outer
    from jmeta.runs.config import build

    config = config_of(case)
    runtime.configure(num_tasks=case.tasks // config.algorithm.get("minibatches", 1))
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are cold ones
    family, policy, algorithm = build(config)
    mesh = parallel.task_mesh()
    jax.set_mesh(mesh)
    if case.outer == RL2:
        block = parallel.tasks_per_block(1)
        play = common.trial_of(family, policy, family.env.spec.trial_episodes)
    else:
        apart = ("name", "optimizer", "inner_optimizer")  # the inner one is SGD on both sides
        arguments = {name: value for name, value in config.algorithm.items() if name not in apart}
        parts = outer.assemble(family, policy, optimizer=optax.identity(), **arguments)
        block, play = parts.block, functools.partial(outer.collect, parts)

    @jax.jit
    def collect(params: Any, key: Any) -> Any:
        return parallel.map_tasks(play, params, *common.fresh_tasks(family, case.tasks, key), block=block)

    if case.batch is None:
        chunk = training.compile_chunk(algorithm, family, num_tasks=case.tasks, length=1)
        state = parallel.replicate(training.initial_state(algorithm, seed=0), mesh)

        def iteration() -> dict[str, float]:
            nonlocal state
            params = jax.tree.map(jnp.copy, state.meta.params)  # the state is given away to the update
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(chunk(state, jnp.int32(1)))
            done = time.perf_counter()
            jax.block_until_ready(collect(params, jax.random.key(1)))
            sampling = time.perf_counter() - done
            shown = "return_trial" if case.outer == RL2 else "return_after"
            return {
                "seconds": done - started,
                "sampling": sampling,
                "steps": float(metrics["env_steps"][0]),
                "return": float(metrics[shown][0]),
            }

        return iteration, common.peak_memory

    through = outer.meta_loss(parts)

    @jax.jit
    def gradient(params: Any, collected: Any) -> Any:
        one = jax.value_and_grad(lambda params, data: through(params, data)[0])
        return parallel.mean_over_tasks(one, params, collected, block=parts.block)[1]

    params = algorithm.init(jax.random.key(0)).params
    collected = jax.block_until_ready(collect(params, jax.random.key(1)))
    found = gradient(params, collected)

    def store(batch: Any) -> tuple[np.ndarray, ...]:
        return tuple(
            np.asarray(x)
            for x in (batch.inputs.obs, batch.action, batch.log_prob, batch.advantage, batch.mask)
        )

    distribution = jax.device_get(collected.distribution)
    data = (store(collected.pre), store(collected.post), distribution.mean, distribution.log_std[:, 0, 0])
    vector = np.concatenate([x.ravel() for x in flat(found)])
    pathlib.Path(case.batch).write_bytes(pickle.dumps((flat(params), data, vector)))

    def once() -> dict[str, float]:
        started = time.perf_counter()
        jax.block_until_ready(gradient(params, collected))
        return {"seconds": time.perf_counter() - started}

    return once, common.peak_memory


def pytorch_side(case: Case) -> tuple[Callable[[], dict[str, float]], Callable[[], float]]:
    """As `jmeta_side`; on a stored batch with the gradient's relative difference from jmeta's."""
    if case.batch is None:
        learner = rl2_learner(case) if case.outer == RL2 else maml_learner(case)

        def iteration() -> dict[str, float]:
            found = learner.iteration()
            return {
                "seconds": found["sampling"] + found["update"],
                "sampling": found["sampling"],
                "steps": found["env_steps"],
                "return": found["return_trial" if case.outer == RL2 else "return_after"],
            }

        return iteration, learner.memory

    params, data, expected = pickle.loads(pathlib.Path(case.batch).read_bytes())
    learner = maml_learner(case, params)
    learner.load(data)

    def once() -> dict[str, float]:
        started = time.perf_counter()
        vector = learner.mean("gradient", learner.flat).numpy()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "difference": relative(vector, expected)}

    return once, learner.memory


def maml_learner(case: Case, params: list[np.ndarray] | None = None) -> Any:
    """MAML on the side's style and processes, from given parameters or initial ones."""
    from benchmarks.pytorch import envs, maml

    if params is None:
        sizes = envs.make(case.family, 1, 1, 0)
        params = initial(sizes.obs_size, sizes.action_size)
    style, *several = case.side.split(" x ")
    algorithm = config_of(case).algorithm
    setting = maml.Setting(
        case.family,
        case.tasks,
        inner_steps=case.inner_steps,
        inner_learning_rate=algorithm["inner_learning_rate"],
        discount=algorithm["discount"],
        outer=case.outer,
        epochs=algorithm["outer_epochs"],
        learning_rate=algorithm["optimizer"].get("learning_rate", 0.0),
        max_kl=algorithm["optimizer"].get("max_kl", 0.01),
    )
    processes = min(common.cores(), case.tasks) if several else 1
    return maml.Learner(setting, style, params, processes)


def rl2_learner(case: Case) -> Any:
    """RL² with the preset's numbers."""
    from benchmarks.pytorch import rl2
    from jmeta.runs.config import build

    config = config_of(case)
    family, _, _ = build(config)
    spec, algorithm, optimizer = family.env.spec, config.algorithm, config.algorithm["optimizer"]
    same = ("epochs", "minibatches", "clip", "entropy_weight", "value_weight", "discount", "gae_lambda")
    setting = rl2.Setting(
        case.family,
        case.tasks,
        episodes=spec.trial_episodes,
        horizon=spec.horizon,
        num_actions=spec.action.num,
        num_states=spec.obs_size,
        size=config.policy["size"],
        learning_rate=optimizer["learning_rate"],
        max_grad_norm=optimizer["max_grad_norm"],
        **{name: algorithm[name] for name in same},
    )
    return rl2.Learner(setting)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over that of what was expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def initial(obs_size: int, action_size: int, hidden: int = 64) -> list[np.ndarray]:
    """Orthogonal kernels, as the policy of jmeta has them."""
    import torch

    torch.manual_seed(0)
    params: list[np.ndarray] = []
    gains = (2**0.5, 2**0.5, 0.01)
    for (rows, columns), gain in zip(
        ((obs_size, hidden), (hidden, hidden), (hidden, action_size)), gains, strict=True
    ):
        params += [torch.nn.init.orthogonal_(torch.empty(rows, columns), gain).numpy(), np.zeros(columns)]
    return [x.astype(np.float32) for x in (*params, np.full(action_size, -0.5))]


def serve(case: Case) -> None:
    """Answers each line of standard input with one run of the case."""
    started = time.perf_counter()
    once, memory = (jmeta_side if case.side == JMETA else pytorch_side)(case)
    once()
    print(json.dumps({"first": time.perf_counter() - started}), flush=True)
    once()  # warm-up
    for _ in sys.stdin:
        print(json.dumps({**once(), "peak": memory()}), flush=True)


# -- all sides in turn ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """What was measured of one side."""

    case: Case
    first: float  # seconds until the first result, start and compilation included
    answers: list[dict[str, float]]  # of every run: seconds and the peak in MiB of all processes; of whole
    # iterations those of sampling, steps and the return; of a stored batch the difference from jmeta's

    def median(self, name: str) -> float:
        """Of all runs; NaN where it is not measured."""
        return statistics.median(one.get(name, math.nan) for one in self.answers)


def race(cases: list[Case], repeats: int) -> list[Row]:
    """Times the cases in turn, `repeats` times."""
    processes, rows = [], []
    for case in cases:
        command = common.worker("benchmarks.compare", case)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        first = answer(process, case)["first"]  # one after the other: jmeta's side stores the batch
        rows.append(Row(dataclasses.replace(case, batch=None), first, []))  # a temporary file
    for _ in range(repeats):
        for row, process in zip(rows, processes, strict=True):
            assert process.stdin is not None
            process.stdin.write("once\n")
            process.stdin.flush()
            row.answers.append(answer(process, row.case))
    for process in processes:
        process.communicate()
    return rows


def answer(process: Any, case: Case) -> dict[str, float]:
    """The next answer of a side; ends the command where there is none."""
    line = process.stdout.readline()
    if not line:
        common.fail(f"{case.side} on {case.family} with {case.tasks} tasks ended without a result")
    return json.loads(line)


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
    """Seconds at the end of every iteration, and its return."""
    seconds = itertools.accumulate(one["seconds"] for one in row.answers)
    return list(seconds), [one["return"] for one in row.answers]


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
    for side in dict.fromkeys(row.case.side for row in rows):
        of_side = [row for row in rows if row.case.side == side]
        tasks, seconds = zip(*((row.case.tasks, row.median("seconds")) for row in of_side), strict=True)
        axis.plot(tasks, seconds, "o-", label=side, color="black" if side == JMETA else None)
    axis.set(xscale="log", yscale="log", xlabel="tasks", ylabel="seconds")
    sizes = sorted({row.case.tasks for row in rows})
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
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
    if sys.argv[1:2] == ["--worker"]:
        serve(Case(**json.loads(sys.argv[2])))
        return
    flags = common.parse(Flags, __doc__)
    for name, known in (("families", FAMILIES), ("problems", PROBLEMS), ("sides", SIDES)):
        for given in getattr(flags, name):
            if given not in known:
                common.fail(f"{name} must be among {', '.join(known)}, got {given!r}")
    if flags.outer not in ("trpo", "adam"):
        common.fail(f"outer must be trpo or adam, got {flags.outer!r}")
    common.at_least(1, tasks=flags.tasks, repeats=flags.repeats)
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
    lines = [f"{common.machine_line(machine)}, torch {torch.__version__}; medians of {flags.repeats}"]
    found: dict[str, list[Row]] = {"gradients": [], "iterations": [], "curves": []}

    def show(kind: str, title: str, rows: list[Row], text: str) -> None:
        lines.extend([title, text])
        found[kind] += rows
        print(f"{title}\n\n{text}\n", flush=True)
        if results is not None:  # hours in all: what is there is kept
            (results / "compare.md").write_text("\n\n".join(lines) + "\n")
            common.write_json(results / "compare.json", {"machine": machine, **found})
            draw(*found.values(), results / "compare.png")

    def compare(kind: str, title: str, case: Case, sides: tuple[str, ...]) -> list[Row]:
        rows = race([case, *(dataclasses.replace(case, side=side) for side in sides)], flags.repeats)
        wrong = [row.case.side for row in rows if row.median("difference") > TOLERANCE]
        if wrong:
            common.fail(f"the meta-gradient differs from jmeta's: {', '.join(wrong)}")
        show(kind, title, rows, table(rows))
        return rows

    with tempfile.TemporaryDirectory() as folder:
        for tasks in flags.gradient_tasks:
            for steps in flags.gradient_steps:
                batch = str(pathlib.Path(folder) / f"{tasks}-{steps}.pickle")
                case = Case(JMETA, "point-goal", "trpo", tasks, steps, batch)
                title = f"Meta-gradient of {tasks} tasks, inner steps: {steps}"
                compare("gradients", title, case, flags.sides)
    for family in flags.families:
        case = Case(JMETA, family, flags.outer, flags.tasks, 1, None)
        title = f"A meta-iteration on {flags.tasks} tasks of {family}, outer {flags.outer}"
        rows = compare("iterations", title, case, flags.sides)
        if flags.curve and flags.sides:
            fastest = min(rows[1:], key=lambda row: row.median("seconds")).case
            rows = race([case, fastest], flags.curve)
            show("curves", f"Learning {family}, outer {flags.outer}", rows, curve_table(rows))
    for family in flags.problems:
        trials = preset("rl2", family).training.num_tasks
        case = Case(JMETA, family, RL2, trials, 0, None)
        compare("iterations", f"An iteration of RL² on {trials} trials of {family}", case, ("eager",))


if __name__ == "__main__":
    main()
