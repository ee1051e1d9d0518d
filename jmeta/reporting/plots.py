"""Pictures of a run. Matplotlib is not among jmeta's own dependencies: it is imported when one is drawn."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def check(path: pathlib.Path) -> None:
    """Raises ValueError, in one line, if nothing could be drawn there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("plots need matplotlib: pip install '.[plots]'") from None
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"a plot must be a .png, .pdf or .svg, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"a plot must be a file, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"no such folder: {str(path.parent)!r}")


def adaptation_curve(
    path: pathlib.Path,
    title: str,
    steps: Sequence[int],
    return_mean: Sequence[float],
    return_low: Sequence[float],
    return_high: Sequence[float],
    optimal_mean: float | None = None,
) -> None:
    """Draws the return after each number of adaptation steps, and the optimum above it where it is known.

    Args:
      path: of the picture.
      title: above it.
      steps: [S] adaptation steps done; a method with a memory has played as many episodes.
      return_mean: [S] mean undiscounted return over tasks.
      return_low: [S] lower end of its 95 % interval; NaN where it is not known.
      return_high: [S] upper end.
      optimal_mean: mean optimal return; the distance to it is the regret.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    error = np.abs(np.array([return_low, return_high]) - np.array(return_mean))
    # An interval that is not known, of one task, is NaN, and is not drawn.
    axes.errorbar(steps, return_mean, error, marker="o", capsize=3, label="mean, 95 % interval")
    if optimal_mean is not None:
        axes.axhline(optimal_mean, color="0.4", linestyle="--", label="optimal")
    axes.legend(frameon=False)
    axes.set(title=title, xlabel="adaptation steps", ylabel="return", xticks=list(steps))
    axes.title.set_fontsize("medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
