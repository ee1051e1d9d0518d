import dataclasses
import io
import re

import pytest
from rich.console import Console

from jmeta.reporting import progress as reporting
from jmeta.training import Progress


def chunk(iteration, iterations=40):
    metrics = {"return_before": -8.25, "return_after": 70.04}
    return Progress(iteration, iterations, metrics, 27_700.4, 3_723.4)


def test_one_line_says_it_all():
    # 3723 s = 1 h 2 min 3 s
    assert reporting.describe(chunk(10)) == "return -8.2 → 70.0  27,700 env steps/s  1:02:03 left"


def test_skipped_updates_are_shown_if_there_are_any():
    for count, shown in ((0, False), (3, True)):
        progress = chunk(10)
        progress.metrics["skipped"] = count
        assert ("  skipped updates: 3  " in reporting.describe(progress)) == shown
        assert ("skipped" in reporting.describe(progress)) == shown


def records(lost, skipped, first=1):
    pairs = zip(lost, skipped, strict=True)
    return [
        {"iteration": first + index, "tasks_lost": one, "skipped": other}
        for index, (one, other) in enumerate(pairs)
    ]


def test_tasks_lost_are_counted_since_the_last_report(monkeypatch):
    monkeypatch.setattr(reporting.time, "monotonic", iter([0.0, 4.0, 11.0, 12.0]).__next__)
    out = io.StringIO()
    with reporting.ProgressReporter(Console(file=out, width=200), 4, 20) as report:
        for iteration, lost in enumerate((0, 3, 2, 0), start=1):
            report(dataclasses.replace(chunk(iteration, 4), records=records([lost], [0], first=iteration)))
    lines = out.getvalue().splitlines()[1:]
    assert ["tasks lost" in line for line in lines] == [False, True, False]
    assert "  tasks lost: 5 of 40  " in lines[1]


@pytest.mark.parametrize(
    ("lost", "skipped", "expected"),
    [
        ([0, 10, 10], [0, 0, 1], None),
        ([11, 10, 10], [0, 0, 0], "31 of 60 tasks were lost because something in them was not finite"),
        ([0, 0, 0], [15, 30, 30], "updates were skipped in 2 of 3 iterations"),
        ([20, 20, 20], [1, 2, 3], "60 of 60 tasks .* and updates were skipped in 3 of 3 iterations"),
        ([], [], None),
    ],
)
def test_a_run_that_mostly_failed_says_so(lost, skipped, expected):
    found = reporting.warning(records(lost, skipped), 20)
    assert found == expected or re.fullmatch(expected, found)


def test_updates_skipped_before_a_resume_are_not_counted_again():
    assert reporting.warning(records([0, 0], [30, 30], first=7), 20) is None
    assert reporting.warning([{"iteration": 1}], 20) is None  # an algorithm that reports neither


def test_the_last_report_alone_can_be_the_one_that_failed():
    with reporting.ProgressReporter(Console(file=io.StringIO()), 40, 20) as report:
        report(dataclasses.replace(chunk(10), records=records([0] * 10, [0] * 10)))
        assert report.warning is None
        report(dataclasses.replace(chunk(40), records=records([20] * 2, [0] * 2, first=39)))
    assert report.warning.startswith("40 of 40 tasks were lost")


@pytest.mark.parametrize(
    ("split", "lost", "end"),
    [("heldout", 0, "100 held-out tasks"), ("train", 3, "100 fresh tasks, of which 3 were lost")],
)
def test_an_evaluation_is_one_line(split, lost, end):
    record = {
        "iteration": 8,
        "split": split,
        "num_tasks": 100,
        "tasks_lost": lost,
        "return_mean": [-2.0, 1.5],
    }
    assert reporting.describe_evaluation(record) == f"evaluation after 8: return -2.0 → 1.5 on {end}"


def test_without_a_terminal_lines_come_now_and_then(monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0])
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with reporting.ProgressReporter(Console(file=out), 40, 20) as report:
        for iteration in (10, 20, 30, 40):
            report(chunk(iteration))
    lines = out.getvalue().splitlines()
    # The first, none after 4 s, one after 11 s, and the last.
    assert [line.split()[0] for line in lines] == ["compiling", "10/40", "30/40", "40/40"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_on_a_terminal_a_bar_moves_and_gives_the_cursor_back(error):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    try:
        with reporting.ProgressReporter(console, 40, 20) as report:
            report(chunk(30))
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert "30/40" in out.getvalue() and "27,700 env steps/s" in out.getvalue()
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")
