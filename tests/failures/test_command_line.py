"""What used to end the command line in a traceback, or in silence."""

import errno
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from jmeta import cli, runtime
from jmeta.cli import errors, output, run
from jmeta.reporting.progress import ProgressReporter
from jmeta.runs import RunFolder, files
from tests import small

REPOSITORY = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
TINY = [
    *("--iterations", "4", "--tasks", "4", "--log-every", "2", "--checkpoint-every", "2"),
    *("--num-episodes", "2", "--outer-epochs", "1", "--family.horizon", "5", "--policy.hidden", "4"),
]


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with small.compiled_once():
        yield


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(captured):
    """The only line on standard error, without a word on standard output."""
    assert captured.out == "" and captured.err.count("\n") == 1, captured
    return captured.err.removesuffix("\n")


# -- output that is not UTF-8 -------------------------------------------------------------------------


class Stream(io.TextIOWrapper):
    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


class Full(io.StringIO):
    """A stream on a device that is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    ("words", "part"), [("list", "meta-sgd"), ("train meta-sgd point-goal --help", "--inner-learning-rate")]
)
def test_whatever_the_encoding_commands_print(words, part, encoding, monkeypatch):
    stream = Stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(words.split()) == 0
    assert part in stream.text()


def test_progress_and_tables_print_in_ascii(monkeypatch):
    out, err = Stream("ascii"), Stream("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["train", "maml", "point-goal", *TINY, "--run-dir", "wä"]) == 0
    assert " -> " in err.text() and "jmeta evaluate 'wa'" in err.text()
    assert cli.main(["evaluate", "wä", "--tasks", "4", "--episodes", "2"]) == 0
    assert "| adaptation steps |" in out.text()


def test_characters_are_replaced_by_the_nearest_there_are(monkeypatch):
    stream = Stream("ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    output.print_anything()
    print("RL² → é ─│ \udcff", file=stream)
    assert stream.text() == "RL2 -> e -| ?\n"


def test_a_reader_that_goes_away_is_no_error():
    for words in ("--help", "list"):
        command = [sys.executable, "-m", "jmeta", words]
        with subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("words", ["--version", "list"])
def test_a_full_output_is_one_line(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "jmeta", words]
        done = subprocess.run(command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == f"jmeta: error: {os.strerror(errno.ENOSPC)}\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_swallows_everything(stream, monkeypatch, capsys):
    monkeypatch.setattr(sys, stream, None)
    assert cli.main(["--version"]) == 0
    assert cli.main(["nonsense"]) == 2
    getattr(sys, stream).close()
    captured = capsys.readouterr()
    assert bool(captured.out) == (stream == "stderr") and bool(captured.err) == (stream == "stdout")


def test_an_error_that_cannot_be_told_keeps_its_status(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    assert cli.main(["nonsense"]) == 2


# -- what the machine lacks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (RuntimeError("Unable to initialize backend 'cuda'"), "Unable to init"),
        (AssertionError(), "no backend of"),
    ],
)
@pytest.mark.parametrize("words", ["train maml point-goal", "train --resume --run-dir run", "evaluate run"])
def test_a_backend_that_cannot_start_is_one_line(words, error, part, monkeypatch, capsys):
    def fail(*arguments):
        raise error

    assert cli.main(["train", "maml", "point-goal", *TINY, "--iterations", "0", "--run-dir", "run"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(jax, "devices", fail)
    assert cli.main(words.split()) == 2
    line = one_line(capsys.readouterr())
    assert line.startswith("jmeta: error: JAX cannot start its devices: ") and part in line


@pytest.mark.parametrize("root", ["", "relative/cache"])
def test_without_a_home_folder_there_is_no_compilation_cache(root, empty_folder, monkeypatch, caplog):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setattr(pathlib.Path, "home", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", root)
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        runtime.configure()
        assert jax.config.values["jax_compilation_cache_dir"] is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert caplog.messages == ["no compilation cache: Could not determine home directory."]
    assert list(empty_folder.iterdir()) == []


def test_the_cache_folder_may_be_in_the_home_folder(empty_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(empty_folder))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cc")
    assert runtime.cache_folder() == empty_folder / "cc" / "jmeta" / "xla"


def test_without_a_gpu_cuda_is_refused_in_one_line(empty_folder):
    command = [sys.executable, "-m", "jmeta", "train", "maml", "point-goal"]
    environment = {**ENVIRONMENT, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"),
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching: Out of memory allocating 1 byte"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line(error, four, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("jmeta.training.train_from", fail)
    monkeypatch.setattr("jmeta.evaluation.evaluate", fail)
    for words, advice in (
        (["train", "maml", "point-goal", *TINY, "--run-dir", "run"], "--tasks or --tasks-per-block"),
        (["evaluate", "four"], "--tasks or --episodes"),
    ):
        assert cli.main(words) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == f"jmeta: error: there is too little memory: lower {advice}"


# -- an evaluation that is done ---------------------------------------------------------------------------

EVALUATE = ["evaluate", "four", "--tasks", "4", "--episodes", "2", "--steps", "1"]


def test_an_evaluation_is_written_although_its_table_cannot_be(four, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(EVALUATE) == 2
    assert os.strerror(errno.ENOSPC) in one_line(capsys.readouterr())
    assert (four / "evaluation.json").is_file() and (four / "evaluation.npz").is_file()


def test_a_folder_in_the_way_of_one_file_is_named_and_the_other_is_written(four, capsys):
    (four / "evaluation.npz").mkdir()
    assert cli.main(EVALUATE) == 2
    line = f"jmeta: error: 'four/evaluation.npz': {os.strerror(errno.EISDIR)}\n"
    assert capsys.readouterr().err == line
    assert (four / "evaluation.json").is_file()


# -- names of folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s[ab]x", "a[/b]", "two  words", "a\t b", ":smile:", "it's"])
def test_hints_name_the_folder_as_the_shell_reads_it(name, capsys, empty_folder):
    path = empty_folder / name
    assert cli.main(["train", "maml", "point-goal", *TINY, "--iterations", "0", "--run-dir", str(path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"run folder: {path}"
    echoed = subprocess.run(
        ["sh", "-c", lines[-1].replace("evaluate it with: jmeta evaluate", "printf %s")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert echoed == str(path)


def test_a_folder_may_look_like_a_flag(empty_folder, capsys):
    assert cli.main(["train", "maml", "point-goal", *TINY, "--iterations", "0", "--run-dir=-x"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "evaluate it with: jmeta evaluate ./-x"


@pytest.mark.parametrize("words", ["  two  words\tx ", "one\r\n  two\n\nthree"])
def test_an_error_keeps_its_spaces_and_is_one_line(words, monkeypatch, capsys):
    def fail(argv):
        raise errors.UserError(f"{words!r} is not {words}.")

    monkeypatch.setattr("jmeta.cli.listing.main", fail)
    assert cli.main(["list"]) == 2
    shown = words.replace("\r\n  ", " ").replace("\n\n", " ")
    assert one_line(capsys.readouterr()) == f"jmeta: error: {words!r} is not {shown}."


@pytest.mark.parametrize("finished", [True, False])
def test_of_two_trainings_that_start_at_once_one_takes_the_next_number(
    finished, empty_folder, monkeypatch, capsys
):
    original, other = run._create, empty_folder / "runs" / "maml-point-goal-0"
    lock = files.Lock(other / "lock")

    def create(*arguments):
        other.mkdir(parents=True)
        if finished:
            (other / "config.json").touch()
        else:
            lock.__enter__()
        return original(*arguments)

    monkeypatch.setattr(run, "_create", create)
    assert train("--iterations", "0") == 0
    assert "run folder: runs/maml-point-goal-0-2" in capsys.readouterr().err
    assert {entry.name for entry in other.iterdir()} == {"config.json" if finished else "lock"}
    if not finished:
        lock.__exit__()


# -- training on, and from another run ------------------------------------------------------------------


def train(*words):
    return cli.main(["train", "maml", "point-goal", *TINY, *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of 4 iterations and one of 6, with evaluations; do not change them."""
    paths = [tmp_path_factory.mktemp("trained") / name for name in ("four", "six")]
    for path, iterations in zip(paths, ("4", "6"), strict=True):
        flags = ("--iterations", iterations, "--evaluate-every", "2", "--run-dir", str(path))
        assert train(*flags) == 0
    return paths


