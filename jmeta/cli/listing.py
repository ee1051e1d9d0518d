"""`jmeta list`."""

from __future__ import annotations

import dataclasses
import typing

from jmeta.cli.errors import user_errors
from jmeta.cli.flags import first_line, parse
from jmeta.cli.output import console

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
    parse(dataclasses.make_dataclass("List", []), argv, "jmeta list", "Lists what there is.")
    with user_errors():  # of the environment variables that JAX reads
        from jmeta.reporting.tables import components_table
        from jmeta.runs.config import registry

    out = console()
    for kind, title in _TITLES.items():
        rows = [(name, first_line(make)) for name, make in registry(kind).items()]
        out.print(components_table(title, rows))
        out.print()
