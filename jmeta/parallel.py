"""Runs a per-task function over a batch of tasks: the only code that knows blocks and devices.

The batch is sharded over the devices of the mesh that is set (`jax.set_mesh(task_mesh())`, or none: one
device) and, within a device, scanned in blocks of tasks that are vmapped. Blocks bound the memory in use
and, on a CPU, keep the working set in the cache. Any number of tasks runs on any number of devices: where
they do not divide evenly, the batch is filled up with copies of its first tasks, whose results are dropped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jmeta.checks import at_least
from jmeta.types import Array, Key, Params, PyTree

AXIS = "tasks"
# The largest number of tasks that a device runs side by side, or what gives it; None means all of its tasks.
Block = int | Callable[[], int | None] | None
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
    low, high = _extremes(number)
    if low != high:
        raise RuntimeError(f"the processes do not agree: one has {low}, another {high}")


def any_process(flag: bool) -> bool:
    """Whether any process says so. If there are several, each asks, and waits for the others."""
    return flag if jax.process_count() == 1 else bool(_extremes(flag)[1])


def _extremes(number: int) -> tuple[Array, Array]:
    """The smallest and the largest number that any process has."""
    mesh = task_mesh()
    own = np.full(mesh.local_mesh.size, number, np.int32)
    numbers = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), own)
    return _min_and_max(numbers)


@jax.jit
def _min_and_max(numbers: Array) -> tuple[Array, Array]:
    return numbers.min(), numbers.max()


def num_devices() -> int:
    """Devices that share a batch of tasks under the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[AXIS]


def platform() -> str:
    """The platform of the devices of the mesh that is set, or else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def tasks_per_block(num_episodes: int, chosen: int | None = None) -> Block:
    """The block that was chosen, or else on a CPU as many tasks as keep 64 episodes in cache.

    Args:
      num_episodes: episodes that one task steps side by side.
      chosen: tasks; None chooses by platform, when a program is traced.

    Raises:
      ValueError: if the chosen block is not positive.
    """
    if chosen is not None:
        at_least(1, tasks_per_block=chosen)
        return chosen
    return lambda: max(1, _CPU_BLOCK_EPISODES // num_episodes) if platform() == "cpu" else None


def block_size(block: Block) -> int | None:
    """Tasks that a device runs side by side; None means all of its tasks."""
    return block() if callable(block) else block


def task_keys(key: Key, num_tasks: int) -> Key:
    """One key a task [B], folded in by its global index: the same on any number of devices."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_tasks))


def map_tasks(fn: Callable[..., PyTree], params: Params, *per_task: PyTree, block: Block = None) -> PyTree:
    """`fn(params, *one_task)` for every task.

    Args:
      fn: written for ONE task.
      params: the same for every task.
      *per_task: pytrees with leading axis [B].
      block: the largest number of tasks that a device runs side by side; None means all of its tasks.

    Returns:
      The results, leading axis [B].
    """
    layout = _layout(per_task, block)

    def local(params: Params, *per_task: PyTree) -> PyTree:
        results = jax.lax.map(
            lambda one_block: _vmap_block(fn, params, one_block, layout.size), layout.blocks(per_task)
        )
        return jax.tree.map(lambda x: x.reshape(x.shape[0] * layout.size, *x.shape[2:]), results)

    results = _sharded(local, PartitionSpec(AXIS))(params, *layout.fill(per_task))
    return jax.tree.map(lambda x: x[: layout.num_tasks], results) if layout.is_padded else results


