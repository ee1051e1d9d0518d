"""Checkpoints: trees of arrays on disk. The only importer of orbax.

A checkpoint is the folder `<iteration>` under the root. It is written under a temporary name and renamed when
whole, so a process killed at any moment leaves complete checkpoints and, at most, a temporary that is ignored
and removed by the next `save`. Orbax writes the arrays; what is complete is decided here. Of several
processes the first one writes, and each reads for itself.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from jmeta.types import PyTree

_KEEP = 3
_ARRAY = (jax.Array, jax.ShapeDtypeStruct)
_MANIFEST = "manifest.json"  # written last: its presence means that everything else was


class DamagedRunError(ValueError):
    """Something in a run folder is not as it was written."""


def save(root: pathlib.Path, iteration: int, tree: PyTree) -> None:
    """Writes a checkpoint and removes all but the last three.

    Args:
      root: the folder of the checkpoints.
      iteration: meta-iterations done.
      tree: of arrays, typed keys and Python numbers; every process calls with its own.
    """
    names, leaves, _ = _flatten(tree)  # a program of all processes, where keys lie on the devices of all
    if jax.process_index() > 0:
        return
    temporary, final = root / f"tmp-{iteration}", root / str(iteration)
    _remove(temporary)
    arrays = [np.asarray(leaf) for leaf in jax.device_get(leaves)]
    _orbax().save(temporary.absolute(), {str(i): array for i, array in enumerate(arrays)})
    (temporary / _MANIFEST).write_text(json.dumps(_manifest(names, arrays)), encoding="utf-8")
    _remove(final)
    os.replace(temporary, final)
    kept = {str(done) for done in _complete(root)[-_KEEP:]}
    for entry in root.iterdir():
        ours = entry.name.isdecimal() or entry.name.startswith("tmp-")
        if ours and entry.name not in kept:
            _remove(entry)


def restore(root: pathlib.Path, iteration: int, like: PyTree) -> PyTree:
    """Reads a checkpoint, bit for bit.

    Args:
      root: the folder of the checkpoints.
      iteration: one that `latest` returned.
      like: a tree of the structure, shapes and dtypes of the one that was saved, on the devices to restore
        to; `jax.ShapeDtypeStruct`s will do, for the default device.

    Raises:
      DamagedRunError: if the checkpoint is damaged or holds another kind of tree.
    """
    path = root / str(iteration)
    names, leaves, treedef = _flatten(like)
    expected = _manifest(names, leaves)
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        found = _orbax().restore(path.absolute())
        arrays = [np.asarray(found[str(i)]) for i in range(len(manifest))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedRunError(f"checkpoint {iteration} is damaged") from error
    if manifest != expected:
        differing = next(a or b for a, b in itertools.zip_longest(manifest, expected) if a != b)
        raise DamagedRunError(f"checkpoint {iteration} is not of this run's configuration: {differing}")
    return treedef.unflatten(map(_like, jax.tree.leaves(like), arrays))


def latest(root: pathlib.Path) -> int | None:
    """The iteration of the last complete checkpoint; None if there is none."""
    return max(_complete(root), default=None)


def _complete(root: pathlib.Path) -> list[int]:
    """The iterations of the complete checkpoints, ascending."""
    if not root.is_dir():
        return []
    return sorted(int(e.name) for e in root.iterdir() if e.name.isdecimal() and (e / _MANIFEST).is_file())


def _remove(path: pathlib.Path) -> None:
    """Removes a folder, its manifest first: killed half way, the rest counts as incomplete."""
    if path.is_dir():
        (path / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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


def _manifest(names: list[str], leaves: list[Any]) -> list[list[Any]]:
    """[name, dtype, shape] of every leaf."""
    arrays = (leaf if isinstance(leaf, _ARRAY) else np.asarray(leaf) for leaf in leaves)
    return [[name, str(x.dtype), list(x.shape)] for name, x in zip(names, arrays, strict=True)]


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The saved array as the kind of leaf, and where, that `leaf` is."""
    if _is_key(leaf):
        impl = jax.random.key_impl(jax.numpy.empty((), leaf.dtype))  # `leaf` may be a shape
        key = jax.random.wrap_key_data(jax.numpy.asarray(array), impl=impl)
        return jax.device_put(key, leaf.sharding)
    if isinstance(leaf, _ARRAY):
        return jax.device_put(array, leaf.sharding)
    return array if isinstance(leaf, np.ndarray) else type(leaf)(array)


@functools.cache
def _orbax() -> Any:
    """Orbax's synchronous checkpointer, which waits for no other process; imported when first needed."""
    import orbax.checkpoint as ocp

    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
