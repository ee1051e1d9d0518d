"""The command that compares with published tables."""

import json
import sys
from typing import NamedTuple

import numpy as np
import pytest

import jmeta
from benchmarks import common, tables
from benchmarks.classical import mdps


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tables", *map(str, arguments)])
    tables.main()


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--rows", "nonsense"], "nonsense"),
        (["--learned", "nonsense"], "nonsense"),
        (["--tasks", "1"], "tasks"),
        (["--learned", "rl2", "--iterations", "-1"], "iterations"),
        (["--learned", "rl2", "--seeds", "0"], "seeds"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, tmp_path, capsys, arguments, named):
    (tmp_path / "bandits.json").write_text('{"tasks": 10000, "rows": {}}')
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "bandits", "--results", tmp_path, *arguments)
    message = str(stopped.value)
    assert message.startswith("benchmarks: error: ") and named in message and "\n" not in message
    assert capsys.readouterr().out == ""


def of_one_figure(mean):
    return lambda *arguments: {"psrl": tables.Figure(mean, 0.5)}


def test_rows_are_kept_if_a_later_one_fails(monkeypatch, tmp_path):
    def classical(flags, problem, most_episodes):
        assert most_episodes == 25
        if problem.episodes == 25:
            raise RuntimeError("no more")
        return {"psrl": tables.Figure(138.0, 0.5)}

    monkeypatch.setattr(tables, "classical", classical)
    with pytest.raises(RuntimeError, match="no more"):
        run(monkeypatch, "mdps", "--rows", "10", "25", "--results", tmp_path)
    assert "138.0 ± 0.5 (138.1)" in (tmp_path / "mdps.md").read_text()
    assert (tmp_path / "mdps.png").exists()
    assert json.loads((tmp_path / "mdps.json").read_text()) == {
        "tasks": 2000,
        "rows": {"10": {"psrl": {"mean": 138.0, "standard_error": 0.5, "note": ""}}},
    }


def test_what_other_commands_measured_is_kept(monkeypatch, tmp_path, capsys):
    def train(*arguments):
        # A command that runs beside this one.
        monkeypatch.setattr(tables, "classical", of_one_figure(410.0))
        run(monkeypatch, "mdps", "--rows", "25", "--results", tmp_path)
        return tables.Figure(150.0, 0.7, "trained")

    monkeypatch.setattr(tables, "classical", of_one_figure(408.0))
    run(monkeypatch, "mdps", "--rows", "25", "--results", tmp_path)
    monkeypatch.setattr(tables, "classical", of_one_figure(138.0))
    run(monkeypatch, "mdps", "--rows", "10", "--results", tmp_path)
    monkeypatch.setattr(tables, "learned", train)
    run(monkeypatch, "mdps", "--rows", "10", "--learned", "rl2", "--results", tmp_path)
    found = json.loads((tmp_path / "mdps.json").read_text())["rows"]
    means = {row: {name: figure["mean"] for name, figure in found[row].items()} for row in found}
    assert means == {"10": {"psrl": 138.0, "rl2": 150.0}, "25": {"psrl": 410.0}}
    assert list(found) == ["10", "25"]  # as published, not as measured
    assert capsys.readouterr().out.strip().endswith((tmp_path / "mdps.md").read_text().strip())


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"tasks": 1000, "rows": {}}', "has figures of 1000 tasks, .* got 2000"),
        ('{"tasks": 2000, "rows": {"11": {}}}', "not a table that this command wrote"),
        ("[]", "not a table that this command wrote"),
    ],
)
def test_another_file_is_not_written_over(monkeypatch, tmp_path, text, message):
    path = tmp_path / "mdps.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "mdps", "--results", tmp_path)
    assert path.read_text() == text
    with pytest.raises(SystemExit, match="exists"):
        run(monkeypatch, "mdps", "--results", path)


@pytest.mark.unmeasured
def test_classical_figures_of_both_tables(monkeypatch):
    monkeypatch.setattr(tables, "TUNING_TASKS", 4)
    flags = tables.Flags("mdps", tasks=4)
    for problem, strategies in (
        (tables.Problem("bandit", (("num_arms", 2), ("num_pulls", 5)), 1), 8),
        (tables.Problem("random-mdp", (("num_states", 2), ("num_actions", 2), ("horizon", 2)), 1), 10),
    ):
        found = tables.classical(flags, problem, most_episodes=2 if problem.family == "random-mdp" else 1)
        assert len(found) == strategies
        assert all(np.isfinite([one.mean, one.standard_error]).all() for one in found.values())
        assert found["optimal"].standard_error > 0
        assert found["epsilon_greedy"].note.startswith("ε = ")


