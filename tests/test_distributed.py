"""Several processes on one machine, over Gloo: they train as one does, and end and go on together.

Five tasks are shared by one to four devices, none of which but one divides them.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jmeta import launcher, training
from jmeta.runs import RunFolder
from jmeta.runs.config import build
from tests import small

REPOSITORY = pathlib.Path(__file__).parents[1]
ITERATIONS = 60
WORDS = [
    *("maml", "point-goal", "--iterations", str(ITERATIONS), "--log-every", "2", "--checkpoint-every", "4"),
    *("--tasks", "5", "--num-episodes", "3", "--outer-epochs", "1", "--optimizer", "sgd"),
    *("--family.horizon", "5", "--policy.hidden", "8"),
]
HEARTBEAT = 20  # seconds
PATIENCE = 900  # seconds, of which a machine that does nothing else takes some ten


class Started(NamedTuple):
    """Processes that run, and the files of what they say."""

    processes: list[subprocess.Popen]
    said: list[pathlib.Path]

    def finish(self):
        """What they said; all of them succeed."""
        for process in self.processes:
            process.wait(timeout=PATIENCE)
        texts = [path.read_text() for path in self.said]
        assert [process.returncode for process in self.processes] == [0] * len(texts), "\n".join(texts)
        return texts


@contextlib.contextmanager
def start(*commands, devices=2, **variables):
    """Processes of so many devices; whatever is left of them is killed in the end."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_NUM_CPU_DEVICES": str(devices)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        said = [pathlib.Path(folder, str(index)) for index in range(len(commands))]
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={**environment, **variables},
                stdout=stack.enter_context(path.open("w")),
                stderr=subprocess.STDOUT,
            )
            for command, path in zip(commands, said, strict=True)
        ]
        try:
            yield Started(processes, said)
        finally:
            for process in processes:
                process.kill()
                process.wait()


def train_alone(*words, devices):
    return start(["-m", "jmeta", "train", *words], devices=devices)


def train_together(*words):
    """Two processes of two devices each."""
    group = ["--distributed", "--coordinator", f"127.0.0.1:{launcher.free_port()}", "--num-processes", 2]
    group += ["--heartbeat-timeout", HEARTBEAT]
    return start(*(["-m", "jmeta", "train", *words, *group, "--process-id", index] for index in range(2)))


PROBE = """
import jax
from jmeta import runtime
runtime.connect()
print(jax.process_index(), jax.process_count(), jax.device_count())
"""


@pytest.mark.parametrize("by", ["variables", "slurm"])
def test_processes_meet(by):
    """Where no argument says which there are."""
    port = str(launcher.free_port())
    if by == "slurm":
        shared = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
        own, shared["JAX_COORDINATOR_PORT"] = ("SLURM_PROCID", "SLURM_LOCALID"), port
    else:
        shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
        own = ("JAX_PROCESS_ID",)
    with contextlib.ExitStack() as stack:
        groups = [
            stack.enter_context(start(["-c", PROBE], **shared, **dict.fromkeys(own, str(index))))
            for index in range(2)
        ]
        said = [group.finish()[0].splitlines()[-1] for group in groups]
    assert said == ["0 2 4", "1 2 4"]


def result(path):
    """Metrics [iterations, names] and the state at the end of a run."""
    run = RunFolder.open(path)
    records = run.read_metrics()
    assert [record["iteration"] for record in records] == list(range(1, ITERATIONS + 1))
    _, _, algorithm = build(run.config)
    like = jax.eval_shape(lambda: training.initial_state(algorithm, seed=0))
    state = run.restore(ITERATIONS, like).tree
    return np.array([list(record.values()) for record in records]), state.meta


def assert_equal_results(path, other):
    small.assert_trees_close(result(path), result(other), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """An uninterrupted run of two processes, and what they said."""
    path = tmp_path_factory.mktemp("together") / "run"
    with train_together(*WORDS, "--run-dir", path) as group:
        return path, group.finish()


@pytest.mark.slow
def test_devices_and_processes_change_nothing(together, tmp_path):
    path, _ = together
    for devices in (1, 3):
        alone = tmp_path / str(devices)
        with train_alone(*WORDS, "--run-dir", alone, devices=devices) as process:
            process.finish()
        assert_equal_results(alone, path)
    environment = json.loads((path / "environment.json").read_text())
    assert (environment["processes"], environment["devices"]["count"]) == (2, 4)


@pytest.mark.slow
def test_the_first_process_alone_speaks(together):
    path, said = together
    own = [[line for line in text.splitlines() if "[Gloo]" not in line] for text in said]
    assert own[0][0] == f"run folder: {path}" and own[0][-1] == f"evaluate it with: jmeta evaluate {path}"
    assert own[1] == []


def logged(path):
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.slow
@pytest.mark.unmeasured
def test_the_others_end_with_one_that_is_killed_and_the_run_goes_on(together, tmp_path):
    reference, _ = together
    path = tmp_path / "run"
    words = WORDS
    for lost, signal_ in ((1, signal.SIGKILL), (0, signal.SIGTERM)):
        before = logged(path)
        with train_together(*words, "--run-dir", path) as group:
            end = time.monotonic() + PATIENCE
            while logged(path) <= before:
                assert time.monotonic() < end, "not a line"
                assert group.processes[0].poll() is None, group.said[0].read_text()
                time.sleep(0.001)
            group.processes[lost].send_signal(signal_)
            left = group.processes[1 - lost]
            assert left.wait(timeout=HEARTBEAT + 10) != 0
            # Who is asked to end saves what was done; the others end with it.
            status = 128 + signal_ if signal_ == signal.SIGTERM else -signal_
            assert group.processes[lost].wait(timeout=HEARTBEAT + 10) == status
        assert before < logged(path) < ITERATIONS
        words = ["--resume"]
    by_one = shutil.copytree(path, tmp_path / "by_one")
    with train_together("--resume", "--run-dir", path) as group:
        group.finish()
    assert (path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert small.bits(result(path)[1]) == small.bits(result(reference)[1])
    with train_alone("--resume", "--run-dir", by_one, devices=3) as process:
        process.finish()
    assert_equal_results(by_one, reference)