@pytest.fixture
def four(trained, empty_folder):
    return shutil.copytree(trained[0], empty_folder / "four")


def content(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def records(path):
    return [(path / name).read_bytes() for name in ("metrics.jsonl", "evaluations.jsonl", "best.json")]


def test_a_finished_run_is_trained_on(trained, four, capsys):
    assert cli.main(["train", "--resume", "--run-dir", "four", "--iterations", "6"]) == 0
    assert records(four) == records(trained[1])
    assert RunFolder.open(four).config == RunFolder.open(trained[1]).config
    capsys.readouterr()
    assert cli.main(["train", "--resume", "--run-dir", "four"]) == 0
    assert "all 6 iterations are done; --iterations trains on" in capsys.readouterr().err


def test_fewer_iterations_than_are_done_are_refused(four, capsys):
    before = content(four)
    assert cli.main(["train", "--resume", "--run-dir", "four", "--iterations", "3"]) == 2
    assert "--iterations must be at least 4, which the run has done, got 3" in one_line(capsys.readouterr())
    assert content(four) == before


def test_a_run_that_cannot_go_on_keeps_its_number_of_iterations(four, capsys):
    shutil.rmtree(four / "checkpoints")
    before = content(four)
    assert cli.main(["train", "--resume", "--run-dir", "four", "--iterations", "6"]) == 2
    assert content(four) == before


def parameters(path, iteration):
    names = json.loads((path / "checkpoints" / str(iteration) / "manifest.json").read_text())["arrays"]
    return {one["name"]: one["sha256"] for one in names if ".params" in one["name"]}


@pytest.mark.parametrize("which", ["", "@last", "@best", "@2"])
def test_a_run_starts_from_the_parameters_of_another(which, trained, empty_folder, capsys):
    best = RunFolder.open(trained[0]).best_checkpoint().iteration
    iteration = {"": 4, "@last": 4, "@best": best, "@2": 2}[which]
    flags = ("--init-from", f"{trained[0]}{which}", "--iterations", "0", "--seed", "5", "--run-dir", "new")
    assert train(*flags) == 0
    found = parameters(empty_folder / "new", 0)
    assert found and found == parameters(trained[0], iteration)


def test_a_folder_may_have_an_at_in_its_name(trained, empty_folder):
    shutil.copytree(trained[0], empty_folder / "four@best")
    for text, iteration in (("four@best", 4), ("four@best@2", 2)):
        assert train("--init-from", text, "--iterations", "0", "--run-dir", f"new{iteration}") == 0
        assert parameters(empty_folder / f"new{iteration}", 0) == parameters(trained[0], iteration)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--init-from four --policy.hidden 5", "kernel must be float32[2, 5], got float32[2, 4]"),
        ("--init-from four@3", "has no checkpoint 3: it has checkpoints 2, 4"),
        ("--init-from four@newest", "--init-from must be RUN, RUN@last, RUN@best or RUN@ITERATION"),
        ("--init-from five", "there is no run folder 'five'"),
        ("--evaluate-every 3", "evaluate_every must be a multiple of log_every=2, got 3"),
    ],
)
def test_what_a_run_cannot_start_from_is_one_line(words, message, four, empty_folder, capsys):
    assert train(*words.split(), "--run-dir", "new") == 2
    assert message in one_line(capsys.readouterr())
    assert not (empty_folder / "new").exists()


