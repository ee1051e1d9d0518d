"""The command that compares with published tables."""

import sys
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import tables


@pytest.mark.parametrize("arguments", [["--rows", "nonsense"], ["--learned", "nonsense"]])
def test_a_mistake_is_one_line(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["tables", "bandits", *arguments])
    with pytest.raises(SystemExit) as stopped:
        tables.main()
    message = str(stopped.value)
    assert message.startswith("benchmarks: error: ") and "nonsense" in message and "\n" not in message


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

    def total(seed, parameter):
        # On the tasks for tuning 2 is the best, on those for measuring 3.
        return np.array([-abs(parameter - 2.0)] * 2) if seed == tables.TUNED else parameter + np.array([0, 2])

    assert tables.tuned(total, Strategy(), seed=0) == tables.Figure(3.0, 1.0, "width = 2")


def test_a_cell_shows_what_there_is():
    found = tables.Figure(1.26, 0.04)
    assert tables.cell(found, "1.2") == "1.3 ± 0.0 (1.2)"
    assert tables.cell(found, None) == "1.3 ± 0.0"
    assert tables.cell(None, "1.2") == "- (1.2)"