def test_a_row_is_the_start_of_the_longest(monkeypatch):
    strategies = {"random": mdps.STRATEGIES["random"]}
    monkeypatch.setattr(mdps, "STRATEGIES", strategies)
    flags = tables.Flags("mdps", tasks=4)
    problem = tables.Problem("random-mdp", (("horizon", 2),), 3)
    short, whole = (tables.classical(flags, problem._replace(episodes=n), 3) for n in (1, 3))
    rewards = tables.cumulative(strategies["random"], problem, 4, tables.MEASURED, 0.0)
    assert rewards.shape == (4, 3)
    np.testing.assert_allclose(short["random"].mean, rewards[:, 0].mean())
    np.testing.assert_allclose(whole["random"].mean, rewards[:, 2].mean())
    np.testing.assert_allclose(whole["optimal"].mean, 3 * short["optimal"].mean)


def test_a_learned_column_is_trained_for_its_row():
    flags = tables.Flags("mdps", iterations=7)
    config = tables.config_of(flags, tables.Problem("random-mdp", (), 25), "snail")
    assert config.policy["name"] == "snail" and config.policy["max_steps"] == 250
    assert config.algorithm["num_episodes"] == 25
    assert config.training.iterations == 7
    assert common.shared_in_training(config) == (512, 4)


def test_a_learned_figure(monkeypatch):
    config = tables.config_of(
        tables.Flags("bandits", iterations=0), tables.Problem("bandit", (("num_pulls", 4),), 1), "rl2"
    )
    seeds, train = [], jmeta.train
    monkeypatch.setattr(jmeta, "train", lambda *a, seed, **b: seeds.append(seed) or train(*a, seed=seed, **b))
    found = tables.learned(tables.Flags("bandits", tasks=200, seeds=2), "rl2", config)
    assert seeds == [0, 1]
    # A policy that learned nothing pulls at random: 4 / 2, each arm's probability being uniform.
    assert abs(found.mean - 2) < 4 * found.standard_error
    assert found.note.startswith("0 iterations") and "a seed; seeds" in found.note


def test_errors_of_tasks_and_of_training_runs_add_up():
    totals = np.array([[1.0, 3.0, 2.0], [3.0, 5.0, 4.0]])
    found = tables.over_seeds(totals, "note")
    assert (found.mean, found.note) == (3.0, "note")
    # Means of the tasks 2, 4, 3 deviate by 1, those of the runs 2 and 4 by the root of 2.
    np.testing.assert_allclose(found.standard_error**2, 1 / 3 + 2 / 2)
    np.testing.assert_allclose(tables.over_seeds(totals[:1], "").standard_error ** 2, 1 / 3)


@pytest.mark.parametrize("table, rows", [("bandits", 9), ("mdps", 5)])
def test_every_published_row_is_a_problem(table, rows):
    found = [tables.problem_of(row) for row in tables.published(table)]
    assert len(found) == rows
    families = [tables.family_of(problem) for problem in found]
    pulls = [int(row["pulls"]) if "pulls" in row else 10 for row in tables.published(table)]
    assert [family.env.spec.horizon for family in families] == pulls


def test_a_parameter_is_tuned_on_other_tasks():
    class Strategy(NamedTuple):
        candidates: tuple = (1.0, 2.0, 3.0)
        meaning: str = "width"

    def total(num_tasks, seed, parameter):
        # On the tasks for tuning 2 is the best, on those for measuring 3.
        if seed == tables.TUNED:
            assert num_tasks == tables.TUNING_TASKS
            return np.array([-abs(parameter - 2.0)] * 2)
        assert (num_tasks, seed) == (50, tables.MEASURED)
        return parameter + np.array([0, 2])

    flags = tables.Flags("bandits", tasks=50)
    assert tables.tuned(total, Strategy(), flags) == tables.Figure(3.0, 1.0, "width = 2")


def test_a_parameter_at_an_end_of_those_tried_is_starred():
    assert tables.described(0.1, (0.1, 0.2, 0.4)) == "0.1*"
    assert tables.described(0.2, (0.1, 0.2, 0.4)) == "0.2"
    pairs = tuple((x, y) for x in (0.0, 5.0) for y in (1.0, 2.0, 3.0))
    assert tables.described((5.0, 2.0), pairs) == "5*, 2"


def test_a_cell_shows_what_there_is():
    found = tables.Figure(1.26, 0.06)
    assert tables.cell(found, "1.2") == "1.3 ± 0.1 (1.2)"
    assert tables.cell(found, None) == "1.3 ± 0.1"
    assert tables.cell(tables.Figure(1.264, 0.044), None) == "1.26 ± 0.04"
    assert tables.cell(None, "1.2") == "- (1.2)"
