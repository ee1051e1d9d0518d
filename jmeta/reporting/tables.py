"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text


def adaptation_table(
    steps: Sequence[int],
    return_mean: Sequence[float],
    return_low: Sequence[float],
    return_high: Sequence[float],
    optimal_mean: float | None = None,
    measures: Mapping[str, Sequence[float]] | None = None,
) -> Table:
    """Return after each number of adaptation steps, its interval, the regret and other measures; n/a for NaN.

    Args:
      steps: [S] adaptation steps done.
      return_mean: [S] mean undiscounted return over tasks.
      return_low: [S] lower end of its 95 % interval over the tasks.
      return_high: [S] upper end.
      optimal_mean: mean optimal return, where it is known.
      measures: name -> [S] mean over tasks; one column each.
    """
    columns = {"adaptation steps": [str(step) for step in steps]}
    columns["mean return"] = [_number(mean) for mean in return_mean]
    columns["95 % interval over tasks"] = [
        "n/a" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"
        for low, high in zip(return_low, return_high, strict=True)
    ]
    if optimal_mean is not None:
        columns["regret"] = [_number(optimal_mean - mean) for mean in return_mean]
    for name, means in (measures or {}).items():
        columns[name] = [_number(mean) for mean in means]
    table = Table()
    for heading in columns:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"


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
