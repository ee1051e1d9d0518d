"""The README's example runs as written."""

import pathlib
import re

import jax
import numpy as np
import pytest

from jmeta import cli

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_eight_lines_run_as_written():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
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


def test_the_commands_are_understood():
    commands = re.findall(
        r"^jmeta train ((?!--resume)[^#\n]+)", README.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert len(commands) >= 3
    for command in commands:
        algorithm, family, *flags = command.split()
        assert cli._configure_run(algorithm, family, flags)
