"""Runs a per-task function over a batch of tasks: the only code that knows blocks and devices.

The batch is sharded over the devices of the mesh that is set (`jax.set_mesh(task_mesh())`, or none: one
device) and, within a device, scanned in blocks of tasks that are vmapped. Blocks bound the memory in use
and, on a CPU, keep the working set in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jmeta.checks import at_least
from jmeta.types import Array, Key, Params, PyTree

AXIS = "tasks"
_CPU_BLOCK_EPISODES = 64  # environments that stay in a core's cache while they step side by side


def task_mesh(devices: list[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all) whose axis is the batch of tasks."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places `tree` on every device of `mesh`, as a sharded update returns its state.

    Without this the second call of a jitted update sees other shardings than the first, and compiles again.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.jit(lambda tree: tree, out_shardings=sharding)(tree)  # `device_put` takes no keys here


def agree(number: int) -> None:
    """Waits for the other processes; raises RuntimeError unless all have the same number."""
    mesh = task_mesh()
    own = np.full(mesh.local_mesh.size, number, np.int32)
    numbers = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), own)
    low, high = jax.jit(lambda x: (x.min(), x.max()))(numbers)
    if low != high:
        raise RuntimeError(f"the processes do not agree: one has {low}, another {high}")


def num_devices() -> int:
    """Devices that share a batch of tasks under the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[AXIS]


def check_divisible(num_tasks: int, devices: int, minibatches: int = 1) -> None:
    """Raises ValueError unless every device has as many tasks, and each in so many minibatches."""
    if num_tasks < 1 or num_tasks % (devices * minibatches):
        among = f"the {devices} devices that share them"
        if minibatches > 1:
            among = f"{devices * minibatches}, for {devices} devices and {minibatches} minibatches"
        raise ValueError(f"tasks must be a positive multiple of {among}, got {num_tasks}")


