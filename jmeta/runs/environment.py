"""What a run ran on: versions, devices, settings and the command."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

_PACKAGES = ("jmeta", "jax", "jaxlib", "brax", "optax", "numpy")


def describe() -> dict[str, Any]:
    """The environment as JSON values. Starts JAX's devices."""
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "git_revision": git_revision(pathlib.Path(__file__).parents[1]),
        "command": command(sys.argv),
    }


def git_revision(package: pathlib.Path) -> str | None:
    """The commit of a package's source, with `-dirty` if files were changed; None outside a checkout."""

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return result.stdout.strip()

    try:
        # An installed copy may lie inside the checkout of something else, which does not track it.
        git("ls-files", "--error-unmatch", "__init__.py")
        # `git describe --dirty` would lock and rewrite the index, and leave the lock behind if it is killed.
        changed = git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command(argv: Sequence[str]) -> list[str]:
    """A command line of `jmeta`, of which every absolute path is cut down to its last component."""

    def relative(word: str) -> str:
        flag, separator, value = word.rpartition("=")
        return flag + separator + (pathlib.PurePath(value).name if os.path.isabs(value) else value)

    return ["jmeta" if argv[0].endswith("__main__.py") else relative(argv[0]), *map(relative, argv[1:])]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # jmeta itself, run from its source
