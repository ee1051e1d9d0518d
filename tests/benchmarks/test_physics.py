"""The paths of physics beside each other, at a small size, and mistakes in the command."""

import json

import pytest

from benchmarks import physics
from jmeta.envs import brax


@pytest.mark.unmeasured
def test_speed_and_agreement(tmp_path, monkeypatch, capsys):
    file = tmp_path / "physics.json"
    numbers = {"sizes": 3, "steps": 2, "repeats": 1, "episodes": 9, "horizon": 2}
    flags = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    monkeypatch.setattr("sys.argv", ["physics", "--robots", "hopper", *flags, "--json", str(file)])
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    before = brax.one_kernel
    physics.main()
    assert brax.one_kernel is before
    record = json.loads(file.read_text())
    (row,) = record["speed"]
    assert set(row["microseconds"]) == set(physics.PATHS) and 10_000 < row["operations"] < 20_000
    assert [row["policy"] for row in record["agreement"]] == ["random", "swinging", "network"]
    for row in record["agreement"]:
        (mean, _), (other, _) = row["returns"]
        assert mean == pytest.approx(other, abs=1) and row["lengths"] == [2, 2]
    printed = capsys.readouterr().out
    assert "| hopper |       3 |" in printed and " network |" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--robots", "cat"], "robots must be of halfcheetah, .*, got 'cat'"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--episodes", "-1"], "episodes must be at least 0, got -1"),
    ],
)
def test_a_mistake_costs_a_line(flags, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["physics", *flags])
    with pytest.raises(SystemExit, match=message):
        physics.main()
