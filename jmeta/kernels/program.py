"""Expands a JAX program of small arrays into scalar operations.

Arrays become arrays of positions in a `Graph`. What only moves entries about (slices, transposes, gathers at
known indices) is done with NumPy on these positions and costs nothing later; products of matrices and sums
are written out; a loop of a fixed number of iterations stays a loop.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jmeta.kernels.graph import Graph, Loop, Unsupported

Values = np.ndarray  # of positions in the graph, in the shape of the array that they are the entries of


class Program:
    """The scalar operations of a program of one example.

    Args:
      program: what `jax.make_jaxpr` makes of a pure function of small arrays.

    Raises:
      Unsupported: if an operation can't be expanded; the message names it.
    """

    def __init__(self, program: ClosedJaxpr) -> None:
        self.graph = Graph()
        self.input_avals = [variable.aval for variable in program.jaxpr.invars]
        self.output_avals = [variable.aval for variable in program.jaxpr.outvars]
        for aval in (*self.input_avals, *self.output_avals):
            if aval.dtype not in _DTYPES:
                raise Unsupported(f"arrays of {aval.dtype}")
        arrays = []
        for aval in self.input_avals:
            entries = [self.graph.new("input", (), np.dtype(aval.dtype), 0) for _ in range(aval.size)]
            arrays.append(np.array(entries, np.int64).reshape(aval.shape))
        self.inputs = [int(x) for array in arrays for x in array.ravel()]
        results = _Interpreter(self.graph).run(program, arrays)
        self.outputs = self._with_lost_inputs([int(x) for array in results for x in array.ravel()])
        self.needed = self._needed()
        self.order: dict[int, list[int]] = {scope: [] for scope in range(len(self.graph.depths))}
        for value in sorted(self.needed):
            self.order[self.graph.scopes[value]].append(value)

    def count(self) -> int:
        """Operations of one call, those of loops as often as they are done."""
        return self._count(0)

    def read_inside(self, loop: Loop) -> list[int]:
        """Which of a loop's entries an iteration takes from the one before it."""
        return [i for i, value in enumerate(loop.carried) if value in self.needed]

    def read_after(self, loop: Loop) -> list[int]:
        """Which of a loop's entries are read after the loop."""
        return [i for i, value in enumerate(loop.results) if value in self.needed]

    def _count(self, scope: int) -> int:
        total = 0
        for value in self.order[scope]:
            op = self.graph.ops[value]
            if op == "loop":
                loop = self.graph.loops[value]
                total += loop.length * self._count(loop.scope)
            elif op not in ("input", "constant", "carry", "result"):
                total += 1
        return total

    def _needed(self) -> set[int]:
        """All values that the outputs depend on."""
        return self._ancestors(self.outputs)

    def _ancestors(self, values: Iterable[int]) -> set[int]:
        graph, found, stack = self.graph, set(), list(values)
        carry_of = {
            value: (loop, i)
            for at, loop in graph.loops.items()
            if graph.ops[at] == "loop"
            for i, value in enumerate(loop.carried)
        }
        while stack:
            value = stack.pop()
            if value in found:
                continue
            found.add(value)
            if graph.ops[value] == "result":
                loop = graph.loops[value]
                stack += [graph.args[value][0], loop.updated[loop.results.index(value)]]
            elif graph.ops[value] == "carry":
                if value in carry_of:  # otherwise of an attempt at the loop that was given up
                    loop, i = carry_of[value]
                    stack += [loop.initial[i], loop.updated[i]]
            elif graph.ops[value] != "loop":
                stack += graph.args[value]
        return found

    def _with_lost_inputs(self, outputs: list[int]) -> list[int]:
        """The outputs, not finite where an input is not that only zeros have hidden from them."""
        graph = self.graph
        passed = set(self.inputs) | set(graph.values)
        hidden = self._ancestors(graph.dropped) - self._ancestors(set(outputs) - passed)
        lost = [value for value in self.inputs if value in hidden and graph.dtypes[value].kind == "f"]
        if not lost:
            return outputs
        zero: dict[np.dtype, int] = {}
        for value in lost:
            dtype = graph.dtypes[value]
            product = graph.new("mul", (value, graph.constant(0, dtype)), dtype, 0)
            zero[dtype] = product if dtype not in zero else graph.apply("add", zero[dtype], product)
        for dtype in list(zero):
            others = [graph.apply("convert", zero[d], dtype=dtype) for d in zero if d != dtype]
            zero[dtype] = functools.reduce(functools.partial(graph.apply, "add"), others, zero[dtype])
        return [
            graph.apply("add", value, zero[graph.dtypes[value]])
            if graph.dtypes[value] in zero and value not in passed
            else value
            for value in outputs
        ]


