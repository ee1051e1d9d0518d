"""Lets an algorithm take another's hyperparameters without declaring them a second time."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from jmeta.types import MetaAlgorithm

Factory = Callable[..., MetaAlgorithm]


def hyperparameters_of(source: Factory, *, without: tuple[str, ...] = ()) -> Callable[[Factory], Factory]:
    """Gives a factory the keyword-only arguments of `source`, with their defaults.

    The signature that users see, and from which flags and a run's configuration are derived, is that of
    `source`; the factory is called with every argument filled in.

    Args:
      source: the factory that declares the hyperparameters.
      without: names that the decorated factory does not have.
    """
    signature = inspect.signature(source)
    signature = signature.replace(parameters=[p for n, p in signature.parameters.items() if n not in without])
    arguments = _described(source.__doc__ or "", without)
    hints = {name: hint for name, hint in typing.get_type_hints(source).items() if name not in without}

    def decorate(factory: Factory) -> Factory:
        @functools.wraps(factory)
        def complete(*args: Any, **kwargs: Any) -> MetaAlgorithm:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return factory(*bound.args, **bound.kwargs)

        del complete.__wrapped__  # its signature would be found before this one
        complete.__signature__ = signature  # type: ignore[attr-defined]
        complete.__annotations__ = hints
        complete.__doc__ = f"{inspect.cleandoc(factory.__doc__ or '')}\n\nArgs:\n{arguments}\n"
        return complete

    return decorate


def _described(doc: str, without: tuple[str, ...]) -> str:
    """The entries of a docstring's Args, less those of some arguments."""
    section = inspect.cleandoc(doc).partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n(?=  \w+:)", section)
    return "\n".join(entry for entry in entries if entry.strip().partition(":")[0] not in without)
