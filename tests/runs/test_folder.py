import json
import math
import shutil

import pytest

from jmeta.runs import RunFolder, resolve
from jmeta.runs.checkpoints import DamagedRunError
from jmeta.runs.files import write_json


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
    for name in ("environment.json", "config.json.0123abcd.tmp", "lock"):
        (path / name).write_text('{"alg')
    assert RunFolder.create(path, config) == RunFolder.open(path)
    for name in ("metrics.jsonl", "mine.tmp"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / "environment.json").write_text("{}")
        (other / name).write_text("")
        with pytest.raises(FileExistsError):
            RunFolder.create(other, config)


def test_a_run_with_a_start_of_its_own_is_no_run_without_it(tmp_path, config, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(tmp_path / "run", config, {"a": 1.0})
    with pytest.raises(DamagedRunError, match="config.json: No such file"):
        RunFolder.open(tmp_path / "run")
    run = RunFolder.create(tmp_path / "run", config, {"a": 2.0})
    assert run.resume({"a": 0.0}, checkpoint_every=1) == (0, {"a": 2.0}, ())


def test_another_process_writes_nothing(tmp_path, config, run, monkeypatch):
    run.append_metrics([{"iteration": 1}, {"iteration": 2}])
    before = (run.path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert RunFolder.create(run.path, config) == run  # the first one has made it
    run.append_metrics([{"iteration": 3}])
    run.resume({"a": 1.0}, checkpoint_every=2)
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
    [
        *(
            b'{"iteration": 1',
            b"{}",
            b"[]",
            b"5",
            b"",
            b'{"iteration": true}',
            b'{"iteration": 1.5}',
            b"\xff",
        ),
        *(b"[" * 100_000, b"0" * 2**21, b'{"iteration": 2, "iteration": 2}', b'{"iteration": 2, "a": NaN}'),
    ],
)
def test_a_damaged_line_elsewhere_is_an_error(run, line):
    (run.path / "metrics.jsonl").write_bytes(b'{"iteration": 1}\n' + line + b"\n")
    with pytest.raises(DamagedRunError, match="metrics.jsonl is damaged: line 2"):
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


# -- going on -----------------------------------------------------------------------------------------


LIKE = {"a": 1.0}


def write(run, iterations, saved=()):
    run.append_metrics([{"iteration": i, "loss": i / 3} for i in range(1, iterations + 1)])
    for iteration in saved:
        run.save_checkpoint(iteration, {"a": float(iteration)})


def content(run):
    return {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}


def test_truncation_leaves_the_bytes_of_a_run_that_stopped_there(run):
    write(run, 4, saved=[4])
    run.append_timings([{"iteration": 2}, {"iteration": 6}])
    path = run.path / "metrics.jsonl"
    expected = path.read_bytes()
    run.append_metrics([{"iteration": 5}, {"iteration": 6}])
    path.write_bytes(path.read_bytes() + b'{"iteration": 7, "lo')
    assert run.resume(LIKE, checkpoint_every=4) == (4, {"a": 4.0}, ())
    assert path.read_bytes() == expected
    assert (run.path / "timings.jsonl").read_text() == '{"iteration": 2}\n'


def test_before_the_first_checkpoint_a_run_starts_again(run):
    assert run.resume(LIKE, checkpoint_every=4) == (0, None, ())
    write(run, 4)
    assert run.resume(LIKE, checkpoint_every=4) == (0, None, ())
    assert run.read_metrics() == []


def test_a_whole_run_is_left_as_it_is(run):
    write(run, 8, saved=[4, 8])
    before = content(run)
    assert run.resume(LIKE, checkpoint_every=4) == (8, {"a": 8.0}, ())
    assert content(run) == before


def damage(run, iteration):
    (run.path / "checkpoints" / str(iteration) / "arrays.bin").write_bytes(b"")


def test_damaged_checkpoints_are_passed_over(run):
    write(run, 7, saved=[4, 6, 7])
    shutil.rmtree(run.path / "checkpoints" / "7")
    damage(run, 6)
    iteration, tree, notes = run.resume(LIKE, checkpoint_every=2)
    assert (iteration, tree) == (4, {"a": 4.0})
    assert notes == ("checkpoint 6 is damaged: arrays.bin: it has 0 bytes instead of 8",)
    assert len(run.read_metrics()) == 4


def test_a_checkpoint_that_was_removed_is_told_by_the_records(run):
    write(run, 7, saved=[4, 7])
    shutil.rmtree(run.path / "checkpoints" / "7")
    iteration, _, notes = run.resume(LIKE, checkpoint_every=2)
    assert iteration == 4
    assert notes == ("metrics.jsonl holds 7 iterations, but the newest checkpoint is of iteration 4",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [(None, "metrics.jsonl holds 5 iterations"), (b"{}\n", "metrics.jsonl is damaged: line 6: it is not")],
)
def test_a_checkpoint_whose_records_are_gone_is_passed_over(run, line, problem):
    write(run, 8, saved=[4, 8])
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    expected = b"".join(lines[:4])
    path.write_bytes(b"".join(lines[:5] if line is None else [*lines[:5], line, *lines[6:]]))
    iteration, _, notes = run.resume(LIKE, checkpoint_every=4)
    assert iteration == 4
    assert len(notes) == 1 and notes[0].startswith(f"checkpoints newer than the records (8): {problem}")
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    ("iterations", "saved", "message"),
    [
        (
            [1, 2, 3],
            [4],
            "cannot go on: checkpoints newer than the records \\(4\\): metrics.jsonl holds 3 iterations",
        ),
        ([1, 2, 3], [], "cannot go on: metrics.jsonl holds 3 iterations, but there is no checkpoint"),
        ([1, 3, 4, 5], [4], "iteration 3 follows 1"),
        ([1, 2, 2, 3, 4], [4], "iteration 2 follows 2"),
        ([3, 4, 5], [4], "iteration 3 follows 0"),
    ],
)
def test_without_a_checkpoint_to_go_on_from_nothing_is_changed(run, iterations, saved, message):
    run.append_metrics([{"iteration": i} for i in iterations])
    for iteration in saved:
        run.save_checkpoint(iteration, LIKE)
    before = content(run)
    with pytest.raises(DamagedRunError, match=message):
        run.resume(LIKE, checkpoint_every=2)
    assert content(run) == before