def mean_over_tasks(
    fn: Callable[..., PyTree],
    params: Params,
    *per_task: PyTree,
    weight: Array | None = None,
    block: Block = None,
) -> PyTree:
    """Mean over the tasks of `fn(params, *one_task)`, accumulated block by block.

    Take gradients inside: `mean_over_tasks(jax.value_and_grad(loss), ...)` holds one block's residuals at
    a time, differentiating through the mean would hold every task's.

    Args:
      fn: written for ONE task; returns a pytree of floats.
      params: the same for every task.
      *per_task: pytrees with leading axis [B].
      weight: [B], the weight of each task in the mean, not negative; None gives all the same. The result of a
        task of weight 0 has no influence, even if it is not finite. Weights that are all 0 have no mean: NaN.
      block: the largest number of tasks that a device runs side by side; None means all of its tasks.

    Returns:
      The mean, shaped as one task's result.
    """

    def block_sum(params: Params, weight: Array | None, one_block: PyTree, size: int) -> PyTree:
        results = _vmap_block(fn, params, one_block, size)
        return jax.tree.map(lambda x: _weighted(weight, x).sum(0), results)

    return _mean(block_sum, params, per_task, weight, block)


def mean_over_finite_tasks(
    fn: Callable[..., PyTree],
    params: Params,
    *per_task: PyTree,
    weight: Array | None = None,
    block: Block = None,
) -> tuple[PyTree, Array]:
    """As `mean_over_tasks`, leaving out every task whose result is not finite.

    Args:
      fn: written for ONE task; returns a pytree of floats.
      params: the same for every task.
      *per_task: pytrees with leading axis [B].
      weight: [B], 1 for a task that counts and 0 for one that does not; None counts all.
      block: the largest number of tasks that a device runs side by side; None means all of its tasks.

    Returns:
      The mean over the tasks that are left (NaN if none is), and the number of tasks [] int32 that are not,
      those of weight 0 among them.
    """
    num_tasks = jax.tree.leaves(per_task)[0].shape[0]

    def finite_or_zero(params: Params, *one_task: PyTree) -> tuple[PyTree, Array]:
        result = fn(params, *one_task)
        finite = all_finite(result)
        return jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), result), finite.astype(float)

    mean, share = mean_over_tasks(finite_or_zero, params, *per_task, weight=weight, block=block)
    counted = jnp.asarray(num_tasks, float) if weight is None else (weight > 0).sum().astype(float)
    left = jnp.where(counted > 0, jnp.round(share * counted), 0).astype(jnp.int32)
    return jax.tree.map(lambda x: x / share, mean), num_tasks - left


def value_and_grad_over_tasks(
    loss: Callable[..., tuple[Array, PyTree]],
    params: Params,
    *per_task: PyTree,
    weight: Array | None = None,
    block: Block = None,
) -> tuple[tuple[Array, PyTree], Params]:
    """Mean over the tasks of `loss(params, *one_task)`, and its gradient.

    As `mean_over_tasks(jax.value_and_grad(loss, has_aux=True), ...)`, but a block has one gradient: that of
    a weight is one product over the block's tasks, not a product for each and a sum. For that reason a task
    of weight 0 must have finite data.

    Args:
      loss: written for ONE task; returns a scalar and a pytree of floats.
      params: the same for every task.
      *per_task: pytrees with leading axis [B].
      weight: [B], the weight of each task in the mean, not negative; None gives all the same.
      block: the largest number of tasks that a device runs side by side; None means all of its tasks.

    Returns:
      The mean loss and the mean pytree, and the gradient of the mean loss.
    """

    def block_sum(params: Params, weight: Array | None, one_block: PyTree, size: int) -> PyTree:
        def total(params: Params) -> tuple[Array, PyTree]:
            value, auxiliary = _vmap_block(loss, params, one_block, size)
            auxiliary = jax.tree.map(lambda x: _weighted(weight, x).sum(0), auxiliary)
            return _weighted(weight, value).sum(), auxiliary

        return jax.value_and_grad(total, has_aux=True)(params)

    return _mean(block_sum, params, per_task, weight, block)


