"""Checkpoints: trees of arrays on disk.

A checkpoint is the folder `<iteration>` under the root:

arrays.bin     the arrays one after another, each in C order, as the machine has them in memory
manifest.json  their names, dtypes, shapes and SHA-256 checksums, and a checksum of all of that

It is written under a temporary name, synchronized and renamed, and it is renamed again before it is removed.
So an entry with the name of an iteration is whole, unless it was damaged later. The tree that is to be
restored says what is read, never the files, which must agree with it: nothing in them is executed, and their
sizes are compared before anything is read. Of several processes the first one writes, and each reads for
itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Collection
from typing import Any, BinaryIO

import jax
import numpy as np

from jmeta.runs import files
from jmeta.types import PyTree

_FORMAT = 1
_KEPT = 3
_ARRAY = (jax.Array, jax.ShapeDtypeStruct)
_ITERATION = re.compile(r"0|[1-9][0-9]{0,9}")
_TEMPORARY = "tmp-"


class DamagedRunError(ValueError):
    """Something in a run folder is not as it was written."""


def save(root: pathlib.Path, iteration: int, tree: PyTree, keep: Collection[int] = ()) -> None:
    """Writes a checkpoint, and removes those that are no longer needed.

    The last three and those in `keep` stay. Checkpoints of later iterations do not: they were passed over
    when the run went on from an earlier one.

    Args:
      root: the folder of the checkpoints.
      iteration: meta-iterations done.
      tree: of arrays, typed keys and Python numbers; every process calls with its own.
      keep: iterations whose checkpoints stay, however old or new they are.

    Raises:
      OSError: the checkpoint cannot be written. The others are as they were.
    """
    names, leaves, _ = _flatten(tree)  # a program of all processes, where keys lie on the devices of all
    if jax.process_index() > 0:
        return
    root.mkdir(parents=True, exist_ok=True)
    files.sync_folder(root.parent)
    for entry in files.entries(root):
        if entry.name.startswith(_TEMPORARY):  # left by a process that was killed
            _delete(pathlib.Path(entry.path))
    temporary = _temporary(root)
    try:
        temporary.mkdir()
        _write(temporary, iteration, names, [np.asarray(leaf) for leaf in jax.device_get(leaves)])
        _discard(root, iteration)
        os.replace(temporary, root / str(iteration))
    except BaseException:
        _delete(temporary)
        raise
    files.sync_folder(root)
    there = iterations(root)
    last = [other for other in there if other <= iteration][-_KEPT:]
    for other in set(there) - {*last, *keep}:
        _discard(root, other)


def restore(root: pathlib.Path, iteration: int, like: PyTree) -> PyTree:
    """Reads a checkpoint, bit for bit.

    Args:
      root: the folder of the checkpoints.
      iteration: one of `iterations`.
      like: a tree of the structure, shapes and dtypes of the one that was saved, on the devices to restore
        to; `jax.ShapeDtypeStruct`s will do, for the default device.

    Raises:
      DamagedRunError: the checkpoint is damaged or holds another kind of tree.
    """
    path = root / str(iteration)
    names, leaves, treedef = _flatten(like)
    expected = [_describe(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    try:
        found = _manifest(path, iteration)
    except (OSError, ValueError) as error:
        reason = f"manifest.json: {files.reason(error)}"
        raise DamagedRunError(f"checkpoint {iteration} is damaged: {reason}") from error
    for one, other in itertools.zip_longest(expected, found):
        described = None if other is None else {key: other[key] for key in other if key != "sha256"}
        if described != one:
            difference = f"it has {_words(described)}, the run has {_words(one)}"
            raise DamagedRunError(
                f"checkpoint {iteration} does not belong to this run's configuration: {difference}"
            )
    try:
        arrays = _read(path / "arrays.bin", [_host_shape(leaf) for leaf in leaves], found)
    except (OSError, ValueError) as error:
        reason = f"arrays.bin: {files.reason(error)}"
        raise DamagedRunError(f"checkpoint {iteration} is damaged: {reason}") from error
    return treedef.unflatten(map(_like, jax.tree.leaves(like), arrays))


def iterations(root: pathlib.Path) -> list[int]:
    """The iterations of the checkpoints there are, ascending; OSError if `root` is no folder."""
    return sorted(int(entry.name) for entry in files.entries(root) if _ITERATION.fullmatch(entry.name))


# -- the files ----------------------------------------------------------------------------------------


def _write(folder: pathlib.Path, iteration: int, names: list[str], arrays: list[np.ndarray]) -> None:
    described = []
    with (folder / "arrays.bin").open("xb") as file:
        for name, array in zip(names, arrays, strict=True):
            data = _bytes(np.ascontiguousarray(array))
            file.write(data)
            described.append({**_describe(name, array), "sha256": hashlib.sha256(data).hexdigest()})
        files.sync(file)
    content = {"format": _FORMAT, "iteration": iteration, "arrays": described}
    files.write_json(folder / "manifest.json", {**content, "sha256": _checksum(content)})


def _manifest(folder: pathlib.Path, iteration: int) -> list[dict[str, Any]]:
    """The descriptions of the arrays of a checkpoint; OSError or ValueError if its manifest is damaged."""
    manifest = files.parse_json(files.read_text(folder / "manifest.json"))
    if not isinstance(manifest, dict):
        raise ValueError("is not the manifest of a checkpoint")
    checksum = manifest.pop("sha256", None)
    if checksum != _checksum(manifest):
        raise ValueError("its checksum is another")
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"its format is {manifest.get('format')}, this version of jmeta reads {_FORMAT}")
    if manifest.get("iteration") != iteration:
        raise ValueError(f"it is that of iteration {manifest.get('iteration')}")
    arrays = manifest.get("arrays")
    if not isinstance(arrays, list) or not all(isinstance(one, dict) and "sha256" in one for one in arrays):
        raise ValueError("it does not describe arrays")
    return arrays


def _read(
    path: pathlib.Path, shapes: list[tuple[tuple[int, ...], np.dtype]], described: list[dict[str, Any]]
) -> list[np.ndarray]:
    with files.open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        expected = sum(int(np.prod(shape, dtype=object)) * dtype.itemsize for shape, dtype in shapes)
        if size != expected:
            raise ValueError(f"it has {size} bytes instead of {expected}")
        return [
            _read_one(file, shape, dtype, one) for (shape, dtype), one in zip(shapes, described, strict=True)
        ]


def _read_one(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, described: dict[str, Any]
) -> np.ndarray:
    array = np.empty(shape, dtype)
    data = _bytes(array)
    if file.readinto(data) != data.nbytes:  # type: ignore[attr-defined]
        raise ValueError("it became shorter while it was read")
    if hashlib.sha256(data).hexdigest() != described["sha256"]:
        raise ValueError(f"the checksum of {described['name'] or 'its array'} is another")
    return array


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _temporary(root: pathlib.Path) -> pathlib.Path:
    return root / f"{_TEMPORARY}{secrets.token_hex(4)}"


def _discard(root: pathlib.Path, iteration: int) -> None:
    """Removes a checkpoint, whatever is in its place, so that it is there as a whole until it is not."""
    path = root / str(iteration)
    if os.path.lexists(path):
        gone = _temporary(root)
        os.replace(path, gone)
        _delete(gone)


def _delete(path: pathlib.Path) -> None:
    """Deletes a file, a link or a folder as far as possible; the next `save` tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# -- the trees ----------------------------------------------------------------------------------------


