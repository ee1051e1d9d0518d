import json
import math

import pytest

from jmeta.runs import RunFolder, resolve
from jmeta.runs.checkpoints import DamagedRunError
from jmeta.runs.folder import write_json


@pytest.fixture(scope="module")
def config():
    return resolve(
        algorithm={"name": "scratch"},
        family={"name": "point-goal"},
        policy={"name": "mlp"},
        training={"iterations": 1, "num_tasks": 2},
    )


@pytest.fixture
def run(tmp_path, config):
    return RunFolder.create(tmp_path / "a" / "run", config)


def test_create_then_open(run, config):
    opened = RunFolder.open(run.path)
    assert opened == run
    assert opened.config == config
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["devices"]["count"] >= 1
    assert {"python", "jax", "brax", "jmeta"} <= set(environment["versions"])


def test_create_takes_an_empty_folder_and_nothing_else(tmp_path, config):
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", config)
    before = (tmp_path / "empty" / "config.json").read_bytes()
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (tmp_path / "empty", file, file / "below"):
        with pytest.raises(FileExistsError, match="file|empty"):
            RunFolder.create(path, config)
    assert (tmp_path / "empty" / "config.json").read_bytes() == before
    assert file.read_text() == "mine"


def test_create_goes_on_where_a_killed_one_ended(tmp_path, config):
    path = tmp_path / "run"
    path.mkdir()
    for name in ("environment.json", "config.json.tmp"):
        (path / name).write_text('{"alg')
    assert RunFolder.create(path, config) == RunFolder.open(path)
    for name in ("metrics.jsonl", "mine.tmp"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / "environment.json").write_text("{}")
        (other / name).write_text("")
        with pytest.raises(FileExistsError):
            RunFolder.create(other, config)


def test_another_process_writes_nothing(tmp_path, config, run, monkeypatch):
    run.append_metrics([{"iteration": 1}, {"iteration": 2}])
    before = (run.path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert RunFolder.create(run.path, config) == run  # the first one has made it
    run.append_metrics([{"iteration": 3}])
    run.truncate_metrics(1, latest=2)
    run.save_checkpoint(2, {"a": 1.0})
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert run.latest_checkpoint() is None


def test_open_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        RunFolder.open(tmp_path / "missing")


@pytest.mark.parametrize("text", [None, "", "{", '{"algorithm": 1}', b"\xff\xfe"])
def test_open_says_what_is_damaged(run, text):
    path = run.path / "config.json"
    if text is None:
        path.unlink()
    elif isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text)
    with pytest.raises(DamagedRunError, match="damaged: config.json: "):
        RunFolder.open(run.path)


def test_metrics_are_appended_and_read_back_exactly(run):
    assert run.read_metrics() == []
    records = [{"iteration": i, "return": 0.1 * i, "big": 1e300} for i in range(1, 4)]
    run.append_metrics(records[:2])
    run.append_metrics(records[2:])
    assert run.read_metrics() == records


def test_a_line_cut_off_while_written_is_left_out(run):
    run.append_metrics([{"iteration": 1}, {"iteration": 2}])
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    assert run.read_metrics() == [{"iteration": 1}]


@pytest.mark.parametrize(
    "line",
    [b'{"iteration": 1', b"{}", b"[]", b"5", b"", b'{"iteration": true}', b'{"iteration": 1.5}', b"\xff"],
)
def test_a_damaged_line_elsewhere_is_an_error(run, line):
    for name in ("metrics.jsonl", "timings.jsonl"):
        (run.path / name).write_bytes(b'{"iteration": 1}\n')
    for name in ("timings.jsonl", "metrics.jsonl"):
        (run.path / name).write_bytes(b'{"iteration": 1}\n' + line + b"\n")
        before = [path.read_bytes() for path in sorted(run.path.iterdir())]
        with pytest.raises(DamagedRunError, match=f"{name} is damaged"):
            run.truncate_metrics(0, latest=9)
        assert [path.read_bytes() for path in sorted(run.path.iterdir())] == before
    with pytest.raises(DamagedRunError, match="metrics.jsonl is damaged"):
        run.read_metrics()


