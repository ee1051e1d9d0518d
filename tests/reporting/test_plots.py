import sys

import pytest

from jmeta.reporting import plots


def test_a_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.svg"
    nan = float("nan")
    plots.check(path)
    plots.adaptation_curve(path, "rl2 on bandit", [0, 1], [1.0, 2.0], [0.5, nan], [1.5, nan], 2.5)
    assert "rl2 on bandit" in path.read_text() or path.stat().st_size > 1000


def test_what_cannot_be_drawn_is_said_before(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        patch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ValueError, match="plots need matplotlib"):
            plots.check(tmp_path / "curve.png")
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="a plot must be a .png, .pdf or .svg"):
        plots.check(tmp_path / "curve.gif")
    with pytest.raises(ValueError, match="no such folder"):
        plots.check(tmp_path / "nowhere" / "curve.png")
