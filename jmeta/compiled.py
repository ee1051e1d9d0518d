"""Compiled programs, kept for as long as the function that they were made for."""

from __future__ import annotations

import collections
import types
from collections.abc import Callable
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_KEPT = 16  # programs of one owner: enough for every size in use, few enough for a loop over families
_ATTRIBUTE = "_jmeta_programs"


class _Programs(collections.OrderedDict[Any, tuple[Any, Any]]):
    """Programs by key, the one used last at the end. A copy, also by pickle, has none."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Programs, ()


def once(make: Callable[[], T], owner: Callable[..., Any], *uses: Any) -> T:
    """Returns `make()`, and the same object again for the same owner and uses.

    A jitted function compiles once for each set of argument shapes, but only as long as it is the same
    object. The result is stored on the owner, not in a global table, because it refers to the owner: a
    table, even one with weak keys, would keep both alive forever, while a cycle is collected with the owner.

    Args:
      make: makes the program, for instance `lambda: jax.jit(...)`.
      owner: the function of the algorithm that the program calls, for instance `algorithm.update`. If it
        can hold no attributes, nothing is kept.
      *uses: everything else that the program depends on: bundles of functions, which are the same where
        every part is the same object, and sizes, which are compared by value.
    """
    key = tuple(map(_identity, jax.tree.leaves(uses, is_leaf=lambda leaf: leaf is None)))
    holder: Any = owner
    if isinstance(owner, types.MethodType):  # a bound method is made at every access
        key, holder = (id(owner.__func__), *key), owner.__self__
    try:
        programs = vars(holder).setdefault(_ATTRIBUTE, _Programs())
    except TypeError:
        return make()
    if key not in programs:
        programs[key] = (make(), uses)  # what an identity stands for must stay alive as long as the key
        while len(programs) > _KEPT:
            programs.popitem(last=False)
    programs.move_to_end(key)
    return programs[key][0]


def _identity(leaf: Any) -> Any:
    plain = isinstance(leaf, bool | int | float | str | types.NoneType)
    return (type(leaf), leaf) if plain else id(leaf)
