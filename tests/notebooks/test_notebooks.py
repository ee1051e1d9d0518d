"""Every notebook's code runs, as a script and at small size: Jupyter is not needed."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
DRAWING = """
import runpy, sys
import matplotlib.pyplot as plt
plt.show = lambda: (plt.gcf().canvas.draw(), plt.close())  # without a screen it would draw nothing
runpy.run_path(sys.argv[1])
"""


def test_the_readme_lists_all_of_them():
    listed = re.findall(r"\]\(notebooks/(\w+\.py)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in NOTEBOOKS]
    assert len(listed) == 6


@pytest.mark.slow
@pytest.mark.unmeasured
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    settings = {"JMETA_NOTEBOOK_SIZE": "small", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", DRAWING, path],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
