"""Runs that are interrupted at random moments: a small budget, and that what is wrong is found."""

import signal

import pytest

from benchmarks import common, kill


@pytest.mark.slow
def test_interrupted_at_random_moments_a_run_ends_the_same(monkeypatch):
    monkeypatch.setattr(kill, "mounted", lambda path, size: False)  # a test mounts nothing
    shorter = ["100" if word == str(kill.ITERATIONS) else word for word in kill.TRAIN]
    monkeypatch.setattr(kill, "TRAIN", shorter)
    monkeypatch.setattr(kill, "ITERATIONS", 100)
    found = kill.interrupt({"kill -9": 3, "SIGTERM": 2, "full disk": 1}, seed=0)
    assert [one for one in found if one.problem] == []
    assert [row[:2] for row in kill.rows(found)] == [["kill -9", "3"], ["SIGTERM", "2"], ["full disk", "1"]]


@pytest.fixture
def run(tmp_path):
    """What is left of a run after two iterations, with a checkpoint."""
    manifest = tmp_path / "run" / "checkpoints" / "2" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").write_text("1\n2\n")
    return kill.Run(tmp_path / "run")


def test_a_process_that_is_asked_to_end_must_save_and_say_how_to_go_on(run):
    good = f"compiling\njmeta: terminated; go on with: jmeta train --resume --run-dir {run.path}\n"
    assert kill.asked(143, good, run, training=True) is None
    assert kill.asked(-signal.SIGTERM, "", run, training=False) is None  # it had not begun
    for status, errors in ((-signal.SIGTERM, ""), (1, "Traceback\n" + good), (143, "terminated")):
        assert f"status {status}" in kill.asked(status, errors, run, training=True)
    (run.path / "metrics.jsonl").write_text("1\n2\n3\n")
    assert "without a checkpoint" in kill.asked(143, good, run, training=True)


def test_a_run_that_ends_differently_is_found(run, monkeypatch):
    monkeypatch.setattr(kill, "by_signal", lambda *_: kill.Interruption("kill -9", "training", 2))
    monkeypatch.setattr(run, "finish", lambda: (run.path / "metrics.jsonl").write_text("1\nanother\n"))

    class Reference:
        result = run.result()

    (one,) = kill._until_finished("kill -9", run, Reference, None, most=1)
    assert one.problem == "the run ended with another metrics.jsonl"


def test_the_command_writes_its_table(monkeypatch, tmp_path, capsys):
    found = [kill.Interruption("SIGTERM", "starting", 0), kill.Interruption("SIGTERM", "training", 5, "why")]
    monkeypatch.setattr(
        kill, "interrupt", lambda counts, seed, report: [report(one) for one in found] and found
    )
    monkeypatch.setattr("sys.argv", ["kill", "--json", str(tmp_path / "kill.json")])
    monkeypatch.setattr(common, "machine", dict)
    with pytest.raises(SystemExit):
        kill.main()
    printed = capsys.readouterr()
    assert "SIGTERM, training, 5 iterations: why" in printed.err
    assert (tmp_path / "kill.json").exists()
    row = next(line for line in printed.out.splitlines() if "SIGTERM" in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["SIGTERM", "2", "1", "1", "1", "1"]


def test_a_mistake_costs_a_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["kill", "--kills", "-1"])
    with pytest.raises(SystemExit, match="kills must be at least 0, got -1"):
        kill.main()
