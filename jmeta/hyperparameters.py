"""Lets a factory take the arguments of another function without declaring them a second time."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def hyperparameters_of(
    source: Callable[..., Any], *, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Gives a factory the keyword-only arguments of `source`, with their defaults, beside its own.

    The signature that users see, and from which flags and a run's configuration are derived, has first the
    factory's own arguments: those that `source` does not have, and those which it gives another default. The
    factory is called with every argument filled in.

    Args:
      source: the function that declares the hyperparameters.
      without: names that the decorated factory does not have.
    """
    shared = inspect.signature(source).parameters

    def decorate(factory: Callable[..., T]) -> Callable[..., T]:
        written = inspect.signature(factory)
        named = written.parameters.values()
        positional = [p for p in named if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        # Without a default and shared: the factory only picks it out of the arguments that it passes on.
        own = [
            p
            for p in named
            if p.kind is inspect.Parameter.KEYWORD_ONLY and (p.name not in shared or p.default is not p.empty)
        ]
        taken = {*without, *(p.name for p in (*positional, *own))}
        inherited = [p for name, p in shared.items() if name not in taken]
        signature = written.replace(parameters=[*positional, *own, *inherited])
        hints = typing.get_type_hints(source) | typing.get_type_hints(factory)
        before, described, after = _sections(factory)
        skip = {*without, *map(_name, described)}
        described += [entry for entry in _sections(source)[1] if _name(entry) not in skip]

        @functools.wraps(factory)
        def complete(*args: Any, **kwargs: Any) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return factory(*bound.args, **bound.kwargs)

        del complete.__wrapped__  # its signature would be found before this one
        complete.__signature__ = signature  # type: ignore[attr-defined]
        complete.__annotations__ = {name: hints[name] for name in signature.parameters}
        arguments = "Args:\n" + "\n".join(described)
        complete.__doc__ = "\n\n".join(part for part in (before, arguments, after) if part) + "\n"
        return complete

    return decorate


def _sections(function: Callable[..., Any]) -> tuple[str, list[str], str]:
    """A docstring: the text before Args, the entries of Args, the text after it."""
    before, _, rest = inspect.cleandoc(function.__doc__ or "").partition("Args:\n")
    entries, _, after = rest.partition("\n\n")
    return before.strip(), [entry for entry in re.split(r"\n(?=  \w+:)", entries) if entry.strip()], after


def _name(entry: str) -> str:
    return entry.strip().partition(":")[0]
