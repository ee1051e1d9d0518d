"""The command that makes the tables of learning: resumed, merged, and read."""

import json
import sys

import numpy as np
import pytest

from benchmarks import common, learning
from jmeta import statistics


def seed_of(mean, scale=(1.0, 2.0)):
    """A measured seed of one adaptation step."""
    return learning.Seed(
        iterations=3,
        env_steps=1e6,
        scale=None if scale is None else list(scale),
        mean=list(mean),
        as_trained=list(mean),
        quantiles=[[0.0] * 5] * 2,
        tasks_lost=[0, 1],
        measures={"success": [0.0, 1.0]},
        seconds=1.0,
    )


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command, with measured seeds that are made up; returns those that it measured."""

    def run(*arguments):
        measured = []

        def measure(config, built, seed, flags):
            name = config.algorithm["name"]
            measured.append((name, seed))
            if (name, seed) == ("maml", 9):
                raise KeyboardInterrupt
            return seed_of([-3.0, (-2.0 if name == "pretrain" else -1.0) - seed])

        monkeypatch.setattr(learning, "measure", measure)
        monkeypatch.setattr(common, "start", lambda *shared: None)
        folders = ["--parts", str(tmp_path / "parts"), "--results", str(tmp_path)]
        words = ["learning", "--tasks", "4", "--steps", "1", *folders, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        learning.main()
        return measured

    return run


def test_only_what_is_missing_is_measured_and_rows_of_other_commands_stand_in_the_table(
    run, tmp_path, capsys
):
    assert run("--rows", "pretrain", "--seeds", 2) == [("pretrain", 0), ("pretrain", 1)]
    assert run("--rows", "maml", "--seeds", 3) == [("maml", 0), ("maml", 1), ("maml", 2)]
    with pytest.raises(KeyboardInterrupt):
        run("--rows", "maml", "--seeds", 10)
    assert run("--rows", "maml", "pretrain", "--seeds", 3) == [("pretrain", 2)]
    capsys.readouterr()
    assert run("--rows", "maml", "--seeds", 9) == []
    written = json.loads((tmp_path / "learning-point-goal.json").read_text())
    assert {name: len(seeds) for name, seeds in written["rows"].items()} == {"maml": 9, "pretrain": 3}
    assert capsys.readouterr().out.strip() == (tmp_path / "learning-point-goal.md").read_text().strip()


def test_parts_of_other_settings_are_not_mixed_in(run):
    run("--rows", "maml", "--seeds", 1)
    with pytest.raises(SystemExit, match="measured with other settings; choose another --parts"):
        run("--rows", "maml", "--seeds", 1, "--iterations", 7)


def test_what_is_written_by_hand_below_a_table_is_kept(run, tmp_path):
    path = tmp_path / "learning-point-goal.md"
    path.write_text("old table\n\n---\n\nA remark.\n")
    run("--rows", "maml", "--seeds", 1)
    assert path.read_text().endswith("\n---\n\nA remark.\n") and "old table" not in path.read_text()


def test_rows_are_compared_seed_by_seed():
    rows = {
        "maml": [seed_of([0, x]) for x in (1.0, 2.0, 4.0)],
        "pretrain": [seed_of([0, x]) for x in (0.0, 1.0, 2.0)],
    }
    line = next(line for line in learning.table(rows).splitlines() if "maml" in line)
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[-1] == learning.interval(statistics.over_seeds(np.array([1.0, 1.0, 2.0])))
    assert cells[-2] == "3" and cells[-3] == "2"  # tasks lost, factor


def test_a_factor_at_an_end_of_the_grid_is_starred_and_a_memory_has_none():
    assert learning.scales([seed_of([0, 0], (1, 128.0)), seed_of([0, 0], (1, 8.0))]) == "68*"
    assert learning.scales([seed_of([0, 0], (1, 4.0))]) == "4"
    assert learning.scales([seed_of([0, 0], None)]) == "-"


def test_every_row_has_the_same_budget():
    """References too: their steps are scaled by the same factors."""
    for name in learning.GROUPS["all-gradient"]:
        config = learning.config_of(name, learning.Flags(iterations=1))
        assert config.algorithm["inner_learning_rate"] == 0.1


@pytest.mark.unmeasured
def test_a_seed_is_trained_tuned_and_tested(monkeypatch):
    flags = learning.Flags(family="sparse-point-goal", tasks=2, validation_tasks=2, steps=1)
    config = learning.config_of("scratch", flags)
    from jmeta import evaluation, runs

    keys, tune = [], evaluation.tune_step_scale
    monkeypatch.setattr(evaluation, "STEP_SCALES", (1.0, 2.0))

    def tuned(algorithm, family, params, key, **sizes):
        keys.append(key)
        return tune(algorithm, family, params, key, scales=(1.0, 2.0), **sizes)

    monkeypatch.setattr(evaluation, "tune_step_scale", tuned)
    found = learning.measure(config, runs.config.build(config), 0, flags)
    assert len(found.mean) == len(found.scale) == len(found.quantiles) == 2 and found.env_steps == 0
    assert found.scale[0] == 1 and found.scale[1] in (1, 2)
    assert found.measures.keys() == {"success"}
