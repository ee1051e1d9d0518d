"""Scalar operations as a graph: constants are folded, and what was computed before is not computed again.

A value is a number, its position in the lists of the graph. Operations that do not depend on a loop's carry
stand outside the loop, wherever the program had them.

What is folded, and what that changes:

- An operation on constants is done by NumPy in the operation's own type.
- Exact for every argument: `x + 0`, `x - 0`, `x * 1`, `x / 1`, `-(-x)`, `x + (-y)`, `(-x) * (-y)`, `x * -1`,
  division by a power of two, `max(x, x)`, a choice between equals, and logic with a constant. (A sum may lose
  the sign of a zero.)
- `0 * x` and `0 / x` become 0, although they are NaN where x is not finite. Most of a robot's matrices are
  zeros, so this halves the program. `Graph.dropped` lists these x, and `Program` lets an input that no result
  depends on any more spoil all results where it is not finite.
- Nothing else: sums keep their order, and `x - x` stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

COMMUTATIVE = frozenset({"add", "mul", "max", "min", "and", "or", "xor", "eq", "ne"})
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


class Unsupported(Exception):
    """The program has an operation that can't be expanded; the message names it."""


@dataclasses.dataclass
class Loop:
    """A loop of a fixed number of iterations over scalars; each list has one entry for each of them."""

    length: int
    scope: int
    initial: list[int]
    carried: list[int]
    """The values inside the loop, at the beginning of an iteration."""
    updated: list[int]
    """The values inside the loop, at the end of an iteration."""
    results: list[int] = dataclasses.field(default_factory=list)
    """The values after the loop."""


class Graph:
    """Lists of operations, each with its arguments, type and scope (0, or that of the loop it is in)."""

    def __init__(self) -> None:
        self.ops: list[str] = []
        self.args: list[tuple[int, ...]] = []
        self.dtypes: list[np.dtype] = []
        self.scopes: list[int] = []
        self.values: dict[int, np.generic] = {}
        """Of constants."""
        self.loops: dict[int, Loop] = {}
        """Of the operation `loop`, and of the results that belong to it."""
        self.dropped: list[int] = []
        self.depths = [0]  # of scopes
        self._known: dict[Any, int] = {}

    def new(self, op: str, args: tuple[int, ...], dtype: np.dtype, scope: int) -> int:
        """Adds an operation as it is."""
        self.ops.append(op)
        self.args.append(args)
        self.dtypes.append(dtype)
        self.scopes.append(scope)
        return len(self.ops) - 1

    def new_scope(self, parent: int) -> int:
        """The scope of a loop that stands in another scope."""
        self.depths.append(self.depths[parent] + 1)
        return len(self.depths) - 1

    def constant(self, value: Any, dtype: Any) -> int:
        """The value of a number."""
        value = np.asarray(value).astype(dtype)[()]
        key = (value.dtype, value.tobytes())
        if key not in self._known:
            self._known[key] = self.new("constant", (), value.dtype, 0)
            self.values[self._known[key]] = value
        return self._known[key]

    def constants(self, array: Any) -> np.ndarray:
        """The values of an array of numbers, in its shape."""
        array = np.asarray(array)
        values = [self.constant(x, array.dtype) for x in array.ravel()]
        return np.array(values, np.int64).reshape(array.shape)

    def apply(self, op: str, *args: int, dtype: np.dtype | None = None) -> int:
        """The value of an operation; `dtype` is that of the first argument if it is not given."""
        if dtype is None:
            dtype = np.dtype(bool) if op in COMPARISONS else self.dtypes[args[0]]
        if op in COMMUTATIVE and args[0] > args[1]:
            args = args[::-1]
        key = (op, args, dtype)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._simplified(op, args, dtype)
        return found

    def _simplified(self, op: str, args: tuple[int, ...], dtype: np.dtype) -> int:
        if all(arg in self.values for arg in args):
            return self._folded(op, [self.values[arg] for arg in args], dtype)
        if rule := _RULES.get(op):
            found = rule(self, *args, dtype) if op == "convert" else rule(self, *args)
            if found is not None:
                return found
        scope = max((self.scopes[arg] for arg in args), key=self.depths.__getitem__)
        return self.new(op, args, dtype, scope)

    def _folded(self, op: str, values: Sequence[np.generic], dtype: np.dtype) -> int:
        with np.errstate(all="ignore"):
            return self.constant(NUMPY[op](*values), dtype)

    def is_number(self, value: int, number: float) -> bool:
        """Whether a value is this constant."""
        known = self.values.get(value)
        return known is not None and bool(known == number)