def all_finite(tree: PyTree) -> Array:
    """Whether every number of a tree is finite: [] bool. Keys, integers and booleans always are."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return functools.reduce(jnp.logical_and, (jnp.isfinite(x).all() for x in floats), jnp.array(True))


def _weighted(weight: Array | None, x: Array) -> Array:
    """The result x [size, ...] of every task times its weight; 0 where that is 0, whatever x is."""
    if weight is None:
        return x
    weight = jax.lax.expand_dims(weight, range(1, x.ndim))
    return jnp.where(weight > 0, weight.astype(jnp.result_type(x, float)) * x, jnp.zeros_like(x))


def _mean(
    block_sum: Callable[[Params, Array | None, PyTree, int], PyTree],
    params: Params,
    per_task: tuple[PyTree, ...],
    weight: Array | None,
    block: Block,
) -> PyTree:
    """`block_sum(params, weights, one_block, size)` over all blocks and devices, divided by the weights."""
    layout, devices = _layout(per_task, block), num_devices()
    if weight is None and layout.is_padded:
        weight = jnp.ones(layout.num_tasks, float)
    total_weight: int | Array = layout.num_tasks
    if weight is not None:
        total_weight = weight.astype(float).sum()
        weight = jnp.pad(weight.astype(float), (0, layout.num_filled - layout.num_tasks))

    def local(params: Params, weight: Array | None, *per_task: PyTree) -> PyTree:
        def sum_of(one_block: tuple[Array | None, PyTree]) -> PyTree:
            return block_sum(params, *one_block, layout.size)

        blocks = layout.blocks((weight, per_task))
        first = jax.tree.map(lambda x: x[0], blocks)
        shapes = jax.eval_shape(sum_of, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total: PyTree, one_block: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, sum_of(one_block)), None

        total, _ = jax.lax.scan(add, zeros, blocks)
        return jax.lax.psum(total, AXIS) if devices > 1 else total

    total = _sharded(local, PartitionSpec())(params, weight, *layout.fill(per_task))
    return jax.tree.map(lambda x: x / total_weight, total)


def _sharded(local: Callable[..., PyTree], out_spec: PartitionSpec) -> Callable[..., PyTree]:
    """`local(params, *per_task)` on each device's share of the tasks."""
    devices = num_devices()
    if devices == 1:
        return local

    def call(params: Params, *per_task: PyTree) -> PyTree:
        in_specs = (PartitionSpec(), *(PartitionSpec(AXIS) for _ in per_task))
        return jax.shard_map(local, in_specs=in_specs, out_specs=out_spec, check_vma=False)(params, *per_task)

    return call


class _Layout(NamedTuple):
    """How a batch of tasks lies on devices, blocks and the places of a block."""

    num_tasks: int
    num_filled: int  # places on all devices, at least as many as tasks
    size: int  # of a block

    @property
    def is_padded(self) -> bool:
        return self.num_filled > self.num_tasks

    def fill(self, per_task: PyTree) -> PyTree:
        """[num_tasks, ...] -> [num_filled, ...]: the places that are left repeat the first tasks."""
        if not self.is_padded:
            return per_task
        index = np.arange(self.num_filled) % self.num_tasks
        return jax.tree.map(lambda x: x[index], per_task)

    def blocks(self, per_task: PyTree) -> PyTree:
        """A device's share of the places [...] -> [blocks, size, ...]."""
        return jax.tree.map(lambda x: x.reshape(x.shape[0] // self.size, self.size, *x.shape[1:]), per_task)


def _layout(per_task: PyTree, block: Block) -> _Layout:
    """Blocks of equal size, at most `block`, because one of another size would be compiled apart."""
    num_tasks = jax.tree.leaves(per_task)[0].shape[0]
    at_least(1, tasks=num_tasks)
    devices = num_devices()
    share = math.ceil(num_tasks / devices)
    num_blocks = math.ceil(share / min(block_size(block) or share, share))
    size = math.ceil(share / num_blocks)
    return _Layout(num_tasks, devices * num_blocks * size, size)


def _vmap_block(fn: Callable[..., PyTree], params: Params, one_block: PyTree, size: int) -> PyTree:
    if size == 1:  # no batch axis of one: it would slow down every small matrix product
        result = fn(params, *jax.tree.map(lambda x: x[0], one_block))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)
    return jax.vmap(lambda *task: fn(params, *task))(*one_block)
