"""A scalar program as LLVM IR, in which every lane of a vector is an example of its own.

`atan2` of float32 is a polynomial here (relative error below 2e-7, its result NaN where an argument is). The
other transcendental functions, and all of them in float64, are the C library's, called lane by lane.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from jmeta.kernels.graph import COMPARISONS, Loop, Unsupported
from jmeta.kernels.program import Program

# In registers, and in memory.
_TYPES = {
    "bool": ("i1", "i8"),
    "int32": ("i32", "i32"),
    "uint32": ("i32", "i32"),
    "int64": ("i64", "i64"),
    "float32": ("float", "float"),
    "float64": ("double", "double"),
}
_FLOAT = {
    "add": "fadd contract",
    "sub": "fsub contract",
    "mul": "fmul contract",
    "div": "fdiv",
    "rem": "frem",
}
_INTEGER = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}
_SIGNED = {"div": "sdiv", "rem": "srem"}
_FLOAT_COMPARISONS = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_SIGNED_COMPARISONS = {"eq": "eq", "ne": "ne", "lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge"}
_UNSIGNED_COMPARISONS = {"eq": "eq", "ne": "ne", "lt": "ult", "le": "ule", "gt": "ugt", "ge": "uge"}
_INTRINSICS = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil"}
# Of the C library, and how many arguments each takes.
LIBRARY = {"sin": 1, "cos": 1, "exp": 1, "log": 1, "tanh": 1, "pow": 2, "atan2": 2}
# atan(r) / r as a polynomial of r^2 in [0, 1]: its relative error is 2.4e-9.
_ATAN = (
    1.0,
    -0.3333328366279602,
    0.1999826580286026,
    -0.142619326710701,
    0.10942026972770691,
    -0.08377303928136826,
    0.057551901787519455,
    -0.03080439753830433,
    0.010726837441325188,
    -0.0017539063701406121,
)


def memory_type(dtype: np.dtype) -> str:
    """The LLVM type of one entry of an array."""
    return _TYPES[dtype.name][1]


class Block:
    """IR of `block(in, out)`, which computes `lanes` examples.

    Both buffers hold the entries that `inputs` and `outputs` name, one after the other, each as `lanes`
    numbers of the type that it has in memory, at offsets of `offsets` bytes.
    """

    def __init__(self, program: Program, lanes: int) -> None:
        self.program, self.graph, self.lanes = program, program.graph, lanes
        self.lines: list[str] = []
        self.declared: set[str] = set()
        self._temporaries = 0
        self._label = "entry"

    def ir(self) -> str:
        """The definition of `block`, and declarations of what it calls."""
        self.lines = ["define internal void @block(ptr noalias %in, ptr noalias %out) noinline {", "entry:"]
        for value, offset in zip(self.program.inputs, self.offsets(self.program.inputs)[0], strict=True):
            if value in self.program.needed:
                self._load(value, offset)
        self._scope(0)
        for value, offset in zip(self.program.outputs, self.offsets(self.program.outputs)[0], strict=True):
            self._store(value, offset)
        self.lines += ["  ret void", "}"]
        return "\n".join([*sorted(self.declared), *self.lines, ""])

    def offsets(self, values: Sequence[int]) -> tuple[list[int], int]:
        """Where each entry's lanes are in a buffer, and the size of the buffer, in bytes."""
        sizes = [self.graph.dtypes[value].itemsize * self.lanes for value in values]
        ends = np.cumsum([0, *sizes]).tolist()
        return ends[:-1], ends[-1]

    def _vector(self, dtype: np.dtype, *, memory: bool = False) -> str:
        return f"<{self.lanes} x {_TYPES[dtype.name][memory]}>"

    def _emit(self, expression: str, name: str | None = None) -> str:
        if name is None:
            self._temporaries += 1
            name = f"%t{self._temporaries}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def _number(self, number: Any, dtype: np.dtype) -> str:
        kind = _TYPES[dtype.name][0]
        if dtype.kind == "b":
            return f"splat ({kind} {'true' if number else 'false'})"
        if dtype.kind == "f":
            bits = struct.unpack("<Q", struct.pack("<d", float(number)))[0]
            return f"splat ({kind} 0x{bits:016X})"
        return f"splat ({kind} {int(number)})"

    def _name(self, value: int) -> str:
        if value in self.graph.values:
            return self._number(self.graph.values[value], self.graph.dtypes[value])
        return f"%v{value}"

    def _load(self, value: int, offset: int) -> None:
        dtype = self.graph.dtypes[value]
        at = self._emit(f"getelementptr i8, ptr %in, i64 {offset}")
        name = f"%v{value}"
        if dtype.kind != "b":
            self._emit(f"load {self._vector(dtype)}, ptr {at}, align {dtype.itemsize}", name)
            return
        stored = self._emit(f"load {self._vector(dtype, memory=True)}, ptr {at}, align 1")
        self._emit(f"icmp ne {self._vector(dtype, memory=True)} {stored}, zeroinitializer", name)

    def _store(self, value: int, offset: int) -> None:
        dtype, name = self.graph.dtypes[value], self._name(value)
        at = self._emit(f"getelementptr i8, ptr %out, i64 {offset}")
        if dtype.kind == "b":
            name = self._emit(f"zext {self._vector(dtype)} {name} to {self._vector(dtype, memory=True)}")
        self.lines.append(
            f"  store {self._vector(dtype, memory=True)} {name}, ptr {at}, align {dtype.itemsize}"
        )

    def _scope(self, scope: int) -> None:
        for value in self.program.order[scope]:
            op = self.graph.ops[value]
            if op == "loop":
                self._loop(self.graph.loops[value], str(value))
            elif op not in ("input", "constant", "carry", "result"):
                self._operation(value, op)

    def _loop(self, loop: Loop, label: str) -> None:
        before = self._label
        self.lines += [f"  br label %loop{label}", f"loop{label}:"]
        phis = len(self.lines)
        self._label = f"loop{label}"
        self._scope(loop.scope)
        end = self._label
        heads = [f"  %i{label} = phi i32 [ 0, %{before} ], [ %n{label}, %{end} ]"]
        for i in self.program.read_inside(loop):
            initial, updated = self._name(loop.initial[i]), self._name(loop.updated[i])
            kind = self._vector(self.graph.dtypes[loop.carried[i]])
            heads.append(
                f"  %v{loop.carried[i]} = phi {kind} [ {initial}, %{before} ], [ {updated}, %{end} ]"
            )
        self.lines[phis:phis] = heads
        self.lines += [
            f"  %n{label} = add i32 %i{label}, 1",
            f"  %more{label} = icmp slt i32 %n{label}, {loop.length}",
            f"  br i1 %more{label}, label %loop{label}, label %after{label}",
            f"after{label}:",
        ]
        self._label = f"after{label}"
        for i in self.program.read_after(loop):
            kind = self._vector(self.graph.dtypes[loop.results[i]])
            self._emit(f"phi {kind} [ {self._name(loop.updated[i])}, %{end} ]", f"%v{loop.results[i]}")

    def _operation(self, value: int, op: str) -> None:
        graph, name = self.graph, f"%v{value}"
        operands = graph.args[value]
        args = [self._name(arg) for arg in operands]
        dtype = graph.dtypes[operands[-1]]
        kind, vector = dtype.kind, self._vector(dtype)
        if op == "select":
            self._choose(args[0], args[2], args[1], dtype, name)
        elif op == "convert":
            self._convert(args[0], dtype, graph.dtypes[value], name)
        elif op in COMPARISONS:
            self._emit(f"{self._comparison(op, dtype)} {vector} {args[0]}, {args[1]}", name)
        elif op in ("max", "min"):
            self._extreme(op, operands, args, dtype, name)
        elif op == "not":
            ones = self._number(True if kind == "b" else -1, dtype)
            self._emit(f"xor {vector} {args[0]}, {ones}", name)
        elif op == "sign":
            self._sign(args[0], dtype, name)
        elif op == "neg" and kind == "f":
            self._emit(f"fneg {vector} {args[0]}", name)
        elif op == "neg":
            self._emit(f"sub {vector} zeroinitializer, {args[0]}", name)
        elif kind == "f" and op in _FLOAT:
            self._emit(f"{_FLOAT[op]} {vector} {args[0]}, {args[1]}", name)
        elif kind == "f" and op in _INTRINSICS:
            self._call(f"llvm.{_INTRINSICS[op]}", args, dtype, name)
        elif op == "atan2" and dtype == np.float32:
            self._atan2(args[0], args[1], dtype, name)
        elif kind == "f" and op in LIBRARY:
            self._call(f"llvm.{op}", args, dtype, name)
        elif kind != "f" and op in _INTEGER:
            self._emit(f"{_INTEGER[op]} {vector} {args[0]}, {args[1]}", name)
        elif kind == "i" and op == "abs":
            negative = self._emit(f"sub {vector} zeroinitializer, {args[0]}")
            below = self._emit(f"icmp slt {vector} {args[0]}, zeroinitializer")
            self._choose(below, negative, args[0], dtype, name)
        elif kind == "i" and op in _SIGNED and self._is_safe_divisor(operands[1]):
            self._emit(f"{_SIGNED[op]} {vector} {args[0]}, {args[1]}", name)
        else:
            raise Unsupported(f"{op} of {dtype}")

    def _is_safe_divisor(self, value: int) -> bool:
        """Division of integers by zero, and of the lowest by -1, would end the process."""
        return value in self.graph.values and int(self.graph.values[value]) not in (0, -1)

    def _comparison(self, op: str, dtype: np.dtype) -> str:
        if dtype.kind == "f":
            return f"fcmp {_FLOAT_COMPARISONS[op]}"
        return f"icmp {(_SIGNED_COMPARISONS if dtype.kind == 'i' else _UNSIGNED_COMPARISONS)[op]}"

    def _choose(self, which: str, yes: str, no: str, dtype: np.dtype, name: str | None = None) -> str:
        vector = self._vector(dtype)
        return self._emit(f"select <{self.lanes} x i1> {which}, {vector} {yes}, {vector} {no}", name)

    def _call(self, function: str, args: Sequence[str], dtype: np.dtype, name: str | None = None) -> str:
        vector = self._vector(dtype)
        suffix = f"v{self.lanes}f{8 * dtype.itemsize}"
        self.declared.add(f"declare {vector} @{function}.{suffix}({', '.join([vector] * len(args))})")
        return self._emit(
            f"call {vector} @{function}.{suffix}({', '.join(f'{vector} {arg}' for arg in args)})", name
        )

    def _extreme(self, op: str, operands: Sequence[int], args: list[str], dtype: np.dtype, name: str) -> None:
        """NaN where an argument is: the second is chosen where the comparison fails, at no cost."""
        known = [operand in self.graph.values for operand in operands]
        first, second = args if known[0] or not known[1] else args[::-1]
        vector = self._vector(dtype)
        compared = self._emit(
            f"{self._comparison('gt' if op == 'max' else 'lt', dtype)} {vector} {first}, {second}"
        )
        if dtype.kind != "f" or any(known):
            self._choose(compared, first, second, dtype, name)
            return
        chosen = self._choose(compared, first, second, dtype)
        self._choose(self._emit(f"fcmp uno {vector} {first}, {first}"), first, chosen, dtype, name)

    def _sign(self, x: str, dtype: np.dtype, name: str) -> None:
        if dtype.kind == "u":
            raise Unsupported(f"sign of {dtype}")
        vector = self._vector(dtype)
        above = self._emit(f"{self._comparison('gt', dtype)} {vector} {x}, zeroinitializer")
        below = self._emit(f"{self._comparison('lt', dtype)} {vector} {x}, zeroinitializer")
        other = self._choose(below, self._number(-1, dtype), x, dtype)  # x is 0 or NaN
        self._choose(above, self._number(1, dtype), other, dtype, name)

    def _convert(self, x: str, dtype: np.dtype, to: np.dtype, name: str) -> None:
        source, target = self._vector(dtype), self._vector(to)
        if dtype.kind == "f" and to.kind == "f":
            operation = "fpext" if to.itemsize > dtype.itemsize else "fptrunc"
        elif to.kind == "f":
            operation = "sitofp" if dtype.kind == "i" else "uitofp"
        elif dtype.kind == "f":
            kind = f"fpto{'s' if to.kind == 'i' else 'u'}i.sat"  # NaN becomes 0, as in XLA
            bits = f"v{self.lanes}i{8 * to.itemsize}.v{self.lanes}f{8 * dtype.itemsize}"
            self.declared.add(f"declare {target} @llvm.{kind}.{bits}({source})")
            self._emit(f"call {target} @llvm.{kind}.{bits}({source} {x})", name)
            return
        elif dtype.itemsize == to.itemsize and dtype.kind != "b":
            operation = "bitcast"
        elif dtype.itemsize > to.itemsize:
            operation = "trunc"
        else:
            operation = "sext" if dtype.kind == "i" else "zext"
        self._emit(f"{operation} {source} {x} to {target}", name)

    def _atan2(self, y: str, x: str, dtype: np.dtype, name: str) -> None:
        vector = self._vector(dtype)

        def number(value: float) -> str:
            return self._number(np.asarray(value, dtype)[()], dtype)

        def compare(op: str, a: str, b: str) -> str:
            return self._emit(f"fcmp {op} {vector} {a}, {b}")

        def arithmetic(op: str, a: str, b: str) -> str:
            return self._emit(f"{_FLOAT[op]} {vector} {a}, {b}")

        a, b = self._call("llvm.fabs", [y], dtype), self._call("llvm.fabs", [x], dtype)
        steep = compare("ogt", a, b)
        small, large = self._choose(steep, b, a, dtype), self._choose(steep, a, b, dtype)
        ratio = arithmetic("div", small, large)
        ratio = self._choose(
            compare("oeq", small, large), number(1), ratio, dtype
        )  # also of two infinite ones
        ratio = self._choose(compare("oeq", large, number(0)), number(0), ratio, dtype)
        square = arithmetic("mul", ratio, ratio)
        series = number(_ATAN[-1])
        for coefficient in _ATAN[-2::-1]:
            series = arithmetic("add", arithmetic("mul", series, square), number(coefficient))
        angle = arithmetic("mul", series, ratio)
        angle = self._choose(steep, arithmetic("sub", number(math.pi / 2), angle), angle, dtype)
        one = self._call("llvm.copysign", [number(1), x], dtype)
        left = compare("olt", one, number(0))
        angle = self._choose(left, arithmetic("sub", number(math.pi), angle), angle, dtype)
        angle = self._call("llvm.copysign", [angle, y], dtype)
        unordered = compare("uno", x, y)
        self._choose(unordered, arithmetic("add", x, y), angle, dtype, name)