def _add(graph: Graph, x: int, y: int) -> int | None:
    for one, other in ((x, y), (y, x)):
        if graph.is_number(one, 0):
            return other
        if graph.ops[one] == "neg":
            return graph.apply("sub", other, graph.args[one][0])
    return None


def _sub(graph: Graph, x: int, y: int) -> int | None:
    if graph.is_number(y, 0):
        return x
    if graph.is_number(x, 0):
        return graph.apply("neg", y)
    if graph.ops[y] == "neg":
        return graph.apply("add", x, graph.args[y][0])
    return None


def _mul(graph: Graph, x: int, y: int) -> int | None:
    for one, other in ((x, y), (y, x)):
        if graph.is_number(one, 0):
            return _drop(graph, other)
        if graph.is_number(one, 1):
            return other
        if graph.is_number(one, -1):
            return graph.apply("neg", other)
    for one, other in ((x, y), (y, x)):
        if graph.ops[one] == "neg":  # outward, where sums take it in
            positive = graph.args[one][0]
            if other in graph.values:
                return graph.apply("mul", positive, graph.apply("neg", other))
            return graph.apply("neg", graph.apply("mul", positive, other))
    return None


def _div(graph: Graph, x: int, y: int) -> int | None:
    dtype = graph.dtypes[x]
    if graph.is_number(y, 1):
        return x
    if dtype.kind != "f":
        return None
    if graph.is_number(x, 0):
        return _drop(graph, y)
    if y in graph.values and abs(math.frexp(divisor := float(graph.values[y]))[0]) == 0.5:
        limits = np.finfo(dtype)
        if float(limits.tiny) <= abs(1 / divisor) <= float(limits.max):
            return graph.apply("mul", x, graph.constant(1 / divisor, dtype))
    return None


def _drop(graph: Graph, x: int) -> int:
    if graph.dtypes[x].kind == "f":
        graph.dropped.append(x)
    return graph.constant(0, graph.dtypes[x])


def _neg(graph: Graph, x: int) -> int | None:
    if graph.ops[x] == "neg":
        return graph.args[x][0]
    if graph.ops[x] == "sub":
        return graph.apply("sub", *reversed(graph.args[x]))
    return None


def _select(graph: Graph, which: int, no: int, yes: int) -> int | None:
    if which in graph.values:
        return yes if graph.values[which] else no
    return no if no == yes else None


def _extreme(graph: Graph, x: int, y: int) -> int | None:
    return x if x == y else None


def _logic(absorbing: bool) -> Callable[[Graph, int, int], int | None]:
    def rule(graph: Graph, x: int, y: int) -> int | None:
        if x == y:
            return x
        if graph.dtypes[x].kind != "b":
            return None
        for one, other in ((x, y), (y, x)):
            if one in graph.values:
                return one if bool(graph.values[one]) == absorbing else other
        return None

    return rule


def _pow(graph: Graph, x: int, y: int) -> int | None:
    if graph.is_number(y, 1):
        return x
    if graph.is_number(y, 2):
        return graph.apply("mul", x, x)
    return graph.constant(1, graph.dtypes[x]) if graph.is_number(y, 0) else None


def _convert(graph: Graph, x: int, dtype: np.dtype) -> int | None:
    if graph.dtypes[x] == dtype:
        return x
    if dtype.kind == "b":
        return graph.apply("ne", x, graph.constant(0, graph.dtypes[x]))
    return None


_RULES: dict[str, Callable[..., int | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "max": _extreme,
    "min": _extreme,
    "and": _logic(absorbing=False),
    "or": _logic(absorbing=True),
    "pow": _pow,
    "select": _select,
    "convert": _convert,
}


def _divide(x: Any, y: Any) -> Any:
    """As XLA: integers are rounded to zero."""
    return x / y if x.dtype.kind == "f" else np.trunc(np.divide(x, y))


NUMPY: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "and": np.bitwise_and,
    "atan2": np.arctan2,
    "ceil": np.ceil,
    "convert": lambda x: x,
    "cos": np.cos,
    "div": _divide,
    "eq": np.equal,
    "exp": np.exp,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "rem": np.fmod,
    "select": lambda which, no, yes: yes if which else no,
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "sub": np.subtract,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}