def tasks_per_block(num_episodes: int, chosen: int | None = None) -> int | None:
    """The block that was chosen, or else on a CPU as many tasks as keep 64 episodes in cache.

    Args:
      num_episodes: episodes that one task steps side by side.
      chosen: tasks; None chooses by platform.

    Returns:
      Tasks that a device runs side by side; None means all of its tasks.

    Raises:
      ValueError: if the chosen block is not positive.
    """
    if chosen is not None:
        at_least(1, tasks_per_block=chosen)
        return chosen
    return max(1, _CPU_BLOCK_EPISODES // num_episodes) if jax.default_backend() == "cpu" else None


def task_keys(key: Key, num_tasks: int) -> Key:
    """One key a task [B], folded in by its global index: the same on any number of devices."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_tasks))


def map_tasks(
    fn: Callable[..., PyTree], params: Params, *per_task: PyTree, block: int | None = None
) -> PyTree:
    """`fn(params, *one_task)` for every task.

    Args:
      fn: written for ONE task.
      params: the same for every task.
      *per_task: pytrees with leading axis [B].
      block: tasks vmapped at a time on a device, the others scanned; None means all.

    Returns:
      The results, leading axis [B].
    """

    def local(params: Params, *per_task: PyTree) -> PyTree:
        blocks, size = _split(per_task, block)
        results = jax.lax.map(lambda one_block: _vmap_block(fn, params, one_block, size), blocks)
        return jax.tree.map(lambda x: x.reshape(x.shape[0] * size, *x.shape[2:]), results)

    return _sharded(local, PartitionSpec(AXIS))(params, *per_task)


def mean_over_tasks(
    fn: Callable[..., PyTree], params: Params, *per_task: PyTree, block: int | None = None
) -> PyTree:
    """Mean over the tasks of `fn(params, *one_task)`, accumulated block by block.

    Take gradients inside: `mean_over_tasks(jax.value_and_grad(loss), ...)` holds one block's residuals at
    a time, differentiating through the mean would hold every task's.

    Args:
      fn: written for ONE task; returns a pytree of floats.
      params: the same for every task.
      *per_task: pytrees with leading axis [B].
      block: tasks vmapped at a time on a device, the others scanned; None means all.

    Returns:
      The mean, shaped as one task's result.
    """

    def block_sum(params: Params, one_block: PyTree, size: int) -> PyTree:
        return jax.tree.map(lambda x: x.sum(0), _vmap_block(fn, params, one_block, size))

    return _mean(block_sum, params, per_task, block)


def value_and_grad_over_tasks(
    loss: Callable[..., tuple[Array, PyTree]], params: Params, *per_task: PyTree, block: int | None = None
) -> tuple[tuple[Array, PyTree], Params]:
    """Mean over the tasks of `loss(params, *one_task)`, and its gradient.

    As `mean_over_tasks(jax.value_and_grad(loss, has_aux=True), ...)`, but a block has one gradient: that of
    a weight is one product over the block's tasks, not a product for each and a sum.

    Args:
      loss: written for ONE task; returns a scalar and a pytree of floats.
      params: the same for every task.
      *per_task: pytrees with leading axis [B].
      block: tasks vmapped at a time on a device, the others scanned; None means all.

    Returns:
      The mean loss and the mean pytree, and the gradient of the mean loss.
    """

    def block_sum(params: Params, one_block: PyTree, size: int) -> PyTree:
        def total(params: Params) -> tuple[Array, PyTree]:
            value, beside = _vmap_block(loss, params, one_block, size)
            return value.sum(), jax.tree.map(lambda x: x.sum(0), beside)

        return jax.value_and_grad(total, has_aux=True)(params)

    return _mean(block_sum, params, per_task, block)


def _mean(
    block_sum: Callable[[Params, PyTree, int], PyTree],
    params: Params,
    per_task: tuple[PyTree, ...],
    block: int | None,
) -> PyTree:
    """`block_sum(params, one_block, size)` over all blocks and devices, divided by the tasks."""
    num_tasks = jax.tree.leaves(per_task)[0].shape[0]
    devices = num_devices()

    def local(params: Params, *per_task: PyTree) -> PyTree:
        blocks, size = _split(per_task, block)
        first = jax.tree.map(lambda x: x[0], blocks)
        shapes = jax.eval_shape(lambda one_block: block_sum(params, one_block, size), first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total: PyTree, one_block: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, block_sum(params, one_block, size)), None

        total, _ = jax.lax.scan(add, zeros, blocks)
        if devices > 1:
            total = jax.lax.psum(total, AXIS)
        return jax.tree.map(lambda x: x / num_tasks, total)

    return _sharded(local, PartitionSpec())(params, *per_task)


def _sharded(local: Callable[..., PyTree], out_spec: PartitionSpec) -> Callable[..., PyTree]:
    """`local(params, *per_task)` on each device's share of the tasks."""
    devices = num_devices()

    def call(params: Params, *per_task: PyTree) -> PyTree:
        check_divisible(jax.tree.leaves(per_task)[0].shape[0], devices)
        if devices == 1:
            return local(params, *per_task)
        in_specs = (PartitionSpec(), *(PartitionSpec(AXIS) for _ in per_task))
        return jax.shard_map(local, in_specs=in_specs, out_specs=out_spec, check_vma=False)(params, *per_task)

    return call


def _split(per_task: PyTree, block: int | None) -> tuple[PyTree, int]:
    """[tasks, ...] -> [blocks, size, ...], `size` the largest divisor of the tasks up to `block`.

    A divisor, because a remainder would compile the function twice.
    """
    num_tasks = jax.tree.leaves(per_task)[0].shape[0]
    limit = num_tasks if block is None else min(block, num_tasks)
    size = next(s for s in range(limit, 0, -1) if num_tasks % s == 0)
    return jax.tree.map(lambda x: x.reshape(num_tasks // size, size, *x.shape[1:]), per_task), size


def _vmap_block(fn: Callable[..., PyTree], params: Params, one_block: PyTree, size: int) -> PyTree:
    if size == 1:  # no batch axis of one: it would slow down every small matrix product
        result = fn(params, *jax.tree.map(lambda x: x[0], one_block))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)
    return jax.vmap(lambda *task: fn(params, *task))(*one_block)
