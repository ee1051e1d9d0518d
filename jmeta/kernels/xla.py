"""A scalar program as operations of JAX on vectors, one entry an example: for GPUs and TPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jmeta.kernels.graph import Loop
from jmeta.kernels.program import Program
from jmeta.types import Array

_OPERATIONS: dict[str, Callable[..., Array]] = {
    "abs": lax.abs,
    "add": lax.add,
    "and": lax.bitwise_and,
    "atan2": lax.atan2,
    "ceil": lax.ceil,
    "cos": lax.cos,
    "div": lax.div,
    "eq": lax.eq,
    "exp": lax.exp,
    "floor": lax.floor,
    "ge": lax.ge,
    "gt": lax.gt,
    "le": lax.le,
    "log": lax.log,
    "lt": lax.lt,
    "max": lax.max,
    "min": lax.min,
    "mul": lax.mul,
    "ne": lax.ne,
    "neg": lax.neg,
    "not": lax.bitwise_not,
    "or": lax.bitwise_or,
    "pow": lax.pow,
    "rem": lax.rem,
    "select": lax.select_n,
    "sign": lax.sign,
    "sin": lax.sin,
    "sqrt": lax.sqrt,
    "sub": lax.sub,
    "tanh": lax.tanh,
    "xor": lax.bitwise_xor,
}


def batched(program: Program, axes: int, *leaves: Array) -> list[Array]:
    """The results of a program for a batch, as XLA compiles it.

    The numbers that a loop carries stand in one array for each type. Carried one by one, each would be copied
    by a kernel of its own in every iteration.

    Args:
      program: of one example.
      axes: how many axes the batch has.
      *leaves: the arguments, each with the batch's axes first.

    Returns:
      The results, with the batch's axes first.
    """
    shape = leaves[0].shape[:axes]
    rows = [leaf.reshape(math.prod(shape), -1) for leaf in leaves]
    entries = [row[:, i] for row in rows for i in range(row.shape[1])]
    return _arrays(program, shape, _vectors(program, entries, stack=True))


_TILE = (8, 128)  # of a TPU's vector registers
_IN_MEMORY = {"b": "int32"}  # by kind of type, where it is another there


def in_one_tpu_kernel(program: Program, axes: int, *leaves: Array, interpret: bool = False) -> list[Array]:
    """As `batched`, in one kernel for a TPU, whose registers hold 1,024 examples each.

    `interpret` runs it on any platform, slowly.
    """
    from jax.experimental import pallas as pl

    shape = leaves[0].shape[:axes]
    size = math.prod(shape)
    padded = -(-size // math.prod(_TILE)) * math.prod(_TILE)
    graph = program.graph
    groups = _by_type(program, program.inputs), _by_type(program, program.outputs)

    def kernel(*refs: Any) -> None:
        sources = dict(zip(groups[0], refs, strict=False))
        targets = dict(zip(groups[1], refs[len(groups[0]) :], strict=True))
        entries: dict[int, Array] = {}
        for dtype, members in groups[0].items():
            for row, i in enumerate(members):
                if program.inputs[i] in program.needed:
                    entries[i] = sources[dtype][row].astype(graph.dtypes[program.inputs[i]])
        unread = next(iter(entries.values()))
        filled = [entries.get(i, unread) for i in range(len(program.inputs))]
        outputs = _vectors(program, filled, stack=False)
        for dtype, members in groups[1].items():
            for row, i in enumerate(members):
                targets[dtype][row] = outputs[i].astype(dtype)

    rows = [leaf.reshape(size, -1) for leaf in leaves]
    columns = [row[:, i] for row in rows for i in range(row.shape[1])]
    arrays = [
        jnp.pad(jnp.stack([columns[i].astype(dtype) for i in members]), ((0, 0), (0, padded - size))).reshape(
            len(members), -1, _TILE[1]
        )
        for dtype, members in groups[0].items()
    ]

    def spec(members: Sequence[int]) -> Any:
        return pl.BlockSpec((len(members), *_TILE), lambda i: (0, i, 0))

    found = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((len(members), padded // _TILE[1], _TILE[1]), dtype)
            for dtype, members in groups[1].items()
        ],
        grid=(padded // math.prod(_TILE),),
        in_specs=[spec(members) for members in groups[0].values()],
        out_specs=[spec(members) for members in groups[1].values()],
        interpret=interpret,
    )(*arrays)
    outputs: list[Any] = [None] * len(program.outputs)
    for (_, members), array in zip(groups[1].items(), found, strict=True):
        for row, i in enumerate(members):
            dtype = graph.dtypes[program.outputs[i]]
            outputs[i] = array[row].reshape(padded)[:size].astype(dtype)
    return _arrays(program, shape, outputs)


def _by_type(program: Program, values: Sequence[int]) -> dict[np.dtype, list[int]]:
    """Positions in a list of values, by the type that they have in memory."""
    groups: dict[np.dtype, list[int]] = {}
    for i, value in enumerate(values):
        own = program.graph.dtypes[value]
        groups.setdefault(np.dtype(_IN_MEMORY.get(own.kind, own)), []).append(i)
    return groups


def _arrays(program: Program, shape: tuple[int, ...], outputs: Sequence[Array]) -> list[Array]:
    """The results in their shapes, from vectors of their entries."""
    entries = iter(outputs)
    results = []
    for aval in program.output_avals:
        columns = [next(entries) for _ in range(aval.size)]
        stacked = jnp.stack(columns, -1) if columns else jnp.zeros((math.prod(shape), 0), aval.dtype)
        results.append(stacked.reshape(*shape, *aval.shape))
    return results


def _vectors(program: Program, entries: Sequence[Array], *, stack: bool) -> list[Array]:
    """Every number that a program returns, for a batch, from every number that it takes, all of one shape.

    `stack`: whether a loop carries one array for each type, or each number on its own.
    """
    graph, shape = program.graph, entries[0].shape
    values: dict[int, Array] = dict(zip(program.inputs, entries, strict=True))

    def read(value: int) -> Array:
        if value in graph.values:
            return jnp.full(shape, graph.values[value].item(), graph.dtypes[value])
        return values[value]

    def run(scope: int) -> None:
        for value in program.order[scope]:
            op = graph.ops[value]
            if op == "loop":
                loop(graph.loops[value])
            elif op == "convert":
                values[value] = lax.convert_element_type(read(graph.args[value][0]), graph.dtypes[value])
            elif op not in ("input", "constant", "carry", "result"):
                values[value] = _OPERATIONS[op](*map(read, graph.args[value]))

    def loop(found: Loop) -> None:
        carried = sorted({*program.read_inside(found), *program.read_after(found)})
        types = [graph.dtypes[found.initial[i]] for i in carried]

        def body(_: Any, carry: list[Array]) -> list[Array]:
            for i, x in zip(carried, apart(carry), strict=True):
                values[found.carried[i]] = x
            run(found.scope)
            return together([read(found.updated[i]) for i in carried])

        def together(arrays: list[Array]) -> list[Array]:
            return _together(arrays, types) if stack else arrays

        def apart(arrays: list[Array]) -> list[Array]:
            return _apart(arrays, types) if stack else arrays

        inside = set(program.read_inside(found))

        def begin(i: int) -> Array:
            """What no iteration reads need not be computed before the loop, and may not have been."""
            return read(found.initial[i]) if i in inside else jnp.zeros(shape, graph.dtypes[found.initial[i]])

        initial = together([begin(i) for i in carried])
        # Two iterations at once put the carried numbers together half as often.
        unroll = 2 if stack and found.length % 2 == 0 else 1
        final = apart(lax.fori_loop(0, found.length, body, initial, unroll=unroll))
        values.update((found.results[i], x) for i, x in zip(carried, final, strict=True))

    run(0)
    return [read(value) for value in program.outputs]


def _together(arrays: Sequence[Array], types: Sequence[np.dtype]) -> list[Array]:
    """One array for each type."""
    return [
        jnp.stack([array for array, own in zip(arrays, types, strict=True) if own == dtype])
        for dtype in sorted(set(types), key=str)
    ]


def _apart(stacked: Sequence[Array], types: Sequence[np.dtype]) -> list[Array]:
    """What `_together` was given."""
    rows = {dtype: iter(array) for dtype, array in zip(sorted(set(types), key=str), stacked, strict=True)}
    return [next(rows[dtype]) for dtype in types]