def test_a_folder_for_a_file_is_damage(run):
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(DamagedRunError, match="metrics.jsonl is damaged"):
        run.read_metrics()


def test_numbers_that_are_not_finite_are_null_and_read_back_as_nan(run):
    def refuse(constant):
        raise AssertionError(constant)

    infinite = {"iteration": 1, "loss": math.nan, "kl": math.inf, "return": 1.5}
    run.append_metrics([infinite])
    run.append_timings([infinite])
    write_json(run.path / "evaluation.json", {"return_low": [-math.inf, 0.5], "steps": [0, 1]})
    for name in ("metrics.jsonl", "timings.jsonl"):
        line = json.loads((run.path / name).read_text(), parse_constant=refuse)
        assert line == {"iteration": 1, "loss": None, "kl": None, "return": 1.5}
    evaluation = json.loads((run.path / "evaluation.json").read_text(), parse_constant=refuse)
    assert evaluation == {"return_low": [None, 0.5], "steps": [0, 1]}
    (record,) = run.read_metrics()
    assert math.isnan(record["loss"]) and math.isnan(record["kl"]) and record["return"] == 1.5
    before = (run.path / "metrics.jsonl").read_bytes()
    run.truncate_metrics(1, latest=1)
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_truncation_leaves_the_bytes_of_a_run_that_stopped_there(run):
    run.truncate_metrics(0, latest=5)  # nothing is there yet
    assert not (run.path / "metrics.jsonl").exists()
    records = [{"iteration": i, "loss": i / 3} for i in range(1, 7)]
    run.append_metrics(records[:4])
    run.append_timings([{"iteration": 2}, {"iteration": 6}])
    path = run.path / "metrics.jsonl"
    expected = path.read_bytes()
    run.append_metrics(records[4:])
    path.write_bytes(path.read_bytes() + b'{"iteration": 7, "lo')
    run.truncate_metrics(4, latest=8)
    assert path.read_bytes() == expected
    assert (run.path / "timings.jsonl").read_text() == '{"iteration": 2}\n'


def test_truncation_to_the_start_keeps_nothing(run):
    run.append_metrics([{"iteration": 1}])
    run.truncate_metrics(0, latest=5)
    assert run.read_metrics() == []


@pytest.mark.parametrize(
    ("iterations", "saved", "message"),
    [
        ([1, 2, 3], 4, "holds 3 iterations, but the last checkpoint is of iteration 4"),
        ([], 4, "holds 0 iterations, but the last checkpoint is of iteration 4"),
        ([1, 2, 3], 0, "holds 3 iterations, but there is no checkpoint"),
        ([1, 2, 3, 4, 5, 6, 7], 4, "holds 7 iterations, but the last checkpoint is of iteration 4"),
        ([1, 3, 4, 5], 4, "its iterations are not 1, 2, 3"),
        ([1, 2, 2, 3, 4], 4, "its iterations are not 1, 2, 3"),
        ([3, 4, 5], 4, "its iterations are not 1, 2, 3"),
    ],
)
def test_metrics_that_do_not_reach_the_checkpoint_or_go_too_far_are_damage(run, iterations, saved, message):
    run.append_metrics([{"iteration": i} for i in iterations])
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(DamagedRunError, match=message):
        run.truncate_metrics(saved, latest=saved + 2)
    assert (run.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("last", "saved"), [(4, 4), (6, 4), (0, 0), (2, 0)])
def test_metrics_may_be_ahead_of_the_checkpoint_by_the_next(run, last, saved):
    run.append_metrics([{"iteration": i} for i in range(1, last + 1)])
    run.truncate_metrics(saved, latest=saved + 2)
    assert len(run.read_metrics()) == saved
