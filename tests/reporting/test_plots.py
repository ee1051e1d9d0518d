import sys
import xml.etree.ElementTree

import numpy as np
import pytest

from jmeta.reporting import plots

NAN = float("nan")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws a curve: the words in the picture, and the figure itself."""
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: saved.append(self) or save(self, *args, **kw)
    )

    def draw(*curve):
        path = tmp_path / "curve.svg"
        plots.check(path)
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            plots.adaptation_curve(path, "rl2 on bandit", *curve)
        texts = xml.etree.ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
        return ["".join(text.itertext()) for text in texts], saved.pop()

    return draw


def test_a_curve_says_what_it_shows(draw):
    words, _ = draw([0, 1], [1.0, 2.0], [0.5, 1.0], [1.5, 3.0], 2.5)
    assert {"rl2 on bandit", "adaptation steps", "return", "mean, 95 % interval", "optimal"} <= set(words)


def test_without_an_optimum_the_interval_is_named_all_the_same(draw):
    words, _ = draw([0, 1], [1.0, 2.0], [0.5, 1.0], [1.5, 3.0])
    assert "mean, 95 % interval" in words and "optimal" not in words


def test_an_interval_is_drawn_where_it_is_known(draw):
    """That of one task is not: neither a bar nor the caps of one, which would look like certainty."""
    _, figure = draw([0, 1, 2], [1.0, 2.0, 3.0], [0.5, NAN, 2.0], [1.5, NAN, 3.5], None)
    (axes,) = figure.axes
    (container,) = axes.containers
    mean, caps, (bars,) = container.lines
    np.testing.assert_array_equal(mean.get_ydata(), [1, 2, 3])
    known = [[[x, y] for x, y in cap.get_xydata().astype(float) if np.isfinite(y)] for cap in caps]
    assert known == [[[0, 0.5], [2, 2.0]], [[0, 1.5], [2, 3.5]]]
    assert [bar.tolist() for bar in bars.get_segments() if len(bar)] == [
        [[0, 0.5], [0, 1.5]],
        [[2, 2.0], [2, 3.5]],
    ]


def test_what_cannot_be_drawn_is_said_before(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        patch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ValueError, match=r"plots need matplotlib: pip install '\.\[plots\]'"):
            plots.check(tmp_path / "curve.png")
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="a plot must be a .png, .pdf or .svg"):
        plots.check(tmp_path / "curve.gif")
    with pytest.raises(ValueError, match="no such folder"):
        plots.check(tmp_path / "nowhere" / "curve.png")
