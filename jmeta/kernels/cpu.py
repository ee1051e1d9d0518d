"""A scalar program compiled for this machine's CPU, as a function that XLA calls.

LLVM (through llvmlite) compiles the program and, in the same module, the handler that XLA's foreign function
interface asks for: so no C compiler is needed. The handler takes any batch, `lanes` examples at a time.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jmeta.kernels.graph import Unsupported
from jmeta.kernels.llvm import LIBRARY, Block, memory_type
from jmeta.kernels.program import Program

_MACHINES = ("x86_64", "AMD64", "aarch64", "arm64")
_HEADER = (0, 1)  # the lowest version of XLA's interface that has all that is used

# Offsets in bytes of xla/ffi/api/c_api.h, on 64-bit machines.
_FRAME = {
    "extension": 8,
    "api": 16,
    "stage": 32,
    "num_args": 56,
    "args": 72,
    "num_results": 96,
    "results": 112,
}
_BUFFER = {"dtype": 16, "data": 24, "rank": 32, "dims": 40}
_DTYPES = {"bool": 1, "int32": 4, "int64": 5, "uint32": 8, "float32": 11, "float64": 12}
_CREATE_ERROR = 48
_EXECUTE = 3
_METADATA = 1
_INVALID_ARGUMENT = 3

_engines: list[Any] = []  # what was compiled stays for as long as the process
_registered: set[str] = set()


@functools.cache
def why_not() -> str | None:
    """Why no kernel can be compiled on this machine, or None."""
    if platform.machine() not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return f"{platform.machine()} is none of the processors that kernels are written for"
    try:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.get_host_cpu_features()
        for name in LIBRARY:
            for symbol in (name, f"{name}f"):
                address = ctypes.cast(getattr(ctypes.CDLL(None), symbol), ctypes.c_void_p).value
                llvm.add_symbol(symbol, address)
    except Exception as error:
        return f"llvmlite can't be used ({error})"
    return None


def lanes(program: Program) -> int:
    """Examples side by side: what fits a vector register."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    width = 64 if features.get("avx512f") else 32 if features.get("avx2") else 16
    double = any(program.graph.dtypes[value] == np.float64 for value in program.needed)
    return width // (8 if double else 4)


def register(program: Program) -> str:
    """Compiles a program, or finds it in the cache, and registers it with XLA.

    Returns:
      The name for `jax.ffi.ffi_call`, the arguments and results of which have the same leading axes of a
      batch.

    Raises:
      Unsupported: if an operation is not known for its type, or LLVM can't compile it.
    """
    import llvmlite.binding as llvm

    if reason := why_not():
        raise Unsupported(reason)
    block = Block(program, lanes(program))
    ir = block.ir() + _handler(program, block)
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        features["prefer-256-bit"] = False  # the default of some processors, which would halve every vector
    cpu, features = llvm.get_host_cpu_name(), features.flatten()
    key = hashlib.sha256("\n".join([ir, cpu, features, str(llvm.llvm_version_info)]).encode()).hexdigest()
    name = f"jmeta_{key[:16]}"
    if name in _registered:
        return name
    # As fast as 2, and compiled in half the time.
    target = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=1)
    try:
        code = _cached(key, lambda: _compile(ir, target))
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
    except RuntimeError as error:
        raise Unsupported(f"something that LLVM can't compile ({error})") from error
    address = engine.get_function_address("handler")
    _engines.append(engine)
    jax.devices("cpu")  # a bad handler would break the start of the backend
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.c_void_p(address)), platform="cpu")
    _registered.add(name)
    return name


def _compile(ir: str, target: Any) -> bytes:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(ir)
    module.verify()
    return bytes(target.emit_object(module))


