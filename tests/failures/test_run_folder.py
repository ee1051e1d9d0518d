"""A run folder that is damaged, hostile, shared, or on a full disk, as a user meets it."""

import ast
import contextlib
import json
import os
import pathlib
import pickle
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fuzz_runs
from jmeta.runs import RunFolder, checkpoints, files
from jmeta.runs.checkpoints import DamagedRunError
from tests import small

REPOSITORY = pathlib.Path(__file__).parents[2]
LIKE = {"a": jnp.zeros(3)}


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with small.compiled_once():
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A finished run with checkpoints 4, 6 and 8."""
    return fuzz_runs.Reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def trained(reference, tmp_path):
    """A copy of it."""
    return RunFolder.open(shutil.copytree(reference.path, tmp_path / "run"))


@pytest.fixture
def run(reference, tmp_path):
    """A new run."""
    return RunFolder.create(tmp_path / "new", reference.config)


def resume(path):
    return fuzz_runs.command(["train", "--resume", "--run-dir", str(path)])


def evaluate(path):
    return fuzz_runs.command(["evaluate", str(path), *fuzz_runs.EVALUATE])


def refused(path, use):
    """The one line with which a command refuses a run, which stays as it is."""
    before = fuzz_runs.snapshot(path)
    status, out, err = use(path)
    assert (status, out) == (2, "") and err.count("\n") == 1, err
    assert fuzz_runs.snapshot(path) == before
    return err


# -- damaged ------------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_is_passed_over_and_trained_again(reference, trained):
    shutil.rmtree(trained.path / "checkpoints" / "8")
    (trained.path / "checkpoints" / "6" / "arrays.bin").write_bytes(b"cut off")
    status, out, _ = evaluate(trained.path)
    assert status == 0 and "iteration 4\n" in out
    status, _, err = resume(trained.path)
    assert status == 0
    assert "going on from iteration 4: checkpoint 6 is damaged: arrays.bin: it has 7 bytes" in err
    reference.check_end(trained.path, "deleted")


def test_a_run_that_starts_from_a_damaged_one_says_what_it_took(trained, tmp_path):
    (trained.path / "checkpoints" / "8" / "arrays.bin").write_bytes(b"cut off")
    words = [*fuzz_runs.TRAIN, "--run-dir", str(tmp_path / "second"), "--init-from", str(trained.path)]
    status, _, err = fuzz_runs.command(words)
    assert status == 0 and "taking its iteration 6; checkpoint 8 is damaged: arrays.bin: it has 7" in err


def test_a_flipped_bit_in_an_array_is_found(run):
    run.save_checkpoint(1, LIKE)
    run.save_checkpoint(2, LIKE)
    path = run.path / "checkpoints" / "2" / "arrays.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    iteration, _, notes = run.restore("last", LIKE)
    assert iteration == 1
    assert notes == ("checkpoint 2 is damaged: arrays.bin: the checksum of ['a'] is another",)


def test_without_a_whole_checkpoint_the_reasons_are_one_line(trained):
    for iteration in (4, 6, 8):
        (trained.path / "checkpoints" / str(iteration) / "manifest.json").unlink()
    for use in (resume, evaluate):
        line = refused(trained.path, use)
        assert all(f"checkpoint {iteration} is damaged" in line for iteration in (4, 6, 8))


def test_gigabytes_of_zeros_are_not_read(trained):
    trained.save_checkpoint(9, LIKE)
    trained.save_checkpoint(10, LIKE)
    names = ["config.json", "metrics.jsonl", "best.json"]
    names += ["checkpoints/9/manifest.json", "checkpoints/10/arrays.bin"]
    for name in names:
        os.truncate(trained.path / name, 10 * 10**9)
    tracemalloc.start()
    try:
        for read, message in (
            (lambda: RunFolder.open(trained.path), "config.json: is too large: 10000000000 bytes"),
            (trained.read_metrics, "line 9 is too long"),
            (trained.best_checkpoint, "best.json is damaged: is too large"),
            (lambda: trained.restore(9, LIKE), "manifest.json: is too large"),
            (lambda: trained.restore(10, LIKE), "it has 10000000000 bytes instead of 12"),
        ):
            with pytest.raises(DamagedRunError, match=message):
                read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**25


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints/8/arrays.bin"])
@pytest.mark.parametrize("target", ["nowhere", "/dev/zero", "/", "itself"])
def test_a_link_is_no_file(trained, name, target):
    path = trained.path / name
    path.unlink()
    path.symlink_to(path.name if target == "itself" else target)
    if name == "checkpoints/8/arrays.bin":
        assert resume(trained.path)[0] == 0
    else:
        assert "is a link, not a file" in refused(trained.path, resume)


# -- hostile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "argument", "value", "message"),
    [
        ("algorithm", "name", '"os.system"', "unknown algorithm 'os.system'"),
        ("algorithm", "name", '"../../evil"', "unknown algorithm '../../evil'"),
        ("policy", "name", '"jmeta.policies.mlp"', "unknown policy 'jmeta.policies.mlp'"),
        ("policy", "name", '["mlp"]', "policy has no name"),
        ("policy", "hidden", "[" + "9" * 400 + "]", "every item of hidden must be below 2147483648"),
        ("policy", "hidden", "[true]", "every item of hidden must be of type int, not True"),
        ("algorithm", "inner_learning_rate", "NaN", "NaN is no JSON number"),
        ("algorithm", "inner_learning_rate", "1e999", "inner_learning_rate must be finite, got inf"),
        ("algorithm", "inner_learning_rate", "true", "inner_learning_rate must be of type float, not True"),
        ("algorithm", "num_episodes", "[" * 50 + "]" * 50, "nested too deeply"),
        ("algorithm", "num_episodes", "[" * 100_000, "nested too deeply"),
        ("training", "iterations", "9" * 5000, "config.json"),
        ("training", "num_tasks", '2, "num_tasks": 2', "'num_tasks' occurs twice"),
        ("training", "seed", "false", "seed must be of type int, not False"),
    ],
)
def test_hostile_configurations_are_refused(trained, part, argument, value, message):
    path = trained.path / "config.json"
    content = json.loads(path.read_text())
    content[part][argument] = "PLACE"
    path.write_text(json.dumps(content).replace('"PLACE"', value))
    for use in (resume, evaluate):
        line = refused(trained.path, use)
        assert message in line and len(line) < 500


def test_nothing_in_a_run_folder_is_executed_or_unpickled(trained, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for path in (trained.path / "checkpoints" / "8").iterdir():
        path.write_bytes(pickle.dumps(Bomb()))
    np.save(
        trained.path / "checkpoints" / "6" / "arrays.bin.npy", np.array(Bomb(), object), allow_pickle=True
    )
    (trained.path / "checkpoints" / "6" / "arrays.bin.npy").rename(
        trained.path / "checkpoints" / "6" / "arrays.bin"
    )
    assert evaluate(trained.path)[0] == 0 and resume(trained.path)[0] == 0
    assert not (tmp_path / "executed").exists()
    for source in (REPOSITORY / "jmeta" / "runs").glob("*.py"):
        used = {node.id for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Name)}
        assert not used & {"eval", "exec", "pickle", "marshal", "shelve", "__import__"}, source


# -- paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s[ab]x", "a[/b]", "lr={0.1,0.2}", "a*?b", "ab [bold]c"])
def test_a_run_folder_may_be_named_like_a_pattern(reference, tmp_path, name):
    path = tmp_path / name
    status, _, err = fuzz_runs.command([*fuzz_runs.TRAIN, "--run-dir", str(path)])
    assert status == 0 and f"evaluate it with: jmeta evaluate {shlex.quote(str(path))}\n" in err
    assert evaluate(path)[0] == 0 and resume(path)[0] == 0
    reference.check_end(path, "")


def test_the_home_folder_is_expanded(reference, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("~/runs/a") == tmp_path / "runs" / "a"
    assert files.local_path("~") == tmp_path
    assert files.local_path("a~/~b") == pathlib.Path("a~/~b")
    run = RunFolder.create("~/a", reference.config)
    assert run.path == tmp_path / "a" and RunFolder.open("~/a") == run


@pytest.mark.parametrize(
    "path",
    [
        "gs://bucket/run",
        "s3://bucket",
        "file:///tmp/run",
        pathlib.Path("gs://bucket/run"),
        "~nobody-9/a",
        "",
        "a\0b",
    ],
)
def test_paths_that_are_not_local_are_refused(path, tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    for use in (files.local_path, RunFolder.open, lambda path: RunFolder.create(path, reference.config)):
        with pytest.raises(ValueError, match="path must"):
            use(path)
    if path and "\0" not in str(path):
        for words in (
            ["evaluate", str(path)],
            ["evaluate", "run", "--plot", str(path)],
            [*fuzz_runs.TRAIN, "--run-dir", str(path)],
            [*fuzz_runs.TRAIN, "--init-from", str(path)],
        ):
            status, _, err = fuzz_runs.command(words)
            assert status == 2 and "path must" in err
    assert list(tmp_path.iterdir()) == []


# -- arrays -------------------------------------------------------------------------------------------


def test_empty_arrays_can_be_saved(run):
    saved = {"a": jnp.zeros((0, 3)), "b": jnp.zeros(0, jnp.int8), "c": np.zeros((2, 0)), "d": jnp.ones(())}
    run.save_checkpoint(1, saved)
    restored = run.restore(1, saved).tree
    for name, array in saved.items():
        assert restored[name].shape == array.shape and restored[name].dtype == array.dtype
    run.save_checkpoint(2, {})
    assert run.restore(2, {}).tree == {}


# -- several at once ----------------------------------------------------------------------------------

HOLD = """
import sys
from jmeta.runs import RunFolder
with RunFolder.open(sys.argv[1]).lock:
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(path):
    """Holds the lock of a run."""
    command = [sys.executable, "-c", HOLD, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment) as process:
        assert process.stdout.readline() == b"locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_only_one_process_writes_a_run(trained, monkeypatch):
    with another_process(trained.path) as process:
        assert "is in use: another process trains in it" in refused(trained.path, resume)
        assert evaluate(trained.path)[0] == 0  # reading needs no lock
        with monkeypatch.context() as patch:
            patch.setattr("jax.process_index", lambda: 1)
            with trained.lock:  # of one distributed run only the first process writes
                pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert resume(trained.path)[0] == 0


