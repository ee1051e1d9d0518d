"""The search of a grid: what is measured of trials, and mistakes in the command."""

import sys

import jax
import numpy as np
import pytest

from benchmarks import common, grid_goal
from jmeta.runs.config import build


def test_search_by_hand():
    goal = np.array([2, 0])
    reached = [[0, 0], [1, 0], [1, 0], [2, 0], [1, 0]]  # two cells before it, one of them twice
    at_last = [[0, 0], [0, 1], [1, 1], [1, 0], [2, 0]]
    never = [[0, 0], [0, 1], [0, 1], [0, 2], [0, 1]]
    there, searched = grid_goal.search(np.array([reached, at_last, never]), goal)
    np.testing.assert_array_equal(there, [True, True, False])
    np.testing.assert_array_equal(searched, [2, 4, 3])


def test_measures_by_hand():
    # One trial of two episodes, a step each, in two seeds: the goal is reached in the second one.
    cells = np.array([[[0, 0], [0, 1]], [[0, 1], [2, 0]]])
    one = grid_goal.Trials(np.array([2, 0]), np.array(2.0), cells, np.array([-0.5, 1.0]))
    rows = grid_goal.measure(grid_goal.Trials(*(np.stack([field[None]] * 2) for field in one)))
    found = {row.name: (row.mean, row.informed) for row in rows}
    assert found == {
        "return": ([-0.5, 1.0], 2.0),
        "of the optimum": ([-0.25, 0.5], 1.0),
        "goal reached": ([0.0, 1.0], 1.0),
        "cells before the goal": ([2.0, 1.0], 2.0),
    }


def test_what_is_kept_of_a_trial():
    family, policy, algorithm = build(common.rl2_config("grid-goal", "gru", horizon=3))
    play = common.trial_player(family, policy, 4, 2, grid_goal.keep(family))
    found = play(algorithm.init(jax.random.key(0)).params, jax.random.key(1))
    assert found.cells.shape == (2, 4, 4, 2) and found.goal.shape == (2, 2)
    np.testing.assert_array_equal(found.cells[:, :, 0], 0)  # episodes start in the corner
    assert (np.abs(np.diff(found.cells, axis=2)).sum(-1) <= 1).all()
    on_goal = (found.cells[:, :, 1:] == found.goal[:, None, None]).all(-1).sum(-1)
    np.testing.assert_allclose(found.returns, -0.1 * 3 + 1.1 * on_goal, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--seeds", "0"], "seeds"),
        (["--policy", "nonsense"], "nonsense"),
        (["--iterations", "-1"], "iterations"),
        (["--plot", "out.nonsense"], "out.nonsense"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, arguments, named):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["grid_goal", *arguments])
    with pytest.raises(SystemExit) as stopped:
        grid_goal.main()
    message = str(stopped.value)
    assert message.startswith("benchmarks: error: ") and named in message and "\n" not in message


def test_results_are_kept_when_the_plot_fails(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")

    def played(flags, config):
        shapes = ((2,), (), (4, 16, 2), (4,))
        return grid_goal.Trials(*(np.ones((flags.seeds, flags.tasks, *shape)) for shape in shapes))

    def fail(*arguments):
        raise RuntimeError("no plot")

    monkeypatch.setattr(grid_goal, "train_and_play", played)
    monkeypatch.setattr(grid_goal, "draw", fail)
    json = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["grid_goal", "--seeds", "1", "--tasks", "2", "--json", str(json)])
    with pytest.raises(RuntimeError, match="no plot"):
        grid_goal.main()
    assert "Target: episode 3" in capsys.readouterr().out and '"policy": "gru"' in json.read_text()
