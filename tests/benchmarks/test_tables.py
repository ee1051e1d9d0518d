"""The command that compares with published tables."""

import json
import sys
from typing import NamedTuple

import numpy as np
import pytest

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
        (["--learned", "rl2", "--seed", "-1"], "seed"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, arguments, named):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "bandits", *arguments)
    message = str(stopped.value)
    assert message.startswith("benchmarks: error: ") and named in message and "\n" not in message


def test_rows_are_kept_if_a_later_one_fails(monkeypatch, tmp_path, capsys):
    def classical(flags, problem, most_episodes):
        assert most_episodes == 25
        if problem.episodes == 25:
            raise ValueError("no more")
        return {"psrl": tables.Figure(138.0, 0.5)}

    monkeypatch.setattr(tables, "classical", classical)
    monkeypatch.setattr(tables, "draw", lambda *arguments: pytest.fail("a part of the table was drawn"))
    path = tmp_path / "result.json"
    with pytest.raises(SystemExit, match="no more"):
        run(monkeypatch, "mdps", "--rows", "10", "25", "--json", path)
    assert "138.0 ± 0.5 (138.1)" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["rows"] == {"10": {"psrl": {"mean": 138.0, "standard_error": 0.5, "note": ""}}}
    assert record["flags"] == {
        "table": "mdps",
        "rows": ["10", "25"],
        "learned": [],
        "iterations": None,
        "tasks": 2000,
        "seed": 0,
    }


def test_only_a_whole_table_is_drawn_by_default(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(tables, "classical", lambda *arguments: {"psrl": tables.Figure(138.0, 0.5)})
    monkeypatch.setattr(tables, "draw", lambda path, *arguments: drawn.append(str(path)))
    run(monkeypatch, "mdps", "--rows", "10")
    run(monkeypatch, "mdps")
    run(monkeypatch, "mdps", "--rows", "10", "--plot", "part.png")
    assert drawn == ["benchmarks/results/mdps.png", "part.png"]


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
    flags = tables.Flags("mdps", iterations=7, seed=3)
    config = tables.config_of(flags, tables.Problem("random-mdp", (), 25), "snail")
    assert config.policy["name"] == "snail" and config.policy["max_steps"] == 250
    assert config.algorithm["num_episodes"] == 25
    assert (config.training.iterations, config.training.seed) == (7, 3)
    assert common.shared_in_training(config) == (1024, 4)


def test_a_learned_figure(monkeypatch):
    config = tables.config_of(
        tables.Flags("bandits", iterations=0), tables.Problem("bandit", (("num_pulls", 4),), 1), "rl2"
    )
    found = tables.learned(tables.Flags("bandits", tasks=200), "rl2", config)
    # A policy that learned nothing pulls at random: 4 / 2, each arm's probability being uniform.
    assert abs(found.mean - 2) < 4 * found.standard_error and found.note.startswith("0 iterations")


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
    found = tables.Figure(1.26, 0.04)
    assert tables.cell(found, "1.2") == "1.3 ± 0.0 (1.2)"
    assert tables.cell(found, None) == "1.3 ± 0.0"
    assert tables.cell(None, "1.2") == "- (1.2)"
