"""Laws are found in measurements that follow them, and the pod's arithmetic is that of the text."""

import dataclasses

import numpy as np
import pytest

from benchmarks import common, scaling

BASE = scaling.Case("tasks", "point-goal", 8, 1, 1, 1, episodes=2, repeats=1)


def row(sweep, size, seconds, memory=1.0):
    case = dataclasses.replace(BASE, **{"sweep": sweep, sweep: size})
    spread = (seconds, seconds)
    return scaling.Row(case, seconds, spread, 5.0, memory, block=2, peak=77.0, compile_seconds=99.0)


def test_a_law_is_found_whatever_the_scale():
    law = scaling.fit("tasks", [1, 10, 1000], [3.5, 8.0, 503.0])  # 3 + 0.5 x
    assert (law.fixed, law.growing) == pytest.approx((3.0, 0.5))
    assert law.sizes == (1, 1000)
    assert law.error == pytest.approx(0.0, abs=1e-12)
    # No line goes through these. With r = 1/2, 1/4, 1/12 and s = 1/2, 2/4, 3/12, sums of r r, r s and
    # s s are 46/144, 57/144, 81/144, of r and s 120/144, 180/144. Solved: (120 81 - 180 57) / (46 81 - 57 57)
    # and (46 180 - 57 120) / 477, which miss the last by (540 - 3 1440 + 12 477) / (12 477).
    law = scaling.fit("seeds", [1, 2, 3], [2.0, 4.0, 12.0])
    assert (law.fixed, law.growing, law.error) == pytest.approx((-540 / 477, 1440 / 477, 0.340), abs=1e-3)
    assert scaling.fit("seeds", [1, 2], [2.0, 5.0]).error is None


def test_devices_are_counted_as_far_as_each_has_a_core():
    rows = [row("devices", 1, 5.0, 6.0), row("devices", 2, 3.0, 4.0), row("devices", 4, 9.0, 9.0)]
    found = scaling.laws(rows, cores=2)["devices"]
    assert (found["seconds"].fixed, found["seconds"].growing) == pytest.approx((1.0, 4.0))  # 1 + 4 / devices
    assert (found["MiB"].fixed, found["MiB"].growing) == pytest.approx((2.0, 4.0))
    assert scaling.laws(rows, cores=1) == {}  # one size has no law
    assert scaling.laws([row("tasks", 4, 1.0), row("tasks", 4, 1.1)], cores=2) == {}


def test_memory_has_a_law_from_one_block_of_tasks_on():
    rows = [row("tasks", 1, 1.0, 9.0), row("tasks", 2, 2.0, 10.0), row("tasks", 6, 6.0, 12.0)]
    found = scaling.laws(rows, cores=2)["tasks"]
    assert (found["MiB"].sizes, found["seconds"].sizes) == ((2, 6), (1, 6))
    assert (found["MiB"].fixed, found["MiB"].growing) == pytest.approx((9.0, 0.5))
    assert scaling.laws(rows[:2], cores=2)["tasks"]["MiB"].sizes == (1, 2)


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
    work = scaling.Work(per_task=0.5, depth=200, sums=3, bytes=4000, memory=1.0)
    parts = scaling.on_paper(pod, work, chips=16, tasks=80)
    assert parts["tasks"] == pytest.approx(80 / 16 * 0.5 / 10)
    assert parts["latency"] == pytest.approx(0.2)
    # Three sums: 15/16 of 4,000 bytes twice, and three hops out and three back in each of two dimensions.
    assert parts["communication"] == pytest.approx(3 * (7500 / 1e6 + 12 * 1e-2))
    assert scaling.on_paper(pod, work, chips=1, tasks=80)["communication"] == 0.0


def test_the_work_of_point_goal():
    laws = {"seconds": scaling.Law((1, 4), 1.0, 0.25, None), "MiB": scaling.Law((1, 4), 2.0, 0.5, None)}
    work = scaling.work_of("point-goal", laws)
    numbers = (2 * 64 + 64) + (64 * 64 + 64) + (64 * 2 + 2) + 2  # layers, log deviations
    # Episodes of 100 steps before and after the inner step; 15 epochs, their end's divergence, the metrics.
    assert work == scaling.Work(per_task=0.25, depth=200, sums=17, bytes=4 * numbers, memory=0.5)


@pytest.mark.unmeasured
def test_several_seeds_are_measured_in_a_process_of_their_own():
    case = dataclasses.replace(BASE, sweep="seeds", tasks=2, seeds=3)
    found = common.in_own_process("benchmarks.scaling", case)
    # At most 2 tasks x 2 episodes x 100 steps before and as many after the inner step, of each seed; more
    # than two seeds could take.
    assert 2 * 800 < found["env_steps"] <= 3 * 800
    assert found["seconds"] > 0 and found["temporary"] > 0
    with pytest.raises(SystemExit, match="tasks.* got 0"):
        common.in_own_process("benchmarks.scaling", dataclasses.replace(BASE, tasks=0))


def test_what_is_printed_and_drawn(tmp_path, monkeypatch):
    rows = [
        row("tasks", 1, 1.5, 1.0),
        row("tasks", 4, 3.0, 4.0),
        row("devices", 1, 2.0),
        row("devices", 4, 3.0),
    ]
    found = scaling.laws(rows, cores=1)
    assert list(found) == ["tasks"]
    cells = [cell.strip() for cell in scaling.law_table(found).splitlines()[2].split("|")[1:-1]]
    assert cells == ["tasks", "tasks", "1 to 4", "seconds", "1", "0.5", ""]
    assert "| devices |    4 |       3 |" in scaling.row_table(rows)
    work = scaling.Work(per_task=0.5, depth=200, sums=3, bytes=4096, memory=1.0)
    table = scaling.pod_table(scaling.Pod(chips=(4,), tasks=(4096,)), work).splitlines()
    assert table[2].split("|")[-2].strip() == "1"  # a quarter of 4 GiB
    assert "500 ms of a core a task" in scaling.pod_line(scaling.Pod(), work)
    drawn = []
    monkeypatch.setattr(common, "save_figure", lambda figure, path: drawn.append(figure))
    scaling.draw(rows, found, tmp_path / "scaling.png")
    seconds, memory = drawn[0].axes
    assert (seconds.get_ylabel(), memory.get_ylabel(), memory.get_xlabel()) == ("seconds", "MiB", "tasks")
    law, measured = seconds.lines
    assert measured.get_xydata().tolist() == [[1, 1.5], [4, 3]]
    np.testing.assert_allclose(law.get_xydata()[[0, -1]], [[1, 1.5], [4, 3]], rtol=1e-6)


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