def test_the_lock_may_be_entered_again_by_who_holds_it(trained):
    other = RunFolder.open(trained.path)
    with trained.lock:
        with trained.lock:
            pass
        with pytest.raises(files.RunInUseError), other.lock:
            pass
    with other.lock:
        pass


def test_a_run_is_evaluated_while_it_is_trained(run, monkeypatch):
    """Training replaces the checkpoints at the worst moment: when one was chosen, before it is read."""
    run.save_checkpoint(1, {"a": jnp.full(3, 1.0)})
    run.mark_best(1, 5.0)
    for iteration in (2, 3, 4):
        run.save_checkpoint(iteration, {"a": jnp.full(3, float(iteration))})
    read, moments = checkpoints.restore, iter([range(5, 9), range(9, 13), range(13, 17)])

    def restore(*arguments):
        for iteration in next(moments, ()):
            run.save_checkpoint(iteration, {"a": jnp.full(3, float(iteration))})
        return read(*arguments)

    monkeypatch.setattr(checkpoints, "restore", restore)
    iteration, tree, notes = run.restore("last", LIKE)
    assert (iteration, notes) == (16, ()) and (tree["a"] == 16).all()


def test_a_checkpoint_may_be_removed_before_it_is_read(run, monkeypatch):
    """The best one because a better one was found, one that is asked for because there are newer ones."""

    def save(*iterations):
        for iteration in iterations:
            run.save_checkpoint(iteration, {"a": jnp.full(3, float(iteration))})

    save(1)
    run.mark_best(1, 1.0)
    save(2, 3, 4, 5)
    read, moments = checkpoints.restore, iter([(6, 2.0), (7, 3.0)])

    def restore(*arguments):
        if moment := next(moments, None):
            save(moment[0])
            run.mark_best(*moment)
            save(*range(10 * moment[0], 10 * moment[0] + 4))
        return read(*arguments)

    monkeypatch.setattr(checkpoints, "restore", restore)
    assert run.restore("best", LIKE).iteration == 7
    monkeypatch.setattr(checkpoints, "restore", lambda *arguments: save(80) or read(*arguments))
    with pytest.raises(ValueError, match="has no checkpoint 71: it has checkpoints 7, 72, 73, 80"):
        run.restore(71, LIKE)