# -- values that only a trace or the training finds -----------------------------------------------------


def test_what_an_update_refuses_is_known_before_there_is_a_folder(empty_folder, capsys):
    sizes = ("--tasks", "2", "--minibatches", "5", "--policy.size", "4")
    assert cli.main(["train", "rl2", "bandit", *sizes, "--run-dir", "run"]) == 2
    assert "tasks must be at least 5" in one_line(capsys.readouterr())
    assert list(empty_folder.iterdir()) == []


def test_a_file_that_is_damaged_while_training_is_one_line(trained, empty_folder, monkeypatch, capsys):
    original = RunFolder.append_metrics

    def damage(self, records):
        original(self, records)
        (self.path / "best.json").write_text("nonsense")

    monkeypatch.setattr(RunFolder, "append_metrics", damage)
    assert train("--run-dir", "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("jmeta: error: best.json is damaged") and line.endswith("--resume --run-dir run")


@pytest.mark.parametrize("flag", ["--tasks", "--episodes", "--steps"])
def test_a_count_beyond_those_of_jax_is_one_line(flag, four, capsys):
    assert cli.main(["evaluate", "four", flag, "99999999999"]) == 2
    assert f"{flag} must be at most 2147483647, got 99999999999" in one_line(capsys.readouterr())


# -- signals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "status", "word"),
    [
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
def test_a_signal_saves_what_was_done(signum, status, word, trained, empty_folder, monkeypatch, capsys):
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs may ignore Ctrl-C
    original = ProgressReporter.__call__

    def send(self, progress):
        original(self, progress)
        if progress.iteration == 1:
            os.kill(os.getpid(), signum)
            if signum == signal.SIGHUP:  # from the shell, and from the terminal
                os.kill(os.getpid(), signum)

    flags = ("--iterations", "6", "--checkpoint-every", "6", "--run-dir", "six")
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReporter, "__call__", send)
        assert train(*flags) == status
    signal.signal(signal.SIGINT, previous)
    lines = capsys.readouterr().err.splitlines()
    assert "stopping after the iterations that are running; a second signal ends at once" in lines
    assert lines[-1] == f"jmeta: {word}; go on with: jmeta train --resume --run-dir six"
    run = RunFolder.open("six")
    assert run.latest_checkpoint() == len(run.read_metrics()) == 1
    assert cli.main(["train", "--resume", "--run-dir", "six"]) == 0
    assert (run.path / "metrics.jsonl").read_bytes() == (trained[1] / "metrics.jsonl").read_bytes()


def test_a_second_signal_ends_at_once():
    """In the middle of a call that does not come back to Python, as a compilation or a chunk does not."""
    script = """
import hashlib
from jmeta.cli.signals import StopRequests
say = lambda word: lambda: print(word, flush=True)
with StopRequests(say("asked"), say("ended")):
    say("ready")()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "ended\n"
    assert process.returncode == 143


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.usefixtures("capsys")
def test_a_terminal_that_is_gone_keeps_nothing_from_being_saved(monkeypatch):
    """Whatever is printed after the hang-up fails until the output is pointed at nothing."""
    original = ProgressReporter.__call__

    def hang_up(self, progress):
        original(self, progress)
        if progress.iteration == 1:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, terminal.fileno())
            os.close(full)
            os.kill(os.getpid(), signal.SIGHUP)

    with open("terminal", "w", buffering=1) as terminal, monkeypatch.context() as patch:
        patch.setattr(ProgressReporter, "__call__", hang_up)
        patch.setattr(sys, "stderr", terminal)
        assert train("--run-dir", "run", "--checkpoint-every", "4") == 129
    assert RunFolder.open("run").latest_checkpoint() == 1


# -- disks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"), [("append_metrics", errno.ENOSPC), ("save_checkpoint", errno.EACCES)]
)
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    name, number, trained, empty_folder, monkeypatch, capsys
):
    original, calls = getattr(RunFolder, name), iter(range(1, 100))

    def fail(self, *arguments):
        if next(calls) == 2:
            raise OSError(number, os.strerror(number), str(self.path / "x"))
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, name, fail)
        assert train("--run-dir", "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    hint = "when that is mended, go on with: jmeta train --resume --run-dir run"
    assert line == f"jmeta: error: 'run/x': {os.strerror(number)}; {hint}"
    assert cli.main(["train", "--resume", "--run-dir", "run"]) == 0
    assert (empty_folder / "run" / "metrics.jsonl").read_bytes() == records(trained[0])[0]


@pytest.mark.parametrize("path", ["/proc/run", "/dev/null", "/dev/null/run", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(path, capsys):
    assert train("--run-dir", path) == 2
    assert path in one_line(capsys.readouterr())


def test_the_checkpoint_that_is_gone_back_to_is_named(trained, four, capsys):
    (four / "checkpoints" / "4" / "arrays.bin").write_bytes(b"")
    assert cli.main(["train", "--resume", "--run-dir", "four"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1 and lines[0].startswith("going on from iteration 2: checkpoint 4 is damaged")
    assert records(four) == records(trained[0])


# -- paths ----------------------------------------------------------------------------------------------


def test_the_home_folder_is_expanded(trained, empty_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(empty_folder / "home"))
    shutil.copytree(trained[0], empty_folder / "home" / "four")
    assert train("--init-from", "~/four@2", "--iterations", "0", "--run-dir", "~/new") == 0
    assert cli.main(["train", "--resume", "--run-dir", "~/new"]) == 0
    assert parameters(empty_folder / "home" / "new", 0) == parameters(trained[0], 2)
    assert not (empty_folder / "~").exists()


@pytest.mark.parametrize(
    "words",
    [
        "train maml point-goal --run-dir {}",
        "train maml point-goal --init-from {}",
        "train maml point-goal --init-from {}@best",
        "train --resume --run-dir {}",
        "evaluate {}",
        "evaluate run --plot {}.png",
    ],
)
@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "~nobody-of-that-name/run"])
def test_what_is_no_local_path_is_refused(words, path, empty_folder, capsys):
    assert cli.main(words.format(path).split()) == 2
    assert "path must " in one_line(capsys.readouterr())
    assert list(empty_folder.iterdir()) == []


# -- what was lost --------------------------------------------------------------------------------------


def test_a_run_whose_tasks_were_mostly_lost_says_so_in_its_last_line(monkeypatch, capsys):
    from jmeta.training import loop

    original = loop._records
    monkeypatch.setattr(
        loop, "_records", lambda *arguments: [one | {"tasks_lost": 3} for one in original(*arguments)]
    )
    assert train("--run-dir", "run") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "warning: 12 of 16 tasks were lost because something in them was not finite"
    assert "  tasks lost: 3 of 4  " in lines[2]
