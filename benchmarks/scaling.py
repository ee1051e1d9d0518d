"""How a meta-iteration grows: with tasks, inner steps, devices, and seeds trained side by side.

MAML's, of the family's preset. One quantity is varied at a time, and every size is measured in a process of
its own: seconds (median after a warm-up), what the compiled program allocates beside its arguments and
results, and the process's peak memory. A device has a core, as far as there are cores. The law
`fixed + growing x` is fitted by least squares of relative errors; x is the number of tasks, inner steps or
seeds, and 1 / devices as far as each has a core. Two sizes give a law, three show how far from it they are.
That of memory starts where the tasks fill a block.

At the end the law of the tasks is taken to a pod of accelerators, on paper: `Pod` states the assumptions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import sys
from typing import Any

from benchmarks import common

SWEEPS = ("tasks", "inner_steps", "devices", "seeds")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    family: str = "point-goal"
    """Task family."""
    tasks: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    """Tasks of an iteration."""
    inner_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Inner steps."""
    devices: tuple[int, ...] = (1, 2, 4)
    """Host devices."""
    seeds: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Meta-trainings side by side in one program."""
    base_tasks: int = 64
    """Tasks where something else is varied."""
    episodes: int = 4
    """Episodes before each inner step and after the last."""
    repeats: int = 3
    """Timed repetitions."""
    results: pathlib.Path | None = None
    """Folder: in one of the machine's name, made there, go scaling.json, .md and .png."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement, made in a process of its own."""

    sweep: str
    family: str
    tasks: int
    inner_steps: int
    devices: int
    seeds: int
    episodes: int
    repeats: int

    @property
    def size(self) -> int:
        """What is varied."""
        size: int = getattr(self, self.sweep)
        return size


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of a case."""

    case: Case
    seconds: float  # median
    spread: tuple[float, float]  # the fastest and the slowest
    env_steps: float  # of all seeds, in an iteration
    temporary: float  # MiB a device
    block: int  # tasks that a device runs side by side
    peak: float  # MiB of the process
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Law:
    """`fixed + growing x`, and how far a measurement is from it at most, relative."""

    sizes: tuple[int, int]  # the least and the largest that it was fitted to
    fixed: float
    growing: float
    error: float | None  # None of two sizes, through which every law goes


def measure(case: Case) -> Row:
    """Compiles a meta-iteration, asks for its memory, and times it."""
    import jax
    import numpy as np

    from jmeta import parallel, runtime
    from jmeta.presets import preset
    from jmeta.runs.config import build

    if hasattr(os, "sched_setaffinity"):  # else XLA shares the large products of one device with idle cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.devices])
    jax.config.update("jax_num_cpu_devices", case.devices)
    runtime.configure()
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are cold ones
    config = preset("maml", case.family)
    sizes = {"num_episodes": case.episodes, "num_inner_steps": case.inner_steps}
    family, _, algorithm = build(dataclasses.replace(config, algorithm={**config.algorithm, **sizes}))

    def iteration(state: Any, key: Any) -> Any:
        key_tasks, key_update = jax.random.split(key)
        tasks = jax.vmap(family.sample)(parallel.task_keys(key_tasks, case.tasks))
        return algorithm.update(state, tasks, key_update)

    keys = jax.random.split(jax.random.key(0), case.seeds)
    init = algorithm.init
    if case.seeds == 1:
        keys = keys[0]
    else:
        init, iteration = jax.vmap(init), jax.vmap(iteration)
    mesh = parallel.task_mesh(jax.devices()[: case.devices])
    if mesh.size < case.devices:
        raise ValueError(f"devices must be at most {mesh.size}, as many as there are, got {case.devices}")
    with jax.set_mesh(mesh):
        state = parallel.replicate(jax.jit(init)(keys), mesh)
        found = common.compiled(iteration, state, keys, repeats=case.repeats)
    return Row(
        case,
        statistics.median(found.seconds),
        (min(found.seconds), max(found.seconds)),
        float(np.sum(found.result[1]["env_steps"])),
        found.memory.temp_size_in_bytes / 2**20,
        parallel.block_size(parallel.tasks_per_block(case.episodes)) or case.tasks,
        common.peak_memory(),
        found.compile_seconds,
    )


def cases(flags: Flags) -> list[Case]:
    """All sizes; that which all sweeps start from is measured in each."""
    base = Case("", flags.family, flags.base_tasks, 1, 1, 1, flags.episodes, flags.repeats)
    return [
        dataclasses.replace(base, **{"sweep": sweep, sweep: size})
        for sweep in SWEEPS
        for size in getattr(flags, sweep)
    ]


def fit(sweep: str, sizes: list[int], y: list[float]) -> Law:
    """The line through positive measurements whose relative errors are least, in squares."""
    import numpy as np

    x = [abscissa(sweep, size) for size in sizes]
    columns = np.stack([np.ones(len(x)), x], axis=1) / np.array(y)[:, None]
    (fixed, growing), *_ = np.linalg.lstsq(columns, np.ones(len(x)), rcond=None)
    errors = np.abs(columns @ [fixed, growing] - 1.0)
    error = float(errors.max()) if len(set(sizes)) > 2 else None
    return Law((min(sizes), max(sizes)), float(fixed), float(growing), error)


def abscissa(sweep: str, size: Any) -> Any:
    """The x of a law."""
    return 1.0 / size if sweep == "devices" else 1.0 * size


def laws(rows: list[Row], cores: int) -> dict[str, dict[str, Law]]:
    """By sweep, the laws of seconds and of a device's memory, where two sizes or more were measured."""
    found = {}
    for sweep in SWEEPS:
        of_sweep = [row for row in rows if row.case.sweep == sweep]
        if sweep == "devices":
            of_sweep = [row for row in of_sweep if row.case.devices <= cores]
        if len({row.case.size for row in of_sweep}) < 2:
            continue
        # Tasks of a block need memory for all that they do; those of the next blocks only for what is kept.
        in_blocks = [row for row in of_sweep if row.case.tasks >= row.block]
        of_memory = in_blocks if len({row.case.size for row in in_blocks}) > 1 else of_sweep
        found[sweep] = {
            "seconds": fit(sweep, [row.case.size for row in of_sweep], [row.seconds for row in of_sweep]),
            "MiB": fit(sweep, [row.case.size for row in of_memory], [row.temporary for row in of_memory]),
        }
    return found