# -- the disk -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(size):
    """No file of this process grows beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 10, 4096])
def test_a_full_disk_leaves_a_run_that_goes_on(run, size):
    like = {"a": jnp.zeros(4096)}
    run.append_metrics([{"iteration": 1}])
    run.save_checkpoint(1, like)
    before = fuzz_runs.snapshot(run.path)
    with largest_file(size):
        for write in (
            lambda: run.append_metrics([{"iteration": i, "x": "y" * 1000} for i in range(2, 20)]),
            lambda: run.save_checkpoint(2, like),
            lambda: files.write_json(run.path / "evaluation.json", "x" * 9999),
        ):
            with pytest.raises(OSError, match="File too large"):
                write()
    assert set(fuzz_runs.snapshot(run.path)) == set(before)  # nothing half written
    with largest_file(0):  # what is on the disk needs no more of it to go on
        assert run.resume(like, checkpoint_every=50).iteration == 1
    assert len(run.read_metrics()) == 1


def test_a_file_in_the_way_costs_no_evaluation(trained):
    for name in ("evaluation.json.tmp", "config.json.tmp"):
        (trained.path / name).mkdir()
    status, out, _ = evaluate(trained.path)
    assert status == 0 and "iteration 8" in out and (trained.path / "evaluation.json").is_file()


def test_what_is_written_is_on_the_disk_before_it_counts(run, monkeypatch):
    """Files first, then the folder that names them, then the next step."""
    steps = []

    def fsync(descriptor, sync=os.fsync):
        steps.append(pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def replace(source, target, move=os.replace):
        steps.append(f"-> {pathlib.Path(target).name}")
        move(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    run.append_metrics([{"iteration": 1}])
    run.save_checkpoint(1, LIKE)
    steps = [step.split(".json.")[0] for step in steps]  # the rest of a temporary name is random
    steps = ["tmp" if step.startswith("tmp-") else step for step in steps]
    assert steps == [
        *("metrics.jsonl", "new"),  # records, then the new folder of checkpoints
        *("arrays.bin", "manifest", "-> manifest.json", "tmp"),
        *("-> 1", "checkpoints"),
    ]
