import json

import pytest

from jmeta.runs import RunFolder, resolve
from jmeta.runs.checkpoints import DamagedRunError


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


def test_a_damaged_line_elsewhere_is_an_error(run):
    (run.path / "metrics.jsonl").write_text('{"iteration": 1\n{"iteration": 2}\n')
    with pytest.raises(DamagedRunError, match="metrics.jsonl is damaged"):
        run.read_metrics()


def test_truncation_leaves_the_bytes_of_a_run_that_stopped_there(run):
    run.truncate_metrics(5)  # nothing is there yet
    assert not (run.path / "metrics.jsonl").exists()
    records = [{"iteration": i, "loss": i / 3} for i in range(1, 7)]
    run.append_metrics(records[:4])
    run.append_timings([{"iteration": 2}, {"iteration": 6}])
    path = run.path / "metrics.jsonl"
    expected = path.read_bytes()
    run.append_metrics(records[4:])
    path.write_bytes(path.read_bytes() + b'{"iteration": 7, "lo')
    run.truncate_metrics(4)
    assert path.read_bytes() == expected
    assert (run.path / "timings.jsonl").read_text() == '{"iteration": 2}\n'


def test_truncation_to_the_start_keeps_nothing(run):
    run.append_metrics([{"iteration": 1}])
    run.truncate_metrics(0)
    assert run.read_metrics() == []
