"""A function of one robot as one kernel for a batch of them.

Robots are independent. So a whole step of the physics can be a single kernel in which every lane of a vector
simulates a robot of its own, and everything stays in registers: `program.py` expands the function into scalar
operations, `graph.py` simplifies them, `cpu.py` (with `llvm.py`) compiles them for a CPU, and `xla.py` hands
them to XLA for a GPU or a TPU.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from jmeta.kernels import cpu, xla
from jmeta.kernels.graph import Unsupported
from jmeta.kernels.program import Program
from jmeta.kernels.randomness import split_off_randomness
from jmeta.types import Array, PyTree

__all__ = ["one_kernel"]

_log = logging.getLogger(__name__)


def one_kernel(
    fn: Callable[..., PyTree],
    *,
    otherwise: Callable[[Callable[..., PyTree]], Callable[..., PyTree]] = jax.jit,
) -> Callable[..., PyTree]:
    """`fn`, which one kernel computes for a whole batch.

    On a GPU it is a few dozen kernels, which is a fraction of what XLA makes of `fn`.
    Under `jax.vmap`, however often, the examples of all maps are one batch, and arguments that they share are
    copied. The results are those of `fn` up to rounding; a result that is not finite is so here, too. Random
    numbers are drawn as by `fn`, outside the kernel. Its derivative is the plain function's. Which kernel is
    used follows the platform that a program is compiled for. Where there is none (`fn` has an operation that
    `kernels.program` does not know, the processor is unknown, llvmlite is missing), the plain function is
    mapped, and a line of the log says why.

    Args:
      fn: pure; takes and returns pytrees of arrays, small ones, since every entry becomes a scalar. It
        closes over nothing that is traced (mapped, differentiated or an argument of what is compiled) and
        uses no named axis.
      otherwise: on a CPU without a kernel, turns a function into one that is mapped faster, as
        `batch_last` does.

    Returns:
      A compiled function of the same positional arguments. It can't be used inside `jax.shard_map` with
      `check_vma=True`, nor on a mesh with explicit axes.
    """
    steps: dict[Any, tuple[Any, _Step, Any]] = {}

    def bind(*args: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(args)
        key = tree, tuple(jax.typeof(leaf) for leaf in leaves)
        if key not in steps:
            program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
            first, rest = split_off_randomness(program)
            steps[key] = jaxpr_as_fun(first), _Step(rest, otherwise), jax.tree.structure(shapes)
        draw, step, results = steps[key]
        return jax.tree.unflatten(results, _step_p.bind(*draw(*leaves), step=step, axes=0))

    @jax.custom_jvp
    def differentiable(*args: PyTree) -> PyTree:
        return bind(*args)

    @differentiable.defjvp
    def differentiate(primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        return jax.jvp(fn, primals, tangents)

    # Not `fn`'s attributes: where it has rules of its own they would replace these.
    return jax.jit(functools.wraps(fn, updated=())(differentiable))


class _Step:
    """A program of one example, which the primitive below computes for a batch."""

    def __init__(
        self, program: ClosedJaxpr, otherwise: Callable[[Callable[..., PyTree]], Callable[..., PyTree]]
    ) -> None:
        self.program = program
        self.plain = jaxpr_as_fun(program)
        self.otherwise = otherwise(self.plain)

    @functools.cached_property
    def scalars(self) -> Program | None:
        """The program as scalar operations, or None if it has one that is not known."""
        try:
            program = Program(self.program)
        except Unsupported as error:
            _log.info("no kernel for this function, which has %s", error)
            return None
        _log.info("one kernel of %d operations", program.count())
        return program

    @functools.cached_property
    def cpu_target(self) -> str | None:
        """The name under which XLA knows the kernel for a CPU, or None if there is none."""
        if reason := cpu.why_not():
            _log.warning("physics runs without a kernel, several times slower: %s", reason)
            return None
        if self.scalars is None:
            return None
        try:
            return cpu.register(self.scalars)
        except Unsupported as error:
            _log.info("no kernel for this function, which has %s", error)
            return None


_step_p = Primitive("step")
_step_p.multiple_results = True


def _mapped(fn: Callable[..., Any], axes: int) -> Callable[..., Any]:
    for _ in range(axes):
        fn = jax.vmap(fn)
    return fn


@_step_p.def_impl
def _run(*leaves: Array, step: _Step, axes: int) -> Sequence[Array]:
    return _mapped(step.plain, axes)(*leaves)


@_step_p.def_abstract_eval
def _shapes(*leaves: Any, step: _Step, axes: int) -> list[Any]:
    batch = leaves[0].shape[:axes]
    return [aval.update(shape=(*batch, *aval.shape)) for aval in step.program.out_avals]


def _batch(leaves: Sequence[Array], dims: Sequence[Any], *, step: _Step, axes: int) -> Any:
    size = next(leaf.shape[dim] for leaf, dim in zip(leaves, dims, strict=True) if dim is not None)
    first = [
        jnp.broadcast_to(leaf, (size, *leaf.shape)) if dim is None else jnp.moveaxis(leaf, dim, 0)
        for leaf, dim in zip(leaves, dims, strict=True)
    ]
    results = _step_p.bind(*first, step=step, axes=axes + 1)
    return results, [0] * len(results)


def _lower_as(choose: Callable[[_Step, int, Any], Callable[..., Sequence[Array]]]) -> Callable[..., Any]:
    """A rule of a platform: `choose(step, axes, context)` gives the function that XLA compiles."""

    def lower(context: Any, *leaves: Any, step: _Step, axes: int) -> Any:
        fn = choose(step, axes, context)
        return mlir.lower_fun(lambda *arrays: list(fn(*arrays)), multiple_results=True)(context, *leaves)

    return lower


def _plain(step: _Step, axes: int, context: Any) -> Callable[..., Sequence[Array]]:
    return _mapped(step.plain, axes)


def _on_cpu(step: _Step, axes: int, context: Any) -> Callable[..., Sequence[Array]]:
    if step.cpu_target is None:
        return _mapped(step.otherwise, axes)
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in context.avals_out]
    return jax.ffi.ffi_call(step.cpu_target, shapes)


def _on_gpu(step: _Step, axes: int, context: Any) -> Callable[..., Sequence[Array]]:
    if step.scalars is None:
        return _plain(step, axes, context)
    return functools.partial(xla.batched, step.scalars, axes)


def _on_tpu(step: _Step, axes: int, context: Any) -> Callable[..., Sequence[Array]]:
    double = any(aval.dtype.itemsize == 8 for aval in (*context.avals_in, *context.avals_out))
    if double or step.scalars is None:
        return _plain(step, axes, context)
    return functools.partial(xla.in_one_tpu_kernel, step.scalars, axes)


batching.primitive_batchers[_step_p] = _batch
mlir.register_lowering(_step_p, _lower_as(_plain))
for _platform, _choose in {"cpu": _on_cpu, "cuda": _on_gpu, "rocm": _on_gpu, "tpu": _on_tpu}.items():
    mlir.register_lowering(_step_p, _lower_as(_choose), platform=_platform)
