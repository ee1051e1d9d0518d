"""`jmeta list`."""

from __future__ import annotations

import dataclasses
import typing

from jmeta.cli.flags import first_line, parse

if typing.TYPE_CHECKING:
    from jmeta.runs.config import Kind

_TITLES: dict[Kind, str] = {
    "algorithm": "Algorithms",
    "family": "Task families",
    "policy": "Policies",
    "optimizer": "Optimizers",
}


def main(argv: list[str]) -> None:
    """Prints the names in the registries with the first lines of their docstrings."""
    from rich.console import Console

    from jmeta.reporting.tables import components_table
    from jmeta.runs.config import registry

    parse(dataclasses.make_dataclass("List", []), argv, "jmeta list", "Lists what there is.")
    console = Console()
    for kind, title in _TITLES.items():
        rows = [(name, first_line(make)) for name, make in registry(kind).items()]
        console.print(components_table(title, rows))
        console.print()
