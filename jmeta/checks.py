"""Checks of arguments that many factories share; each names the value and what is allowed."""

from __future__ import annotations


def at_least_one(**numbers: int) -> None:
    """Raises ValueError for a number that is not positive."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def in_unit_interval(**numbers: float) -> None:
    """Raises ValueError for a number outside [0, 1]."""
    for name, value in numbers.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