# -- on paper -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pod:
    """What is assumed of accelerators that share the tasks; all of it is on paper, nothing measured."""

    speed: float = 100.0  # of a chip, in cores of this machine, once it has enough tasks
    latency: float = 20e-6  # seconds that a chip needs for a step of the environments, however few
    link: float = 50e9  # bytes a second from a chip to its neighbour (TPU v5e, as published)
    hop: float = 1e-6  # seconds from a chip to its neighbour
    chips: tuple[int, ...] = (1, 16, 256)  # a square torus
    tasks: tuple[int, ...] = (4_096, 65_536, 1_048_576)


@dataclasses.dataclass(frozen=True)
class Work:
    """What an iteration has to do."""

    per_task: float  # seconds of a core here
    depth: int  # steps of an environment that follow one another
    sums: int  # over all chips: of gradients, of the divergence after the last, of the metrics
    bytes: int  # of a gradient
    memory: float  # MiB a task


def on_paper(pod: Pod, work: Work, chips: int, tasks: int) -> dict[str, float]:
    """Seconds of an iteration on a pod, by cause."""
    # A ring in each dimension: all but one part of the gradient goes out twice; 4 (side - 1) hops.
    each = 2 * work.bytes * (1 - 1 / chips) / pod.link + 4 * (chips**0.5 - 1) * pod.hop
    return {
        "tasks": tasks / chips * work.per_task / pod.speed,
        "latency": work.depth * pod.latency,
        "communication": work.sums * each,
    }


def work_of(family_name: str, of_tasks: dict[str, Law]) -> Work:
    """An iteration with one inner step, as the preset has it; what a task costs is from the tasks' laws."""
    import jax

    from jmeta.presets import preset
    from jmeta.runs.config import build

    config = preset("maml", family_name)
    family, policy, _ = build(config)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return Work(
        per_task=of_tasks["seconds"].growing,
        depth=2 * family.env.spec.horizon,
        sums=config.algorithm["outer_epochs"] + 2,
        bytes=size,
        memory=of_tasks["MiB"].growing,
    )


# -- tables and the plot --------------------------------------------------------------------------------


def row_table(rows: list[Row]) -> str:
    """All measurements."""
    header = ["varied", "size", "seconds", "fastest", "slowest", "steps/s", "temporary MiB", "peak MiB"]
    cells = [
        [
            row.case.sweep.replace("_", " "),
            str(row.case.size),
            *(f"{x:.3g}" for x in (row.seconds, *row.spread)),
            f"{row.env_steps / row.seconds:,.0f}",
            f"{row.temporary:.3g}",
            f"{row.peak:,.0f}",
            f"{row.compile_seconds:.1f}",
        ]
        for row in rows
    ]
    return common.markdown([*header, "compile s"], cells)


def law_table(found: dict[str, dict[str, Law]]) -> str:
    """All laws."""
    header = ["varied", "x", "sizes", "quantity", "fixed", "growing with x", "largest error"]
    cells = []
    for sweep, quantities in found.items():
        for quantity, law in quantities.items():
            x = "1 / devices" if sweep == "devices" else sweep.replace("_", " ")
            sizes = f"{law.sizes[0]} to {law.sizes[1]}"
            line = [sweep.replace("_", " "), x, sizes, quantity, f"{law.fixed:.3g}", f"{law.growing:.3g}"]
            cells.append([*line, "" if law.error is None else f"{100 * law.error:.0f} %"])
    return common.markdown(header, cells)


