"""What every benchmark shares: flags, the machine's description, tables and files."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

Flags = TypeVar("Flags")


def parse(flags: type[Flags], doc: str | None) -> Flags:
    """Command-line flags from a dataclass; a module's docstring is its help."""
    return tyro.cli(flags, description=(doc or "").strip())


def fail(message: str) -> None:
    """Ends with one line for a mistake of the user's."""
    sys.exit(f"benchmarks: error: {message}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import jax

    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads as text and renders as Markdown."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])] + [
            c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def pyplot() -> Any:
    """Matplotlib's `pyplot`, drawing to files; ends with one line where it is not installed.

    Benchmarks that draw call it first, so that nothing is measured in vain.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        fail("plots need matplotlib: pip install '.[benchmarks]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure where the user asked for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_json(path: pathlib.Path | None, record: Any) -> None:
    """Writes a record (dataclasses allowed) where the user asked for it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, default=dataclasses.asdict)
        finite = json.loads(text, parse_constant=lambda _: None)  # JSON has no infinity
        path.write_text(json.dumps(finite) + "\n")
