"""The command line: parse, call, print."""

from jmeta.cli.main import main

__all__ = ["main"]
