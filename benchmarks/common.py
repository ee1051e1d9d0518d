"""What every benchmark shares: flags, the machine's description, tables and files."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import tyro

Flags = TypeVar("Flags")


def parse(flags: type[Flags], doc: str | None) -> Flags:
    """Command-line flags from a dataclass; a module's docstring is its help."""
    return tyro.cli(flags, description=(doc or "").strip())


def fail(message: str) -> NoReturn:
    """Ends with one line for a mistake of the user's."""
    sys.exit(f"benchmarks: error: {message}")


def at_least(least: int, **numbers: int) -> None:
    """Ends with one line unless every flag is at least so much."""
    for name, number in numbers.items():
        if number < least:
            fail(f"{name} must be at least {least}, got {number}")


def settings(flags: Any) -> dict[str, Any]:
    """All flags but the files that are written, for the record."""
    written = ("json", "plot", "results")
    return {name: value for name, value in dataclasses.asdict(flags).items() if name not in written}


def start(*shared: tuple[int, int]) -> None:
    """Starts JAX on as many cores as the greatest of these numbers of tasks gives work to; all, if there is
    none.

    Args:
      *shared: numbers of tasks, and of the minibatches that each device has a part of.
    """
    from jmeta import runtime

    num_tasks = max((max(1, tasks // minibatches) for tasks, minibatches in shared), default=None)
    runtime.configure(num_tasks=num_tasks)


def cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_STATUS, _CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")  # of Linux


def peak_memory() -> float:
    """Most memory that this process has had, MiB."""
    if _STATUS.exists():  # `getrusage` would also count the process that started this one
        return int(re.findall(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak_memory() -> None:
    """From here on the peak is counted, where the system can."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def worker(module: str, case: Any) -> list[str]:
    """The command that measures a case, a dataclass, in a process of its own: MODULE --worker CASE."""
    return [sys.executable, "-m", module, "--worker", json.dumps(dataclasses.asdict(case))]


def in_own_process(module: str, case: Any) -> Any:
    """What a module's worker prints of a case in its last line, JSON; ends with one line if it fails."""
    plain = {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}  # filtered ones end with a note on the filter
    done = subprocess.run(worker(module, case), capture_output=True, text=True, check=False, env=plain)
    if done.returncode:
        fail([f"{module} ended with {done.returncode}", *done.stderr.strip().splitlines()][-1])
    return json.loads(done.stdout.splitlines()[-1])


class Measured(NamedTuple):
    """A compiled program, timed."""

    seconds: list[float]  # of every run after the first
    compile_seconds: float
    memory: Any  # what XLA says of the program's memory
    result: Any


def compiled(function: Callable[..., Any], *arguments: Any, repeats: int) -> Measured:
    """Compiles a function, asks for its memory, and times it."""
    import jax

    started = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    assert memory is not None, "this backend does not report the memory of a program"
    result = jax.block_until_ready(program(*arguments))  # warm-up
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - started)
    return Measured(seconds, compile_seconds, memory, result)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import jax

    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": cores(),
        "devices": [device.device_kind for device in jax.devices()],
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def machine_apart() -> dict[str, Any]:
    """As `machine`, from a process of its own: this one keeps off the devices that its workers take."""
    ask = "import json; from benchmarks import common; common.start(); print(json.dumps(common.machine()))"
    done = subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine_line(found: dict[str, Any]) -> str:
    """A machine, in a line."""
    kinds = found["devices"]
    devices = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{found['cpu']}, {found['cores']} cores, devices: {devices}, jax {found['jax']}"


def machine_folder(results: pathlib.Path, found: dict[str, Any]) -> pathlib.Path:
    """Where figures of a machine are kept: `results` / cpu-cores-accelerators; made if it is not there."""
    kinds = [kind for kind in dict.fromkeys(found["devices"]) if kind != "cpu"]
    name = " ".join([found["cpu"], str(found["cores"]), "cores", *kinds])
    folder = results / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads as text and renders as Markdown."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])] + [
            c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def pyplot() -> Any:
    """Matplotlib's `pyplot`, drawing to files; ends with one line where it is not installed.

    Benchmarks that draw call it first, so that nothing is measured in vain.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        fail("plots need matplotlib: pip install '.[plots]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def check_plot(path: pathlib.Path) -> None:
    """Ends with one line if no plot can be drawn, or not in the format that the file's name asks for."""
    pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        fail(f"plot must end in one of {', '.join('.' + name for name in known)}, got {path}")


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure where the user asked for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_json(path: pathlib.Path | None, record: Any) -> None:
    """Writes a record (dataclasses allowed) where the user asked for it."""
    from jmeta.runs import files

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, default=dataclasses.asdict)
        content = files.json_text(json.loads(text))
        files.write_atomically(path, content.encode())  # a table may be hours of work


def rl2_config(family: str, policy: str, *, iterations: int | None = None, **arguments: Any) -> Any:
    """The preset of RL² with another policy, and other arguments of the family.

    Args:
      family: its name.
      policy: its name; unless it is the preset's, its settings are its defaults.
      iterations: meta-iterations; None takes the preset's.
      **arguments: of the family.

    Returns:
      The complete `RunConfig`.

    Raises:
      ValueError: an unknown name or argument, or a number out of its range.
    """
    from jmeta.presets import preset
    from jmeta.runs.config import resolve

    config = preset("rl2", family)
    training = dataclasses.asdict(config.training)
    if iterations is not None:
        training["iterations"] = iterations
    return resolve(
        algorithm=config.algorithm,
        family={**config.family, **arguments},
        policy=config.policy if policy == config.policy["name"] else {"name": policy},
        training=training,
    )


def shared_in_training(config: Any) -> tuple[int, int]:
    """What `start` needs to know of a configuration of RL²."""
    return config.training.num_tasks, config.algorithm["minibatches"]


def fresh_tasks(family: Any, num_tasks: int, key: Any) -> tuple[Any, Any]:
    """Tasks [num_tasks] of a family, and a key [num_tasks] for what is done with each."""
    import jax

    from jmeta import parallel

    key_tasks, key_run = jax.random.split(key)
    tasks = jax.vmap(family.sample)(parallel.task_keys(key_tasks, num_tasks))
    return tasks, parallel.task_keys(key_run, num_tasks)


def trial_of(family: Any, policy: Any, num_episodes: int) -> Callable[..., Any]:
    """A trial as a function of (params, task, key), its memory empty at first.

    Its result are the steps as a `Rollout` [E T, ...] and the returns [E].
    """
    from jmeta import rollouts
    from jmeta.types import Adapted

    def trial(params: Any, task: Any, key: Any) -> Any:
        empty = Adapted(params, policy.initial_carry())
        return rollouts.trial(family.env, policy, empty, task, key, num_episodes)[1:]

    return trial


def trial_player(
    family: Any, policy: Any, num_episodes: int, num_tasks: int, keep: Callable[..., Any]
) -> Callable[[Any, Any], Any]:
    """Trials on fresh tasks, over all devices, as a function of (params, key).

    Args:
      family: the tasks.
      policy: with a memory, empty when a trial starts.
      num_episodes: E, of a trial.
      num_tasks: fresh tasks, a trial each.
      keep: (task, steps as a `Rollout` [E T, ...], returns [E]) -> what is kept of a trial.

    Returns:
      The function, compiled; its result is what was kept, leading axis [num_tasks], on the host.
    """
    import jax

    from jmeta import parallel

    trial = trial_of(family, policy, num_episodes)

    def one(params: Any, task: Any, key: Any) -> Any:
        return keep(task, *trial(params, task, key))

    @jax.jit
    def compiled(params: Any, key: Any) -> Any:
        tasks, keys = fresh_tasks(family, num_tasks, key)
        return parallel.map_tasks(one, params, tasks, keys, block=parallel.tasks_per_block(1))

    def play(params: Any, key: Any) -> Any:
        with jax.set_mesh(parallel.task_mesh()):
            return jax.device_get(compiled(params, key))

    return play