def _cached(key: str, make: Any) -> bytes:
    """What `make` returned when it was called last, from a file beside XLA's own cache."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        return make()
    path = pathlib.Path(folder) / "kernels" / key
    try:
        digest, code = path.read_bytes().split(b"\n", 1)
        if hashlib.sha256(code).hexdigest().encode() == digest:
            return code
    except (OSError, ValueError):
        pass
    code = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
        os.replace(file.name, path)
    except OSError as error:
        logging.getLogger(__name__).warning("a kernel could not be kept in %s: %s", path.parent, error)
    return code


class _Lines:
    """Lines of IR, with names for what they define."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def __call__(self, *lines: str) -> None:
        self.lines += lines

    def let(self, expression: str) -> str:
        self._count += 1
        self.lines.append(f"  %h{self._count} = {expression}")
        return f"%h{self._count}"

    def at(self, pointer: str, offset: int) -> str:
        return self.let(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def field(self, pointer: str, offset: int, kind: str) -> str:
        return self.let(f"load {kind}, ptr {self.at(pointer, offset)}")

    def require(self, condition: str) -> None:
        """Goes on where the condition holds, else to `bad`."""
        self._count += 1
        self.lines += [f"  br i1 {condition}, label %ok{self._count}, label %bad", f"ok{self._count}:"]


def _handler(program: Program, block: Block) -> str:
    """IR of `handler`: checks the call, and for every `lanes` examples copies in, calls `block`, copies out.

    The last block may be ragged: its empty lanes repeat the last example, and are not copied out.
    """
    width = block.lanes
    arrays = (program.input_avals, program.output_avals)
    offsets, sizes = zip(
        *(block.offsets(values) for values in (program.inputs, program.outputs)), strict=True
    )
    emit = _Lines()
    message = "a kernel was called with buffers that it is not for"
    emit(f'@message = private constant [{len(message) + 1} x i8] c"{message}\\00"')
    emit("define ptr @handler(ptr %frame) {", "entry:")
    for name, size in (("in", sizes[0]), ("out", sizes[1])):
        emit(f"  %{name} = alloca [{max(size, 1)} x i8], align 64")
    emit("  %error = alloca [32 x i8], align 8")
    _answer_metadata(emit)
    emit.require(emit.let(f"icmp eq i32 {emit.field('%frame', _FRAME['stage'], 'i32')}, {_EXECUTE}"))
    data: list[list[str]] = []
    first: tuple[str, int] | None = None
    for avals, count, where in zip(arrays, ("num_args", "num_results"), ("args", "results"), strict=True):
        emit.require(emit.let(f"icmp eq i64 {emit.field('%frame', _FRAME[count], 'i64')}, {len(avals)}"))
        pointers = emit.field("%frame", _FRAME[where], "ptr")
        data.append([])
        for i, aval in enumerate(avals):
            buffer = emit.field(pointers, 8 * i, "ptr")
            dtype = emit.field(buffer, _BUFFER["dtype"], "i32")
            emit.require(emit.let(f"icmp eq i32 {dtype}, {_DTYPES[np.dtype(aval.dtype).name]}"))
            data[-1].append(emit.field(buffer, _BUFFER["data"], "ptr"))
            first = first or (buffer, aval.ndim)
    if first is None:
        raise Unsupported("a function without arrays")
    rank, dims = emit.field(first[0], _BUFFER["rank"], "i64"), emit.field(first[0], _BUFFER["dims"], "ptr")
    emit(
        f"  %leading = sub i64 {rank}, {first[1]}",
        "  br label %dims",
        "dims:",
        f"  %axis = phi i64 [ 0, %{_last_label(emit.lines)} ], [ %next_axis, %dim ]",
        f"  %size = phi i64 [ 1, %{_last_label(emit.lines)} ], [ %next_size, %dim ]",
        "  %more_axes = icmp slt i64 %axis, %leading",
        "  br i1 %more_axes, label %dim, label %examples",
        "dim:",
        f"  %dim_at = getelementptr i64, ptr {dims}, i64 %axis",
        "  %length = load i64, ptr %dim_at",
        "  %next_size = mul i64 %size, %length",
        "  %next_axis = add i64 %axis, 1",
        "  br label %dims",
        "examples:",
        "  %last = sub i64 %size, 1",
        "  br label %row",
        "row:",
        "  %start = phi i64 [ 0, %examples ], [ %next_start, %copied ]",
        "  %more_rows = icmp slt i64 %start, %size",
        "  br i1 %more_rows, label %in_lane, label %done",
        "in_lane:",
        "  %lane = phi i64 [ 0, %row ], [ %next_lane, %in_lane ]",
        "  %wanted = add i64 %start, %lane",
        "  %is_inside = icmp slt i64 %wanted, %last",
        "  %example = select i1 %is_inside, i64 %wanted, i64 %last",
    )
    _copy(
        emit, program, program.inputs, arrays[0], data[0], offsets[0], "%in", "%lane", "%example", into=True
    )
    emit(
        "  %next_lane = add i64 %lane, 1",
        f"  %more_lanes = icmp slt i64 %next_lane, {width}",
        "  br i1 %more_lanes, label %in_lane, label %compute",
        "compute:",
        "  call void @block(ptr %in, ptr %out)",
        "  %left = sub i64 %size, %start",
        f"  %is_ragged = icmp slt i64 %left, {width}",
        f"  %filled = select i1 %is_ragged, i64 %left, i64 {width}",
        "  br label %out_lane",
        "out_lane:",
        "  %out_lane_index = phi i64 [ 0, %compute ], [ %next_out_lane, %out_lane ]",
        "  %out_example = add i64 %start, %out_lane_index",
    )
    _copy(
        emit,
        program,
        program.outputs,
        arrays[1],
        data[1],
        offsets[1],
        "%out",
        "%out_lane_index",
        "%out_example",
        into=False,
    )
    emit(
        "  %next_out_lane = add i64 %out_lane_index, 1",
        "  %more_out_lanes = icmp slt i64 %next_out_lane, %filled",
        "  br i1 %more_out_lanes, label %out_lane, label %copied",
        "copied:",
        f"  %next_start = add i64 %start, {width}",
        "  br label %row",
        "done:",
        "  ret ptr null",
        "bad:",
    )
    create = emit.field(emit.field("%frame", _FRAME["api"], "ptr"), _CREATE_ERROR, "ptr")
    for offset, kind, value in (
        (0, "i64", 28),
        (8, "ptr", "null"),
        (16, "ptr", "@message"),
        (24, "i32", _INVALID_ARGUMENT),
    ):
        emit(f"  store {kind} {value}, ptr {emit.at('%error', offset)}")
    emit(f"  ret ptr {emit.let(f'call ptr {create}(ptr %error)')}", "}")
    return "\n".join([*emit.lines, ""])


def _last_label(lines: Sequence[str]) -> str:
    return next(line[:-1] for line in reversed(lines) if line.endswith(":"))


def _answer_metadata(emit: _Lines) -> None:
    """XLA first asks for the version of the interface, in an extension of the frame."""
    extension = emit.field("%frame", _FRAME["extension"], "ptr")
    emit(
        f"  %is_extended = icmp ne ptr {extension}, null",
        "  br i1 %is_extended, label %extended, label %call",
        "extended:",
    )
    emit(
        f"  %asks = icmp eq i32 {emit.field(extension, 8, 'i32')}, {_METADATA}",
        "  br i1 %asks, label %metadata, label %call",
        "metadata:",
    )
    metadata = emit.field(extension, 24, "ptr")
    major, minor = _HEADER
    for offset, kind, value in (
        (8, "i64", 24),
        (16, "ptr", "null"),
        (24, "i32", major),
        (28, "i32", minor),
        (32, "i32", 0),
        (40, "i64", 0),
    ):
        emit(f"  store {kind} {value}, ptr {emit.at(metadata, offset)}")
    emit("  ret ptr null", "call:")


def _copy(
    emit: _Lines,
    program: Program,
    values: Sequence[int],
    avals: Sequence[Any],
    data: Sequence[str],
    offsets: Sequence[int],
    buffer: str,
    lane: str,
    example: str,
    *,
    into: bool,
) -> None:
    """Copies one example between the arrays and its lane of a buffer."""
    entry = 0
    for aval, pointer in zip(avals, data, strict=True):
        if not aval.size:
            continue
        dtype = np.dtype(aval.dtype)
        kind = memory_type(dtype)
        row = emit.let(f"mul i64 {example}, {aval.size}")
        row = emit.let(f"getelementptr {kind}, ptr {pointer}, i64 {row}")
        own = emit.let(f"getelementptr {kind}, ptr {buffer}, i64 {lane}")
        for i in range(aval.size):
            if not into or values[entry] in program.needed:
                array, lanes_ = emit.at(row, i * dtype.itemsize), emit.at(own, offsets[entry])
                source, target = (array, lanes_) if into else (lanes_, array)
                emit(f"  store {kind} {emit.let(f'load {kind}, ptr {source}')}, ptr {target}")
            entry += 1