_DTYPES = tuple(np.dtype(name) for name in ("bool", "int32", "uint32", "int64", "float32", "float64"))
# The parameter that holds the program of a call.
CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# Primitives whose entries depend on the same entries of their operands.
# fmt: off
_ELEMENTWISE = {
    "abs", "add", "add_any", "and", "atan2", "ceil", "cos", "div", "eq", "exp", "floor", "ge", "gt",
    "le", "log", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "rem", "sign", "sin", "sqrt",
    "sub", "tanh", "xor",
}
# fmt: on
_UNCHANGED = ("copy", "copy_p", "stop_gradient", "device_put", "optimization_barrier")
_REDUCTIONS = {
    "reduce_sum": ("add", 0),
    "reduce_prod": ("mul", 1),
    "reduce_max": ("max", None),
    "reduce_min": ("min", None),
    "reduce_and": ("and", True),
    "reduce_or": ("or", False),
}


class _Interpreter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.scope = 0

    def run(self, program: ClosedJaxpr, args: Sequence[Values]) -> list[Values]:
        jaxpr = program.jaxpr
        values: dict[Any, Values] = dict(zip(jaxpr.invars, args, strict=True))
        for variable, value in zip(jaxpr.constvars, program.consts, strict=True):
            values[variable] = self._constants(value, variable)

        def read(variable: Any) -> Values:
            return (
                self._constants(variable.val, variable) if isinstance(variable, Literal) else values[variable]
            )

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _constants(self, value: Any, variable: Any) -> Values:
        return self.graph.constants(np.asarray(value, variable.aval.dtype))

    def _equation(self, equation: Any, args: list[Values]) -> list[Values]:
        name, params = equation.primitive.name, equation.params
        out = equation.outvars[0].aval
        if name in CALLS:
            return self.run(params[CALLS[name]], args)
        if name in _MOVES:
            moved = _MOVES[name](params, *args)
            return moved if isinstance(moved, list) else [moved]
        if name in _ELEMENTWISE:
            if len(dtypes := {variable.aval.dtype for variable in equation.invars}) > 1:
                raise Unsupported(f"{name} of {' and '.join(sorted(map(str, dtypes)))}")
            return [self._map("add" if name == "add_any" else name, args, out)]
        if name in _UNCHANGED:
            return args
        if name in _REDUCTIONS:
            return [self._reduce(*_REDUCTIONS[name], args[0], params["axes"], out)]
        if method := getattr(self, "_" + name.replace("-", "_"), None):
            results = method(params, args, out)
            return results if isinstance(results, list) else [results]
        raise Unsupported(f"the operation {name}")

    def _each(self, fn: Callable[..., int], args: Sequence[Values], shape: tuple[int, ...]) -> Values:
        """`fn` of every entry; operands may be scalars."""
        full = [np.broadcast_to(arg, shape).ravel().tolist() for arg in args]
        return np.array([fn(*entries) for entries in zip(*full, strict=True)], np.int64).reshape(shape)

    def _map(self, op: str, args: Sequence[Values], out: Any) -> Values:
        if out.dtype not in _DTYPES:
            raise Unsupported(f"{op} of {out.dtype}")
        return self._each(functools.partial(self.graph.apply, op), args, out.shape)

    def _numbers(self, values: Values, what: str) -> np.ndarray:
        """The numbers of an array that has to be known."""
        known = self.graph.values
        try:
            numbers = [known[value] for value in values.ravel().tolist()]
        except KeyError:
            raise Unsupported(f"{what} that is computed") from None
        return np.array(numbers).reshape(values.shape)

    def _of(self, value: float, like: int) -> int:
        return self.graph.constant(value, self.graph.dtypes[like])

    # What is made of other operations.

    def _convert_element_type(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._convert(args[0], out)

    def _convert(self, values: Values, out: Any) -> Values:
        dtype = np.dtype(out.dtype)
        if dtype not in _DTYPES:
            raise Unsupported(f"a conversion to {dtype}")
        return self._each(functools.partial(self.graph.apply, "convert", dtype=dtype), [values], values.shape)

    def _select_n(self, params: Any, args: list[Values], out: Any) -> Values:
        def select(which: int, *cases: int) -> int:
            if self.graph.dtypes[which].kind == "b":
                return self.graph.apply("select", which, *cases, dtype=self.graph.dtypes[cases[0]])
            chosen = cases[-1]
            for i in reversed(range(len(cases) - 1)):
                before = self.graph.apply("lt", which, self._of(i + 1, which))
                chosen = self.graph.apply("select", before, chosen, cases[i], dtype=self.graph.dtypes[chosen])
            return chosen

        return self._each(select, args, out.shape)

    def _clamp(self, params: Any, args: list[Values], out: Any) -> Values:
        apply = self.graph.apply
        return self._each(lambda low, x, high: apply("min", apply("max", x, low), high), args, out.shape)

    def _is_finite(self, params: Any, args: list[Values], out: Any) -> Values:
        apply = self.graph.apply
        return self._each(lambda x: apply("lt", apply("abs", x), self._of(np.inf, x)), args, out.shape)

    def _square(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._each(lambda x: self.graph.apply("mul", x, x), args, out.shape)

    def _integer_pow(self, params: Any, args: list[Values], out: Any) -> Values:
        apply, exponent = self.graph.apply, params["y"]

        def power(x: int) -> int:
            result, square = self._of(1, x), x
            for bit in reversed(f"{abs(exponent):b}"):
                result = apply("mul", result, square) if bit == "1" else result
                square = apply("mul", square, square)
            return result if exponent >= 0 else apply("div", self._of(1, x), result)

        return self._each(power, args, out.shape)

    def _pow(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._map("pow", [args[0], self._convert(args[1], out)], out)  # the exponent may be an integer

    def _rsqrt(self, params: Any, args: list[Values], out: Any) -> Values:
        apply = self.graph.apply
        return self._each(lambda x: apply("div", self._of(1, x), apply("sqrt", x)), args, out.shape)

    def _acos(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._each(lambda x: self.graph.apply("atan2", self._cosine(x), x), args, out.shape)

    def _asin(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._each(lambda x: self.graph.apply("atan2", x, self._cosine(x)), args, out.shape)

    def _cosine(self, sine: int) -> int:
        """sqrt(1 - x^2), without loss where x is near 1 or -1."""
        apply, one = self.graph.apply, self._of(1, sine)
        return apply("sqrt", apply("mul", apply("sub", one, sine), apply("add", one, sine)))

    def _atan(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._each(lambda x: self.graph.apply("atan2", x, self._of(1, x)), args, out.shape)

    def _iota(self, params: Any, args: list[Values], out: Any) -> Values:
        shape = [1] * len(out.shape)
        shape[params["dimension"]] = -1
        entries = self.graph.constants(np.arange(out.shape[params["dimension"]]).astype(out.dtype))
        return np.broadcast_to(entries.reshape(shape), out.shape)

    def _fold(self, op: str, terms: Sequence[int]) -> int:
        return functools.reduce(functools.partial(self.graph.apply, op), terms)

    def _reduce(self, op: str, empty: Any, values: Values, axes: Sequence[int], out: Any) -> Values:
        rows = np.moveaxis(values, axes, range(-len(axes), 0)).reshape(out.size, -1) if out.size else values
        if rows.size == 0:
            if empty is None:
                raise Unsupported(f"{op} of nothing")
            return np.full(out.shape, self.graph.constant(empty, out.dtype), np.int64)
        return np.array([self._fold(op, row) for row in rows.tolist()], np.int64).reshape(out.shape)

    def _cumsum(self, params: Any, args: list[Values], out: Any) -> Values:
        rows = np.moveaxis(args[0], params["axis"], 0)[:: -1 if params["reverse"] else 1]
        sums = list(rows[:1])
        for row in rows[1:]:
            sums.append(self._each(functools.partial(self.graph.apply, "add"), [sums[-1], row], row.shape))
        stacked = np.array(sums, np.int64).reshape(rows.shape)
        return np.moveaxis(stacked[:: -1 if params["reverse"] else 1], 0, params["axis"])

    def _dot_general(self, params: Any, args: list[Values], out: Any) -> Values:
        (x_summed, y_summed), (x_batch, y_batch) = params["dimension_numbers"]
        x, y = [self._convert(values, out) for values in args]
        rows = []
        for values, summed, batch in ((x, x_summed, x_batch), (y, y_summed, y_batch)):
            free = [axis for axis in range(values.ndim) if axis not in (*summed, *batch)]
            size = [math.prod(values.shape[axis] for axis in axes) for axes in (batch, free, summed)]
            rows.append(values.transpose(*batch, *free, *summed).reshape(size).tolist())
        mul = functools.partial(self.graph.apply, "mul")
        entries = [
            self._fold(
                "add",
                [mul(a, b) for a, b in zip(row, column, strict=True)] or [self.graph.constant(0, out.dtype)],
            )
            for x_rows, y_rows in zip(*rows, strict=True)
            for row, column in itertools.product(x_rows, y_rows)
        ]
        return np.array(entries, np.int64).reshape(out.shape)

    # Gathers and scatters at known indices.

    def _gather(self, params: Any, args: list[Values], out: Any) -> Values:
        operand, indices = args
        numbers = params["dimension_numbers"]
        at, inside = _window(
            operand.shape,
            out.shape,
            self._numbers(indices, "an index"),
            window_axes=numbers.offset_dims,
            absent_axes=(*numbers.collapsed_slice_dims, *numbers.operand_batching_dims),
            index_axes=numbers.start_index_map,
            batching=tuple(
                zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
            ),
            sizes=params["slice_sizes"],
            clip=params["mode"] == jax.lax.GatherScatterMode.CLIP,
        )
        found = operand[at]
        if not inside.all():
            fill = params.get("fill_value")
            if fill is None:
                fill = np.nan if out.dtype.kind == "f" else _extreme_integer(out.dtype)
            found = np.where(inside, found, self.graph.constant(fill, out.dtype))
        return found

    def _scattered(self, params: Any, args: list[Values], combine: Callable[[int, int], int]) -> Values:
        operand, indices, updates = args
        numbers = params["dimension_numbers"]
        absent = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        window = iter(updates.shape[axis] for axis in numbers.update_window_dims)
        at, inside = _window(
            operand.shape,
            updates.shape,
            self._numbers(indices, "an index"),
            window_axes=numbers.update_window_dims,
            absent_axes=absent,
            index_axes=numbers.scatter_dims_to_operand_dims,
            batching=tuple(
                zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
            ),
            sizes=tuple(1 if axis in absent else next(window) for axis in range(operand.ndim)),
            clip=params["mode"] == jax.lax.GatherScatterMode.CLIP,
        )
        result = operand.copy()
        for place, update, is_inside in zip(
            zip(*(axis.ravel().tolist() for axis in at), strict=True),
            updates.ravel().tolist(),
            inside.ravel().tolist(),
            strict=True,
        ):
            if is_inside:
                result[place] = combine(int(result[place]), update)
        return result

    def _scatter(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._scattered(params, args, lambda old, new: new)

    def _scatter_add(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._scattered(params, args, functools.partial(self.graph.apply, "add"))

    def _scatter_mul(self, params: Any, args: list[Values], out: Any) -> Values:
        return self._scattered(params, args, functools.partial(self.graph.apply, "mul"))

    def _dynamic_slice(self, params: Any, args: list[Values], out: Any) -> Values:
        operand, *starts = args
        sizes = params["slice_sizes"]
        at = [int(self._numbers(start, "an index")) for start in starts]
        at = [min(max(i, 0), full - size) for i, full, size in zip(at, operand.shape, sizes, strict=True)]
        return operand[tuple(slice(i, i + size) for i, size in zip(at, sizes, strict=True))]

    # Branches and loops.

    def _platform_index(self, params: Any, args: list[Values], out: Any) -> Values:
        """The branch for any platform: a program is expanded once for all of them."""
        platforms = params["platforms"]
        return self.graph.constants(np.asarray(platforms.index(None) if None in platforms else 0, out.dtype))

    def _cond(self, params: Any, args: list[Values], out: Any) -> list[Values]:
        branches = params["branches"]
        which = int(self._numbers(args[0], "a branch"))
        return self.run(branches[min(max(which, 0), len(branches) - 1)], args[1:])

    def _scan(self, params: Any, args: list[Values], out: Any) -> list[Values]:
        first, end = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, carry, inputs = args[:first], args[first:end], args[end:]
        body, length = params["jaxpr"], params["length"]
        if not inputs and len(body.jaxpr.outvars) == len(carry) and length > 1:
            return self._loop(body, consts, carry, length)
        outputs = []
        for i in reversed(range(length)) if params["reverse"] else range(length):
            results = self.run(body, [*consts, *carry, *[array[i] for array in inputs]])
            carry = results[: len(carry)]
            outputs.append(results[len(carry) :])
        ordered = outputs[::-1] if params["reverse"] else outputs
        shapes = [(length, *variable.aval.shape) for variable in body.jaxpr.outvars[len(carry) :]]
        return [
            *carry,
            *[
                np.array([row[i] for row in ordered], np.int64).reshape(shape)
                for i, shape in enumerate(shapes)
            ],
        ]

    def _loop(
        self, body: ClosedJaxpr, consts: list[Values], carry: list[Values], length: int
    ) -> list[Values]:
        """A loop over the entries of the carry that change in it.

        Constants are taken for unchanging until an attempt shows otherwise; what an attempt finds unchanged
        is no part of the next one. The operations of attempts that were given up stay in the graph, needed by
        nothing.
        """
        graph, parent = self.graph, self.scope
        initial = [int(x) for array in carry for x in array.ravel()]
        constant = [x in graph.values for x in initial]
        while True:
            self.scope = graph.new_scope(parent)
            carried = [
                x if fixed else graph.new("carry", (), graph.dtypes[x], self.scope)
                for x, fixed in zip(initial, constant, strict=True)
            ]
            results = self.run(body, [*consts, *_split(carried, carry)])
            updated = [int(x) for array in results for x in array.ravel()]
            scope, self.scope = self.scope, parent
            same = [before == after for before, after in zip(carried, updated, strict=True)]
            if same == constant:
                break
            constant = same
        changing = [i for i, fixed in enumerate(constant) if not fixed]
        loop = Loop(length, scope, *([list_[i] for i in changing] for list_ in (initial, carried, updated)))
        at = graph.new("loop", (), np.dtype(bool), parent)
        graph.loops[at] = loop
        final = list(initial)
        for i in changing:
            final[i] = graph.new("result", (at,), graph.dtypes[initial[i]], parent)
            graph.loops[final[i]] = loop
            loop.results.append(final[i])
        return _split(final, carry)


def _split(entries: Sequence[int], like: Sequence[Values]) -> list[Values]:
    """The entries in arrays of these shapes."""
    ends = np.cumsum([array.size for array in like])[:-1]
    parts = np.split(np.array(entries, np.int64), ends) if like else []
    return [part.reshape(array.shape) for part, array in zip(parts, like, strict=True)]


def _extreme_integer(dtype: Any) -> Any:
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def _window(
    operand: tuple[int, ...],
    shape: tuple[int, ...],
    indices: np.ndarray,
    *,
    window_axes: Sequence[int],
    absent_axes: Sequence[int],
    index_axes: Sequence[int],
    batching: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    clip: bool,
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Where in the operand each entry of a gather's result or a scatter's updates is, and if it is inside.

    The arguments are the dimension numbers of `jax.lax.gather`.
    """
    grid = np.indices(shape)
    rows = [grid[axis] for axis in range(len(shape)) if axis not in window_axes]
    starts = indices[tuple(rows)] if rows else np.broadcast_to(indices, (*shape, indices.shape[-1]))
    offsets = iter(grid[axis] for axis in window_axes)
    at, inside = [], np.ones(shape, bool)
    for axis, (length, size) in enumerate(zip(operand, sizes, strict=True)):
        place = np.zeros(shape, np.int64)
        if axis in index_axes:
            start = starts[..., list(index_axes).index(axis)].astype(np.int64)
            if clip:
                start = np.clip(start, 0, length - size)
            inside &= (start >= 0) & (start <= length - size)
            place = place + start
        for operand_axis, index_axis in batching:
            if operand_axis == axis:
                place = place + rows[index_axis]
        if axis not in absent_axes:
            place = place + next(offsets)
        at.append(np.clip(place, 0, max(length - 1, 0)))
    return tuple(at), inside


def _broadcast_in_dim(params: Any, x: Values, *sizes: Values) -> Values:
    shape = [1] * len(params["shape"])
    for axis, length in zip(params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = length
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _slice(params: Any, x: Values) -> Values:
    strides = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(itertools.starmap(slice, bounds))]


def _reshape(params: Any, x: Values) -> Values:
    return (x if params["dimensions"] is None else x.transpose(params["dimensions"])).reshape(
        params["new_sizes"]
    )


def _pad(params: Any, x: Values, filling: Values) -> Values:
    if any(low < 0 or high < 0 for low, high, _ in params["padding_config"]):
        raise Unsupported("a pad by less than nothing")
    shape = [
        low + length + max(length - 1, 0) * between + high
        for length, (low, high, between) in zip(x.shape, params["padding_config"], strict=True)
    ]
    result = np.full(shape, filling[()], np.int64)
    result[
        tuple(
            slice(low, low + (length - 1) * (between + 1) + 1 if length else low, between + 1)
            for length, (low, _, between) in zip(x.shape, params["padding_config"], strict=True)
        )
    ] = x
    return result


def _split_sizes(params: Any, x: Values) -> list[Values]:
    return np.split(x, np.cumsum(params["sizes"])[:-1], params["axis"])


_MOVES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "expand_dims": lambda params, x: np.expand_dims(x, params["dimensions"]),
    "pad": _pad,
    "reshape": _reshape,
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "slice": _slice,
    "split": _split_sizes,
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "stack": lambda params, *xs: np.stack(xs, params["axis"]),
    "tile": lambda params, x: np.tile(x, params["reps"]),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
    "unstack": lambda params, x: [
        np.squeeze(part, params["axis"]) for part in np.split(x, x.shape[params["axis"]], params["axis"])
    ],
}
