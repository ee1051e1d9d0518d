"""The README's examples run as written."""

import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

from jmeta import cli

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_eight_lines_and_the_view_of_their_tasks_run_as_written():
    code, view, _ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 8
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert all(np.isfinite(value) for value in names["metrics"].values())
    assert names["info"].returns.shape == (1,)
    before, after = (
        jax.flatten_util.ravel_pytree(x)[0] for x in (names["state"].params, names["adapted"].params)
    )
    assert np.isfinite(after).all()
    assert np.abs(after - before).max() > 1e-4
    exec(compile(view, str(README), "exec"), names)
    assert names["observations"] in names["env"].observation_space


BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^jmeta ([^#\n]+)", "\n".join(BLOCKS), re.MULTILINE)


def test_every_command_is_shown():
    assert {command.split()[0] for command in COMMANDS} == {"list", "train", "evaluate"}
    assert any("--resume" in command for command in COMMANDS)
    assert any("--plot" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=str.strip)
def test_the_commands_are_understood(command, tmp_path, monkeypatch, capsys):
    """All their words, and no further: a file is where a new run would be, and there are no other runs."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    if words[0] == "train" and "--resume" not in words:
        pathlib.Path("taken").touch()
        words += ["--run-dir", "taken"]
    status = cli.main(words)
    error = capsys.readouterr().err
    if words[0] == "list":
        assert (status, error) == (0, "")
    else:
        assert status == 2
        assert re.fullmatch(
            r"jmeta: error: ('taken' already exists.*|there is no run folder 'runs/.*')\n", error
        )
