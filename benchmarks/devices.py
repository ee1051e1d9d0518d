"""Whether the number of devices changes a result: the same short run on 1, 2, 3, 5 and 8 devices.

Twenty tasks are also shared by two processes of three devices each, and a run that is stopped on two devices
goes on with three. Every run is a command of its own; its final parameters are compared with those of one
device. MAML is optimized by SGD, because Adam divides by the size of a gradient, and so amplifies rounding
where a gradient is next to zero.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import common

TASKS, ITERATIONS = 20, 6
RUNS: dict[str, list[str]] = {
    "maml, point-goal": [
        *("maml", "point-goal", "--num-episodes", "5", "--family.horizon", "20"),
        *("--optimizer", "sgd", "--outer-epochs", "3"),
    ],
    "rl2, bandit": ["rl2", "bandit", "--policy.size", "16"],
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    devices: tuple[int, ...] = (2, 3, 5, 8)
    """Numbers of host devices that are compared with one."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One run, compared with the same on one device."""

    run: str
    devices: str
    difference: float  # the largest of a parameter
    size: float  # the largest parameter


def jmeta(*words: Any, devices: int) -> subprocess.Popen[bytes]:
    """A command in a process of its own, with so many devices."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "jmeta", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(*processes: subprocess.Popen[bytes]) -> None:
    """Waits for processes; ends with what one said that failed."""
    said = [process.communicate()[1].decode() for process in processes]
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            common.fail(text.strip().splitlines()[-1] if text.strip() else f"status {process.returncode}")


def parameters(path: pathlib.Path) -> np.ndarray:
    """The parameters at the end of a run, as one vector."""
    import jax

    from jmeta import training
    from jmeta.runs import RunFolder
    from jmeta.runs.config import build

    run = RunFolder.open(path)
    algorithm = build(run.config)[2]
    like = jax.eval_shape(lambda: training.initial_state(algorithm, seed=0))
    state = run.restore(ITERATIONS, like).tree
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.meta.params)])


def measure(name: str, devices: tuple[int, ...], folder: pathlib.Path) -> list[Row]:
    """Runs one configuration on every number of devices."""
    from jmeta.launcher import free_port

    size = ["--tasks", TASKS, "--log-every", 1, "--checkpoint-every", 1]
    words = ["train", *RUNS[name], *size, "--iterations", ITERATIONS]
    paths = {"1": folder / "1"}
    finish(jmeta(*words, "--run-dir", paths["1"], devices=1))
    for count in devices:
        paths[str(count)] = folder / str(count)
        finish(jmeta(*words, "--run-dir", folder / str(count), devices=count))
    group = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2]
    paths["2 x 3"] = folder / "processes"
    together = [*words, *group, "--run-dir", folder / "processes", "--process-id"]
    finish(*(jmeta(*together, index, devices=3) for index in range(2)))
    paths["2, then 3"] = folder / "resumed"
    half = ["train", *RUNS[name], *size, "--iterations", ITERATIONS // 2]
    finish(jmeta(*half, "--run-dir", folder / "resumed", devices=2))
    finish(jmeta("train", "--resume", "--run-dir", folder / "resumed", "--iterations", ITERATIONS, devices=3))
    alone = parameters(paths.pop("1"))
    return [
        Row(name, count, float(np.abs(parameters(path) - alone).max()), float(np.abs(alone).max()))
        for count, path in paths.items()
    ]


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(1, **{f"devices[{i}]": count for i, count in enumerate(flags.devices)})
    rows: list[Row] = []
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, flags.devices, pathlib.Path(folder))
    record = {"flags": common.settings(flags), "machine": common.machine(), "rows": rows}
    common.write_json(flags.json, record)
    header = ["run", "devices", "largest difference", "largest parameter"]
    cells = [[row.run, row.devices, f"{row.difference:.1e}", f"{row.size:.2f}"] for row in rows]
    print(f"\nParameters after {ITERATIONS} iterations of {TASKS} tasks, compared with one device;")
    print(f"{common.machine_line(common.machine())}\n")
    print(common.markdown(header, cells))


if __name__ == "__main__":
    main()
