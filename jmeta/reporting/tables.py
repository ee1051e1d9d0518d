"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text


def adaptation_table(
    steps: Sequence[int],
    return_mean: Sequence[float],
    return_low: Sequence[float],
    return_high: Sequence[float],
    optimal_mean: float | None = None,
) -> Table:
    """Return after each number of adaptation steps, with its interval, and the regret; n/a for NaN.

    Args:
      steps: [S] adaptation steps done.
      return_mean: [S] mean undiscounted return over tasks.
      return_low: [S] lower end of its 95 % interval.
      return_high: [S] upper end.
      optimal_mean: mean optimal return, where it is known.
    """
    table = Table()
    known = optimal_mean is not None
    for heading in ("adaptation steps", "mean return", "95 % interval", *(["regret"] if known else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for step, mean, low, high in zip(steps, return_mean, return_low, return_high, strict=True):
        interval = Text("n/a" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]")
        numbers = [mean] if optimal_mean is None else [mean, optimal_mean - mean]
        shown = ["n/a" if math.isnan(number) else f"{number:.2f}" for number in numbers]
        table.add_row(str(step), shown[0], interval, *shown[1:])
    return table


def components_table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """Names and one-line descriptions.

    Args:
      title: what they are.
      rows: (name, description) each.
    """
    table = Table(title=Text(title), title_justify="left", box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, description in rows:
        table.add_row(Text(name), Text(description))
    return table