def pod_table(pod: Pod, work: Work) -> str:
    """Seconds on paper, and what they are spent on."""
    header = ["chips", "tasks", "seconds", "tasks' own", "latency", "communication", "adaptations/s"]
    header.append("GiB a chip")
    cells = []
    for chips in pod.chips:
        for tasks in pod.tasks:
            parts = on_paper(pod, work, chips, tasks)
            seconds = sum(parts.values())
            shares = [f"{100 * part / seconds:.1f} %" for part in parts.values()]
            line = [str(chips), f"{tasks:,}", f"{seconds:.3g}", *shares, f"{tasks / seconds:,.0f}"]
            cells.append([*line, f"{tasks / chips * work.memory / 1024:.3g}"])
    return common.markdown(header, cells)


def pod_line(pod: Pod, work: Work) -> str:
    """The assumptions in words."""
    return (
        f"On paper: a chip that has enough to do is as fast as {pod.speed:g} cores of this machine "
        f"({1000 * work.per_task:.3g} ms of a core a task), and needs {1e6 * pod.latency:g} microseconds for "
        f"a step of the environments however few they are ({work.depth} steps follow one another). "
        f"{work.sums} sums, taken to be as large as a gradient ({work.bytes / 1024:.0f} KiB), go over a "
        f"square torus with {pod.link / 1e9:g} GB/s and {1e6 * pod.hop:g} microsecond a hop."
    )


def draw(rows: list[Row], found: dict[str, dict[str, Law]], path: pathlib.Path) -> None:
    """Seconds above, a device's memory below; a column for each quantity, measured and fitted."""
    import numpy as np
    from matplotlib import ticker

    plt = common.pyplot()
    sweeps = [sweep for sweep in SWEEPS if sweep in found]
    figure, axes = plt.subplots(
        2, len(sweeps), figsize=(3.6 * len(sweeps), 5.6), squeeze=False, layout="constrained"
    )
    for sweep, column in zip(sweeps, axes.T, strict=True):
        of_sweep = [row for row in rows if row.case.sweep == sweep]
        sizes = [row.case.size for row in of_sweep]
        for quantity, values, axis in zip(
            ("seconds", "MiB"),
            ([row.seconds for row in of_sweep], [row.temporary for row in of_sweep]),
            column,
            strict=True,
        ):
            law = found[sweep][quantity]
            x = np.geomspace(*law.sizes, 100)
            line = law.fixed + law.growing * abscissa(sweep, x)
            axis.plot(x, line, color="0.6", label="law")
            axis.plot(sizes, values, "o", label="measured")
            axis.set(xscale="log", yscale="log", ylabel=quantity)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            if max(values) < 10 * min(values):  # else a scale may show one power of ten, or none
                axis.yaxis.set_major_locator(ticker.MaxNLocator(4))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        column[1].set_xlabel(sweep.replace("_", " "))
    axes[0, 0].legend(frameon=False)
    common.save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    """Runs the command."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(dataclasses.asdict(measure(Case(**json.loads(sys.argv[2]))))))
        return
    flags = common.parse(Flags, __doc__)
    at_least_one = {"base_tasks": flags.base_tasks, "episodes": flags.episodes, "repeats": flags.repeats}
    for sweep in SWEEPS:
        if not getattr(flags, sweep):
            common.fail(f"{sweep} must be at least one number, got none")
        at_least_one[sweep] = min(getattr(flags, sweep))
    common.at_least(1, **at_least_one)
    for devices in flags.devices:
        if flags.base_tasks % devices:
            common.fail(f"devices must divide the {flags.base_tasks} tasks, got {devices}")
    folder, machine = None, common.machine_apart()
    if flags.results is not None:
        common.pyplot()
        folder = common.machine_folder(flags.results, machine)
    rows = []
    for case in cases(flags):
        rows.append(Row(**{**common.in_own_process("benchmarks.scaling", case), "case": case}))
        print(f"{case.sweep} {case.size}: {rows[-1].seconds:.3g} s", file=sys.stderr, flush=True)
    found = laws(rows, common.cores())
    title = (
        f"A meta-iteration of {flags.family}, {flags.episodes} episodes; {flags.base_tasks} tasks, one inner "
        f"step, one device, one seed unless varied; {common.machine_line(machine)}; median of {flags.repeats}"
    )
    lines = [title, row_table(rows), law_table(found)]
    if "tasks" in found:
        pod, work = Pod(), work_of(flags.family, found["tasks"])
        lines += [pod_line(pod, work), pod_table(pod, work)]
    print("\n\n".join(lines))
    if folder is not None:
        common.write_json(folder / "scaling.json", {"machine": machine, "rows": rows, "laws": found})
        (folder / "scaling.md").write_text("\n\n".join(lines) + "\n")
        if found:
            draw(rows, found, folder / "scaling.png")


if __name__ == "__main__":
    main()
