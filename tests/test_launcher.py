"""Processes on a Ray cluster: what each has of it, and that they are one run."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from jmeta import cli, launcher
from jmeta.runs import RunFolder

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("nodes", "num_processes", "expected"),
    [
        ([{"CPU": 4.0}], 1, (4, 0)),
        ([{"CPU": 4.0}, {"CPU": 8.0}], 2, (4, 0)),
        ([{"CPU": 4.0}, {"CPU": 8.0}], 3, (2, 0)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0}], 2, (4, 2)),  # the node without a GPU takes no part
        ([{"CPU": 2.0, "GPU": 4.0}], 4, (0, 1)),
    ],
)
def test_processes_have_equal_shares(nodes, num_processes, expected):
    assert launcher.share(nodes, num_processes) == expected


@pytest.mark.parametrize(("nodes", "kind"), [([{"CPU": 2.0}], "CPUs"), ([{"CPU": 64.0, "GPU": 2.0}], "GPUs")])
def test_a_cluster_that_is_too_small_is_refused(nodes, kind):
    with pytest.raises(ValueError, match=f"must not exceed the {kind} of the cluster, got 3"):
        launcher.share(nodes, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num-processes 2", "the launcher needs ray: pip install '.[ray]'"),
        ("--num-processes 0", "num_processes must be at least 1, got 0"),
        ("", "--launcher needs --num-processes"),
        ("--num-processes 2 --process-id 0", "gives --coordinator and --process-id itself"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "maml", "point-goal", "--launcher", "ray", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jmeta: error: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_workers_of_a_local_cluster_are_one_run(tmp_path):
    words = "maml point-goal --iterations 2 --tasks 4 --log-every 2 --checkpoint-every 2 --num-episodes 2"
    words += " --outer-epochs 1 --family.horizon 5 --policy.hidden 4 --launcher ray --num-processes 2"
    command = [sys.executable, "-m", "jmeta", "train", *words.split(), "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(command, env=environment, check=True, timeout=900)
    run = RunFolder.open(tmp_path / "run")
    assert (len(run.read_metrics()), run.latest_checkpoint()) == (2, 2)
