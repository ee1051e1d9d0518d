"""What used to end the command line in a traceback, or in silence."""

import io
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jmeta import cli
from jmeta.cli import output

REPOSITORY = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
TINY = [
    *("--iterations", "4", "--tasks", "4", "--log-every", "2", "--checkpoint-every", "2"),
    *("--num-episodes", "2", "--outer-epochs", "1", "--family.horizon", "5", "--policy.hidden", "4"),
]


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


def test_without_a_gpu_cuda_is_refused_in_one_line(empty_folder):
    command = [sys.executable, "-m", "jmeta", "train", "maml", "point-goal"]
    environment = {**ENVIRONMENT, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert list(empty_folder.iterdir()) == []


# -- names of folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s[ab]x", "a[/b]", "two  words", ":smile:", "it's"])
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