def _is_key(leaf: Any) -> bool:
    """Whether a leaf is a key or the shape of one."""
    return isinstance(leaf, _ARRAY) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(key: Any) -> Any:
    """The numbers of a key; of the shape of one, theirs."""
    is_shape = isinstance(key, jax.ShapeDtypeStruct)
    return jax.eval_shape(jax.random.key_data, key) if is_shape else jax.random.key_data(key)


def _flatten(tree: PyTree) -> tuple[list[str], list[Any], Any]:
    """Names, leaves with keys as their numbers, and the structure of a tree."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    return names, [_numbers(x) if _is_key(x) else x for _, x in paths], treedef


def _host_shape(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype of a leaf as an array of NumPy."""
    array = leaf if isinstance(leaf, _ARRAY) else np.asarray(leaf)
    return tuple(array.shape), np.dtype(array.dtype)


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    """A leaf as the manifest has it, without its checksum."""
    shape, dtype = _host_shape(leaf)
    return {"name": name, "dtype": str(dtype), "shape": list(shape)}


def _words(described: dict[str, Any] | None) -> str:
    if described is None:
        return "nothing"
    name, dtype, shape = (described.get(key) for key in ("name", "dtype", "shape"))
    return f"{name} {dtype}{shape}".strip()


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The saved array as the kind of leaf, and where, that `leaf` is."""
    if _is_key(leaf):
        impl = jax.random.key_impl(jax.numpy.empty((), leaf.dtype))  # `leaf` may be a shape
        key = jax.random.wrap_key_data(jax.numpy.asarray(array), impl=impl)
        return jax.device_put(key, leaf.sharding)
    if isinstance(leaf, _ARRAY):
        return jax.device_put(array, leaf.sharding)
    return array if isinstance(leaf, np.ndarray) else type(leaf)(array)
