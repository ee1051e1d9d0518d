"""Checks of arguments that many factories share; errors name the argument, the value and what is allowed.

A count fixes a shape or the length of a loop, so it must be known before compilation. A real number may be
traced by JAX, because then it can be mapped by `jax.vmap` or passed to a compiled function: a traced number
has no value yet, and passes every range check. NaN and infinity never pass.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Mapping
from typing import Any

_LARGEST_COUNT = 2**31 - 1  # JAX counts in int32
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # positive numbers that float32 can hold


def at_least(minimum: int, **counts: Any) -> None:
    """Raises ValueError for anything but an integer from `minimum` to 2**31 - 1; a bool is no integer."""
    for name, value in counts.items():
        if _is_traced(value):
            raise ValueError(
                f"{name} must be known before compilation, got a traced value: where the function is compiled"
                f" by jax.jit, mark {name} as static (static_argnames)"
            )
        try:
            count = None if _is_bool(value) else operator.index(value)
        except TypeError:
            count = None
        if count is None:
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if count < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")
        if count > _LARGEST_COUNT:
            raise ValueError(f"{name} must be at most {_LARGEST_COUNT}, got {value}")


def sizes(**values: Any) -> tuple[int, ...]:
    """The one value as a tuple; ValueError for anything but a row of integers of at least 1."""
    ((name, value),) = values.items()
    try:
        row = None if isinstance(value, str) else tuple(value)
    except TypeError:
        row = None
    if row is None:
        raise ValueError(f"{name} must be a row of integers, such as (64, 64), got {value!r}")
    for size in row:
        at_least(1, **{name: size})
    return row


def finite(**numbers: Any) -> None:
    """Raises ValueError for anything but a finite number."""
    in_interval("(-inf, inf)", "be finite", **numbers)


def positive(**numbers: Any) -> None:
    """Raises ValueError for anything but a finite number above 0."""
    in_interval("(0, inf)", "be positive and finite", **numbers)


def not_negative(**numbers: Any) -> None:
    """Raises ValueError for anything but a finite number of at least 0."""
    in_interval("[0, inf)", "be finite and not negative", **numbers)


def in_unit_interval(**numbers: Any) -> None:
    """Raises ValueError for anything but a number in [0, 1]."""
    in_interval("[0, 1]", **numbers)


def in_interval(interval: str, requirement: str | None = None, /, **numbers: Any) -> None:
    """Raises ValueError for a number outside an interval, and for anything that is not a number.

    Args:
      interval: as in mathematics, for instance "(0, 1]".
      requirement: what a number must do, for the message; default "be in" the interval.
      **numbers: the arguments by their names: real numbers or scalar arrays, traced or not.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for name, value in numbers.items():
        number = _real(name, value)
        if number is None:
            continue
        above = number > low or (interval[0] == "[" and number == low)
        below = number < high or (interval[-1] == "]" and number == high)
        if not (above and below):
            raise ValueError(f"{name} must {requirement or 'be in ' + interval}, got {value}")


def one_of(choices: Iterable[str], **names: Any) -> None:
    """Raises ValueError for a name that is not among the choices."""
    choices = list(choices)
    for name, value in names.items():
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def without_effect(because: str, defaults: Mapping[str, Any], **values: Any) -> None:
    """Raises ValueError for a value that is not the default although it would have no effect.

    A default cannot be told apart from the same value given by the user, and no one is misled by it.

    Args:
      because: why, as a clause for the message.
      defaults: the default of every argument.
      **values: the arguments by their names.
    """
    for name, value in values.items():
        default = defaults[name]
        if value is not default and (_is_traced(value) or value != default):
            raise ValueError(f"{name} must be its default, {default!r}, because {because}, got {value!r}")


def boolean(**values: Any) -> None:
    """Raises ValueError for anything but True or False."""
    for name, value in values.items():
        if not _is_bool(value) or _is_traced(value):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def _real(name: str, value: Any) -> float | None:
    """The number as float32 holds it; None where it is traced. ValueError if it is no real number."""
    if not isinstance(value, int | float) and not _is_scalar_array(value) or _is_bool(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if _is_traced(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    if abs(number) > _LARGEST:
        return math.copysign(math.inf, number)
    return 0.0 if abs(number) < _SMALLEST else number


def _is_scalar_array(value: Any) -> bool:
    kind = str(getattr(value, "dtype", ""))
    return getattr(value, "shape", None) == () and kind.startswith(("float", "bfloat", "int", "uint"))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"


def _is_traced(value: Any) -> bool:
    jax = sys.modules.get("jax")  # without JAX nothing is traced, and the command line starts without it
    return jax is not None and isinstance(value, jax.core.Tracer)
