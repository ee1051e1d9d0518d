"""What is made of the sides' answers; the sides themselves are tested where PyTorch is."""

import dataclasses

import pytest

from benchmarks import common, compare

CASE = compare.Case(compare.JMETA, "point-goal", "trpo", 20, 1, gradient=False, file="")
WHOLE = {"sampling": 0.5, "steps": 100.0, "peak": 300.0}


def rows():
    """jmeta's three iterations after a warm-up of two, and PyTorch's, three times as slow."""
    warm_up = [{"seconds": 99.0, "return": -30.0}, {"seconds": 1.0, "return": -20.0}]
    returns = [(2.0, -9.0), (1.0, -5.0), (4.0, -1.0)]
    answers = [{"seconds": seconds, "return": value, **WHOLE} for seconds, value in returns]
    slower = [
        [{**answer, "seconds": 3 * answer["seconds"]} for answer in part] for part in (warm_up, answers)
    ]
    eager = dataclasses.replace(CASE, side="eager")
    return [compare.Row(CASE, 9.0, warm_up, answers), compare.Row(eager, 5.0, *slower)]


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_a_table_has_medians_and_ratios():
    jmeta, eager = cells(compare.table(rows()))
    assert jmeta == ["jmeta", "2", "1", "4", "0.5", "1.5", "1.00", "50", "", "9.0", "300"]
    assert eager == ["eager", "6", "3", "12", "0.5", "5.5", "3.00", "17", "", "5.0", "300"]
    gradient = compare.Row(CASE, 1.0, [], [{"seconds": 0.25, "difference": 3e-7, "peak": 200.0}])
    found = ["jmeta", "0.25", "0.25", "0.25", "", "", "1.00", "", "3e-07", "1.0", "200"]
    assert cells(compare.table([gradient])) == [found]


def test_a_curve_counts_all_seconds_of_its_side_alone():
    jmeta, eager = rows()
    assert compare.curve(jmeta) == ([9.0, 10.0, 12.0, 13.0, 17.0], [-30.0, -20.0, -9.0, -5.0, -1.0])
    assert cells(compare.curve_table([jmeta, eager])) == [
        ["jmeta", "5", "17", "-30.0", "-13.0"],
        ["eager", "5", "29", "-30.0", "-13.0"],
    ]


def test_a_side_that_ends_costs_its_row_alone(capsys):
    jmeta, eager = rows()
    assert compare.ended(eager)
    eager.answers[-1] = None
    assert not compare.ended(eager)
    assert "eager on point-goal with 20 tasks ended without a result" in capsys.readouterr().err
    jmeta.answers[-1] = None
    with pytest.raises(SystemExit, match="jmeta on point-goal"):
        compare.ended(jmeta)


def test_a_picture_has_a_panel_for_each_comparison(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(common, "save_figure", lambda figure, path: drawn.append((figure, path)))
    gradients = [
        compare.Row(
            dataclasses.replace(CASE, tasks=tasks, inner_steps=steps), 1.0, [], [{"seconds": 0.1 * tasks}]
        )
        for steps in (1, 3)
        for tasks in (20, 100)
    ]
    compare.draw(gradients, rows(), rows(), tmp_path / "compare.png")
    ((figure, path),) = drawn
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert path == tmp_path / "compare.png"
    assert list(panels) == [
        "meta-gradient, inner steps: 1",
        "meta-gradient, inner steps: 3",
        "an iteration, point-goal",
        "point-goal",
        "",  # left free
    ]
    (line,) = panels["meta-gradient, inner steps: 1"].lines
    assert line.get_xydata().tolist() == [[20, 2], [100, 10]]
    widths = [bar.get_width() for bar in panels["an iteration, point-goal"].patches]
    assert widths == [0.5, 0.5, 1.5, 5.5]  # sampling, then the update
    assert len(panels["point-goal"].lines) == 2


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
        (["--gradient-tasks", "20", "0"], "gradient_tasks must be at least 1, got 0"),
        (["--gradient-steps", "0"], "gradient_steps must be at least 1, got 0"),
        (["--curve", "-1"], "curve must be at least 0, got -1"),
    ],
)
def test_a_mistake_costs_a_line(flags, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", *flags])
    with pytest.raises(SystemExit, match=message):
        compare.main()
