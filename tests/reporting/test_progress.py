import io

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


def test_without_a_terminal_lines_come_now_and_then(monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0])
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with reporting.ProgressReporter(Console(file=out), 40) as report:
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
        with reporting.ProgressReporter(console, 40) as report:
            report(chunk(30))
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert "30/40" in out.getvalue() and "27,700 env steps/s" in out.getvalue()
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")
