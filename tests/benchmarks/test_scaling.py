"""Laws are found in measurements that follow them, and the pod's arithmetic is that of the text."""

import dataclasses

import pytest

from benchmarks import scaling

BASE = scaling.Case("tasks", "point-goal", 8, 1, 1, 1, episodes=2, repeats=1)


def row(sweep, size, seconds, memory=1.0):
    case = dataclasses.replace(BASE, **{"sweep": sweep, sweep: size})
    return scaling.Row(case, seconds, (seconds, seconds), 1.0, memory, 1.0, 1.0)


def test_a_law_is_found_whatever_the_scale():
    law = scaling.fit([1.0, 10.0, 1000.0], [3.5, 8.0, 503.0])  # 3 + 0.5 x
    assert (law.fixed, law.growing) == pytest.approx((3.0, 0.5))
    assert law.error == pytest.approx(0.0, abs=1e-12)
    # No line goes through all of these; 2 x is off by half of the last.
    assert scaling.fit([1.0, 2.0, 3.0], [2.0, 4.0, 12.0]).error > 0.2


def test_devices_are_counted_as_far_as_each_has_a_core():
    rows = [row("devices", 1, 5.0), row("devices", 2, 3.0), row("devices", 4, 9.0)]  # 1 + 4 / devices
    law = scaling.laws(rows, cores=2)["devices"]["seconds"]
    assert (law.fixed, law.growing) == pytest.approx((1.0, 4.0))
    assert scaling.laws(rows, cores=1) == {}  # one size has no law


def test_what_varies_starts_from_the_same_case():
    flags = scaling.Flags(tasks=(2, 4), inner_steps=(3,), devices=(1,), seeds=(5,), base_tasks=8)
    found = [
        (case.sweep, case.tasks, case.inner_steps, case.devices, case.seeds) for case in scaling.cases(flags)
    ]
    assert found == [
        ("tasks", 2, 1, 1, 1),
        ("tasks", 4, 1, 1, 1),
        ("inner_steps", 8, 3, 1, 1),
        ("devices", 8, 1, 1, 1),
        ("seeds", 8, 1, 1, 5),
    ]


def test_seconds_on_a_pod_by_hand():
    pod = scaling.Pod(speed=10.0, latency=1e-3, link=1e6, hop=1e-2)
    work = scaling.Work(per_task=0.5, depth=200, updates=3, bytes=4000)
    parts = scaling.on_paper(pod, work, chips=4, tasks=80)
    assert parts["tasks"] == pytest.approx(80 / 4 * 0.5 / 10)
    assert parts["latency"] == pytest.approx(0.2)
    # Three sums: 3/4 of 4,000 bytes twice, and once around each of two rings of two, out and back.
    assert parts["communication"] == pytest.approx(3 * (6000 / 1e6 + 4 * 1e-2))
    assert scaling.on_paper(pod, work, chips=1, tasks=80)["communication"] == 0.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "0"], "tasks must be at least 1, got 0"),
        (["--devices", "3"], "devices must divide the 64 tasks, got 3"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
    ],
)
def test_a_mistake_costs_a_line(flags, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scaling", *flags])
    with pytest.raises(SystemExit, match=message):
        scaling.main()
