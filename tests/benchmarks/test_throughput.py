"""Steps/s of training beside those of the physics alone, at a small size, and mistakes in the command."""

import pytest

from benchmarks import common, throughput


def test_both_sides_are_measured_in_a_process_of_their_own():
    case = throughput.Case("point-goal", "ppo, 5 epochs", 2, 2, repeats=2, compare_devices=True)
    found = common.in_own_process("benchmarks.throughput", case)
    sides = {"training", "physics", "training_one_device"}
    assert set(found["rates"]) == sides and all(len(rates) == 2 for rates in found["rates"].values())
    assert all(found[side] > 0 for side in sides)
    assert found["physics"] > found["training"]  # which steps it, too
    assert found["peak_mebibytes"] > 0 and 2 % found["devices"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks"], "tasks must be at least one number, got none"),
        (["--tasks", "0"], "tasks must be at least 1, got 0"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--episodes", "0"], "episodes must be at least 1, got 0"),
    ],
)
def test_a_mistake_costs_a_line(flags, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["throughput", *flags])
    with pytest.raises(SystemExit, match=message):
        throughput.main()
