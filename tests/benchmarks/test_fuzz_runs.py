"""A run folder that is damaged at random: a small budget, and that what is wrong is found."""

import random

import pytest

from benchmarks import common, fuzz_runs
from tests import small


@pytest.mark.unmeasured
def test_no_damage_ends_in_a_traceback_or_changes_what_is_left():
    with small.compiled_once():
        cases = fuzz_runs.fuzz(cases=40, seed=0)
    assert [case for case in cases if case.problem] == []
    assert len({(case.place, case.damage) for case in cases}) == len(cases) == 40
    outcomes = {outcome for case in cases for outcome in (case.resume, case.evaluate)}
    assert outcomes == {"newest", "older", "refused"}
    for row in fuzz_runs.rows(cases):
        assert sum(map(int, row[2:])) == 40 and row[-1] == "0"


@pytest.mark.parametrize(
    ("status", "errors", "unchanged", "message"),
    [
        (2, "jmeta: error: a\nb\n", True, "other than one line"),
        (2, "Traceback\n", True, "other than one line"),
        (2, "jmeta: error: a\n", False, "files were changed"),
        (1, "", True, "status 1"),
    ],
)
def test_what_no_damage_excuses_is_found(status, errors, unchanged, message):
    with pytest.raises(fuzz_runs.Problem, match=message):
        fuzz_runs.outcome(status, errors, lambda: True, unchanged)


def test_every_damage_changes_its_file(tmp_path):
    rng = random.Random(0)
    for kind, change in fuzz_runs.CHANGES.items():
        assert change(b'{"iteration": 1}', rng) != b'{"iteration": 1}', kind
    for kind, damage in fuzz_runs.REPLACEMENTS.items():
        path = tmp_path / kind.replace("/", "-")
        path.write_text("text")
        before = fuzz_runs.snapshot(tmp_path)
        damage(path, rng)
        assert fuzz_runs.snapshot(tmp_path) != before, kind


def test_a_mistake_costs_a_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fuzz_runs", "--cases", "0"])
    with pytest.raises(SystemExit, match="cases must be at least 1, got 0"):
        fuzz_runs.main()


def test_the_command_writes_its_table(monkeypatch, tmp_path, capsys):
    case = fuzz_runs.Case("config.json", "deleted", "refused", "refused", "failed", "why")
    monkeypatch.setattr(fuzz_runs, "fuzz", lambda cases, seed, report: report(case) or [case])
    monkeypatch.setattr("sys.argv", ["fuzz_runs", "--json", str(tmp_path / "fuzz.json")])
    monkeypatch.setattr(common, "machine", dict)
    with pytest.raises(SystemExit):
        fuzz_runs.main()
    printed = capsys.readouterr()
    assert "config.json: deleted: why" in printed.err
    assert "worked on an older one" in printed.out and (tmp_path / "fuzz.json").exists()