def test_damaged_times_are_dropped(run):
    write(run, 4, saved=[4])
    (run.path / "timings.jsonl").write_text('{"iteration": 2}\n[]\n{"iteration": 4}\n')
    iteration, _, notes = run.resume(LIKE, checkpoint_every=4)
    assert iteration == 4 and len(notes) == 1 and "timings.jsonl is damaged: line 2" in notes[0]
    assert (run.path / "timings.jsonl").read_text() == '{"iteration": 2}\n'


# -- the best checkpoint ------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept_and_restored(run):
    assert run.best_checkpoint() is None
    write(run, 6)
    for iteration, value in enumerate([-3.0, -1.0, math.nan, -1.0, -2.0, -5.0], start=1):
        run.save_checkpoint(iteration, {"a": float(iteration)})
        assert run.mark_best(iteration, value) == (iteration < 3)
    assert run.best_checkpoint() == (2, -1.0)
    assert run.restore("best", LIKE) == (2, {"a": 2.0}, ())
    assert run.restore("last", LIKE) == (6, {"a": 6.0}, ())
    assert run.restore(5, LIKE) == (5, {"a": 5.0}, ())
    with pytest.raises(ValueError, match="has no checkpoint 3: it has checkpoints 2, 4, 5, 6$"):
        run.restore(3, LIKE)
    with pytest.raises(ValueError, match="has no checkpoint 3: it has checkpoints 2, 4, 5, 6$"):
        run.mark_best(3, 0.0)


def test_without_a_best_checkpoint_those_there_are_are_listed(run):
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        run.restore("last", LIKE)
    with pytest.raises(ValueError, match="has no best checkpoint: it has no checkpoint yet"):
        run.restore("best", LIKE)
    run.save_checkpoint(4, LIKE)
    with pytest.raises(ValueError, match="has no best checkpoint: it has checkpoints 4"):
        run.restore("best", LIKE)


def test_a_best_checkpoint_that_is_yet_to_come_is_forgotten(run):
    write(run, 8, saved=[4, 8])
    run.mark_best(8, 1.0)
    damage(run, 8)
    with pytest.raises(DamagedRunError, match="checkpoint 8 is damaged: .* has checkpoints 4, 8$"):
        run.restore("best", LIKE)
    assert run.resume(LIKE, checkpoint_every=4).iteration == 4
    assert run.best_checkpoint() is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"iteration": 4, "return": null}', '{"iteration": true, "return": 1}', '{"itera'],
)
def test_a_damaged_best_is_chosen_again(run, text):
    write(run, 4, saved=[4])
    (run.path / "best.json").write_text(text)
    with pytest.raises(DamagedRunError, match="best.json is damaged"):
        run.restore("best", LIKE)
    iteration, _, notes = run.resume(LIKE, checkpoint_every=4)
    assert iteration == 4 and len(notes) == 1 and "best.json is damaged" in notes[0]
    assert run.best_checkpoint() is None
