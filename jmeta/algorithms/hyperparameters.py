"""Lets an algorithm take another's hyperparameters without declaring them a second time."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

Factory = TypeVar("Factory", bound=Callable[..., Any])


def hyperparameters_of(source: Callable[..., Any], *, without: tuple[str, ...] = ()) -> Callable[[Factory], Factory]:
    """Decorates a factory that passes `**hyperparameters` on to `source`.

    Its signature, from which flags and the run's configuration are derived, becomes that of `source`.

    Args:
      source: the factory that declares the hyperparameters.
      without: names that the decorated factory does not have.
    """

    def decorate(factory: Factory) -> Factory:
        signature = inspect.signature(source)
        kept = [p for name, p in signature.parameters.items() if name not in without]
        hints = typing.get_type_hints(source)
        factory.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        factory.__annotations__ = {name: hint for name, hint in hints.items() if name not in without}
        return factory

    return decorate
