"""What is made of the sides' answers; the sides themselves are tested where PyTorch is."""

import dataclasses

import pytest

from benchmarks import common, compare

CASE = compare.Case(compare.JMETA, "point-goal", "trpo", 20, 1, None)
WHOLE = {"sampling": 0.5, "steps": 100.0, "peak": 300.0}


def rows():
    """jmeta's three iterations, and PyTorch's."""
    returns = [(2.0, -9.0), (1.0, -5.0), (4.0, -1.0)]
    answers = [{"seconds": seconds, "return": value, **WHOLE} for seconds, value in returns]
    slower = [{**answer, "seconds": 3 * answer["seconds"]} for answer in answers]
    eager = dataclasses.replace(CASE, side="eager")
    return [compare.Row(CASE, 9.0, answers), compare.Row(eager, 5.0, slower)]


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_a_table_has_medians_and_ratios():
    jmeta, eager = cells(compare.table(rows()))
    assert jmeta == ["jmeta", "2", "1", "4", "0.5", "1.5", "1.00", "50", "", "9.0", "300"]
    assert eager == ["eager", "6", "3", "12", "0.5", "5.5", "3.00", "17", "", "5.0", "300"]
    gradient = compare.Row(CASE, 1.0, [{"seconds": 0.25, "difference": 3e-7, "peak": 200.0}])
    found = ["jmeta", "0.25", "0.25", "0.25", "", "", "1.00", "", "3e-07", "1.0", "200"]
    assert cells(compare.table([gradient])) == [found]


def test_a_curve_counts_the_seconds_of_its_side_alone():
    jmeta, eager = rows()
    assert compare.curve(jmeta) == ([2.0, 3.0, 7.0], [-9.0, -5.0, -1.0])
    assert cells(compare.curve_table([jmeta, eager])) == [
        ["jmeta", "3", "7", "-9.0", "-5.0"],
        ["eager", "3", "21", "-9.0", "-5.0"],
    ]


def test_a_picture_has_a_panel_for_each_comparison(tmp_path):
    gradients = [
        compare.Row(dataclasses.replace(CASE, tasks=tasks), 1.0, [{"seconds": 0.1 * tasks, "peak": 1.0}])
        for tasks in (20, 100)
    ]
    compare.draw(gradients, rows(), rows(), tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 1000


def test_the_machine_has_a_folder_of_its_own(tmp_path):
    known = {"cpu": "Some CPU (R) 3.0", "cores": 8, "devices": ["cpu", "NVIDIA H200", "NVIDIA H200"]}
    folder = common.machine_folder(tmp_path / "results", known)
    assert folder == tmp_path / "results" / "some-cpu-r-3-0-8-cores-nvidia-h200" and folder.is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--families", "ant"], "families must be among point-goal, .*, got 'ant'"),
        (["--problems", "mdp"], "problems must be among bandit, random-mdp, got 'mdp'"),
        (["--sides", "jit"], "sides must be among eager, .*, compile x cores, got 'jit'"),
        (["--outer", "sgd"], "outer must be trpo or adam, got 'sgd'"),
        (["--curve", "-1"], "curve must be at least 0, got -1"),
    ],
)
def test_a_mistake_costs_a_line(flags, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", *flags])
    with pytest.raises(SystemExit, match=message):
        compare.main()
