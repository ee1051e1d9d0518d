"""Maps a function with the batch in the last axis of every array, as a CPU's vector units want it.

`jax.vmap` puts the batch first. A robot's arrays then end in axes of three or four numbers, and XLA's loops
over those fill no vector register; with the batch last the same physics runs up to three times as fast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, Literal

from jmeta.kernels.program import CALLS
from jmeta.types import Array, PyTree


def batch_last(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn`, which `jax.vmap` maps with the batch in the last axis of the arrays inside.

    Nested maps become one; an argument that is shared by the examples is copied for each. The results are
    those of the plain function up to rounding. Its derivative is the plain function's, mapped as usual.

    Args:
      fn: pure; takes and returns pytrees of arrays. It closes over nothing that is traced (mapped,
        differentiated or an argument of what is compiled) and uses no named axis.

    Returns:
      A compiled function of the same positional arguments. It can't be used inside `jax.shard_map` with
      `check_vma=True`, nor on a mesh with explicit axes.
    """

    @custom_vmap
    def one(*args: PyTree) -> PyTree:
        return fn(*args)

    last = jax.jit(functools.partial(_map_last, fn))  # interpreted once for every use with the same shapes

    @custom_vmap
    def many(*args: PyTree) -> PyTree:
        return last(*args)

    @one.def_vmap
    def map_one(size: int, batched: Sequence[PyTree], *args: PyTree) -> tuple[PyTree, PyTree]:
        results = many(*_broadcast(size, batched, args))
        return results, jax.tree.map(lambda _: True, results)

    @many.def_vmap
    def map_many(size: int, batched: Sequence[PyTree], *args: PyTree) -> tuple[PyTree, PyTree]:
        args = _broadcast(size, batched, args)
        inner = jax.tree.leaves(args)[0].shape[1]
        results = many(*jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), args))
        results = jax.tree.map(lambda x: x.reshape(size, inner, *x.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    @jax.custom_jvp
    def differentiable(*args: PyTree) -> PyTree:
        return one(*args)

    @differentiable.defjvp
    def differentiate(primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        return jax.jvp(fn, primals, tangents)  # `custom_vmap` has no reverse mode

    # Not `fn`'s attributes: where it has rules of its own they would replace these.
    return jax.jit(functools.wraps(fn, updated=())(differentiable))


def _broadcast(size: int, batched: Sequence[PyTree], args: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    def broadcast(x: Array, is_batched: bool) -> Array:
        return x if is_batched else jnp.broadcast_to(x, (size, *jnp.shape(x)))

    return jax.tree.map(broadcast, args, tuple(batched))


def _map_last(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`jax.vmap(fn)(*args)`."""
    leaves = jax.tree.leaves(args)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, weak_type=x.aval.weak_type), args)
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*one)
    size = leaves[0].shape[0]
    results = _run(program, [_Batched(jnp.moveaxis(x, 0, -1)) for x in leaves], size)
    first = [jnp.moveaxis(_with_batch(value, size), -1, 0) for value in results]
    return jax.tree.unflatten(jax.tree.structure(shapes), first)


class _Batched(NamedTuple):
    """A value of every example; what depends on no argument is a plain array instead."""

    array: Array  # [..., B]


def _with_batch(value: Any, size: int) -> Array:
    if isinstance(value, _Batched):
        return value.array
    shape = jnp.shape(value)
    return jax.lax.broadcast_in_dim(value, (*shape, size), range(len(shape)))


def _run(program: ClosedJaxpr, args: Sequence[Any], size: int) -> list[Any]:
    """The results, for `size` examples, of a program of one."""
    jaxpr = program.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *args], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = _equation(equation, [read(variable) for variable in equation.invars], size)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _equation(equation: Any, args: list[Any], size: int) -> list[Any]:
    """The results of one operation, each batched if an argument is."""
    name, params = equation.primitive.name, equation.params
    batched = [isinstance(value, _Batched) for value in args]
    if name in CALLS:
        return _run(params[CALLS[name]], args, size)

    def bind(*arrays: Array, **changed: Any) -> list[Array]:
        results = equation.primitive.bind(*arrays, **{**params, **changed})
        return list(results) if equation.primitive.multiple_results else [results]

    if not any(batched):
        return bind(*args)
    if name == "scan":
        results = _scan(params, args, size)
    elif name == "dot_general" and _is_short(equation):
        x, y = [_with_batch(value, size).astype(equation.outvars[0].aval.dtype) for value in args]
        results = [_dot(x, y, params["dimension_numbers"])]
    elif name == "reduce_sum":
        results = [_sum(args[0].array, params["axes"])]
    elif name in _ELEMENTWISE:
        results = bind(*[_aligned(value, equation.outvars[0].aval.shape, size) for value in args])
    elif name in _BY_AXIS:
        results = bind(*[_with_batch(value, size) for value in args])
    elif name in _ONE_MORE_AXIS:
        results = bind(*[_with_batch(value, size) for value in args], **_ONE_MORE_AXIS[name](params, size))
    elif name in _INDEXED and not batched[1]:
        operand, indices, *updates = args
        arrays = [_with_batch(operand, size), indices, *[_with_batch(value, size) for value in updates]]
        results = bind(*arrays, **_INDEXED[name](params, size, equation))
    else:
        results = _as_vmap(bind, args)
    return [_Batched(array) for array in results]


def _as_vmap(bind: Callable[..., list[Array]], args: list[Any]) -> list[Array]:
    """Any other operation: right, but inside it the batch is wherever `jax.vmap` puts it."""
    arrays = [value.array if isinstance(value, _Batched) else value for value in args]
    axes = [-1 if isinstance(value, _Batched) else None for value in args]
    return jax.vmap(bind, in_axes=axes, out_axes=-1)(*arrays)


def _aligned(value: Any, shape: tuple[int, ...], size: int) -> Array:
    """The value in the shape of the result: operands may be scalars."""
    array = _with_batch(value, size)
    if array.shape == (*shape, size):
        return array
    return jax.lax.broadcast_in_dim(array, (*shape, size), range(len(shape) + 1 - array.ndim, len(shape) + 1))


def _is_short(equation: Any) -> bool:
    """Whether a product of matrices has few terms to sum, of types that need no wider one to sum them in."""
    (summed, _), _ = equation.params["dimension_numbers"]
    shape, dtype = equation.invars[0].aval.shape, equation.outvars[0].aval.dtype
    half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return not half and math.prod(shape[axis] for axis in summed) <= _SHORT


def _dot(x: Array, y: Array, numbers: Any) -> Array:
    """A product of tiny matrices as products and sums, which XLA fuses with what stands around them."""
    (x_summed, y_summed), (x_batch, y_batch) = numbers
    x_free = [axis for axis in range(x.ndim - 1) if axis not in (*x_batch, *x_summed)]
    y_free = [axis for axis in range(y.ndim - 1) if axis not in (*y_batch, *y_summed)]
    x = jax.lax.transpose(x, (*x_batch, *x_free, *x_summed, x.ndim - 1))
    y = jax.lax.transpose(y, (*y_batch, *y_free, *y_summed, y.ndim - 1))
    end = len(x_batch) + len(x_free) + len(y_free)
    x = jax.lax.expand_dims(x, range(end - len(y_free), end))
    y = jax.lax.expand_dims(y, range(len(y_batch), len(y_batch) + len(x_free)))
    return _sum(x * y, range(end, end + len(x_summed)))


def _sum(x: Array, axes: Sequence[int]) -> Array:
    """Over short axes term by term: XLA would hand a reduction to a library, and fuse it with nothing."""
    for axis in sorted(axes, reverse=True):
        if 0 < x.shape[axis] <= _SHORT:
            terms = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
            x = functools.reduce(jnp.add, terms[1:], terms[0])
        else:
            x = jax.lax.reduce_sum(x, (axis,))
    return x


def _scan(params: dict[str, Any], args: list[Any], size: int) -> list[Array]:
    start = params["num_consts"]
    end = start + params["num_carry"]
    consts, inputs = args[:start], args[end:]

    def body(carry: list[Array], arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        one = [_Batched(x) if isinstance(v, _Batched) else x for v, x in zip(inputs, arrays, strict=True)]
        results = _run(params["jaxpr"], [*consts, *[_Batched(x) for x in carry], *one], size)
        results = [_with_batch(value, size) for value in results]
        return results[: len(carry)], results[len(carry) :]

    carry, outputs = jax.lax.scan(
        body,
        [_with_batch(value, size) for value in args[start:end]],
        [value.array if isinstance(value, _Batched) else value for value in inputs],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *outputs]


_SHORT = 8  # terms
# fmt: off
# An entry of the result depends on the same entry of each operand.
_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt",
    "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "exp", "exp2",
    "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max",
    "min", "mul", "ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "sub", "tan", "tanh", "xor",
}
# Axes are counted from the first: one more at the end changes nothing.
_BY_AXIS = {
    "argmax", "argmin", "concatenate", "cummax", "cummin", "cumprod", "cumsum", "reduce_and", "reduce_max",
    "reduce_min", "reduce_or", "reduce_prod", "rev", "split", "squeeze", "stack", "unstack",
}
# fmt: on
# Changes of the parameters for one more axis at the end.
_ONE_MORE_AXIS: dict[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    "broadcast_in_dim": lambda params, size: {
        "shape": (*params["shape"], size),
        "broadcast_dimensions": (*params["broadcast_dimensions"], len(params["shape"])),
    },
    "reshape": lambda params, size: {
        "new_sizes": (*params["new_sizes"], size),
        "dimensions": params["dimensions"] and (*params["dimensions"], len(params["dimensions"])),
    },
    "slice": lambda params, size: {
        "start_indices": (*params["start_indices"], 0),
        "limit_indices": (*params["limit_indices"], size),
        "strides": params["strides"] and (*params["strides"], 1),
    },
    "tile": lambda params, size: {"reps": (*params["reps"], 1)},
    "transpose": lambda params, size: {"permutation": (*params["permutation"], len(params["permutation"]))},
}


def _scatter(params: dict[str, Any], size: int, equation: Any) -> dict[str, Any]:
    numbers = params["dimension_numbers"]
    window = (*numbers.update_window_dims, equation.invars[2].aval.ndim)
    return {"dimension_numbers": numbers._replace(update_window_dims=window)}


# The same where the second argument holds indices, the same for every example.
_INDEXED: dict[str, Callable[[dict[str, Any], int, Any], dict[str, Any]]] = {
    "gather": lambda params, size, equation: {
        "dimension_numbers": params["dimension_numbers"]._replace(
            offset_dims=(*params["dimension_numbers"].offset_dims, equation.outvars[0].aval.ndim)
        ),
        "slice_sizes": (*params["slice_sizes"], size),
    },
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter-mul": _scatter,
}
