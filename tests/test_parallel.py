"""A batch of tasks: blocks and devices change nothing but the speed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import parallel
from tests import small

NUM_TASKS = 6
PARAMS = {"w": jnp.array([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.7]]), "b": jnp.array([0.1, -0.3])}
TASKS = {
    "x": jax.random.normal(jax.random.key(0), (NUM_TASKS, 5, 3)),
    "scale": jnp.arange(1.0, NUM_TASKS + 1),
}


def loss(params, task, key):
    """For ONE task, with noise of its own."""
    noise = jax.random.normal(key, (5, 2))
    return task["scale"] * jnp.mean(jnp.tanh(task["x"] @ params["w"] + params["b"] + noise) ** 2)


def evaluate(params, task, key):
    """A pytree with a scalar, an array and integers."""
    value, gradient = jax.value_and_grad(loss)(params, task, key)
    return {"value": value, "gradient": gradient["w"], "count": (task["x"] > 0).sum()}


@pytest.fixture(scope="module")
def keys():
    return parallel.task_keys(jax.random.key(1), NUM_TASKS)


@pytest.fixture(scope="module")
def one_by_one(keys):
    one = jax.jit(evaluate)
    results = [one(PARAMS, jax.tree.map(lambda x, i=i: x[i], TASKS), keys[i]) for i in range(NUM_TASKS)]
    return jax.tree.map(lambda *x: np.stack(x), *results)


def on_devices(count):
    return jax.set_mesh(parallel.task_mesh(jax.devices()[:count]))


def close(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6), actual, expected)


@pytest.mark.parametrize("devices", [0, 1, 2])
@pytest.mark.parametrize("block", [1, 2, 4, None, 100])
def test_map_tasks_is_a_loop_over_the_tasks(keys, one_by_one, devices, block):
    def run(params):
        return parallel.map_tasks(evaluate, params, TASKS, keys, block=block)

    if devices == 0:  # no mesh
        assert parallel.num_devices() == 1
        close(jax.jit(run)(PARAMS), one_by_one)
        return
    with on_devices(devices):
        assert parallel.num_devices() == devices
        close(jax.jit(run)(PARAMS), one_by_one)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("block", [1, 2, None])
def test_mean_over_tasks_is_the_mean_of_the_loop(keys, one_by_one, devices, block):
    def floats(params, task, key):
        return {k: v for k, v in evaluate(params, task, key).items() if k != "count"}

    with on_devices(devices):
        mean = jax.jit(lambda p: parallel.mean_over_tasks(floats, p, TASKS, keys, block=block))(PARAMS)
    close(mean, {k: one_by_one[k].mean(0) for k in mean})


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("block", [1, 2, None])
def test_one_gradient_a_block_is_the_mean_of_the_gradients(keys, one_by_one, devices, block):
    def with_scale(params, task, key):
        return loss(params, task, key), {"scale": task["scale"]}

    with on_devices(devices):
        run = jax.jit(lambda p: parallel.value_and_grad_over_tasks(with_scale, p, TASKS, keys, block=block))
        (value, beside), gradient = run(PARAMS)
    found = (value, gradient["w"], beside["scale"])
    close(found, (one_by_one["value"].mean(0), one_by_one["gradient"].mean(0), TASKS["scale"].mean()))


@pytest.mark.parametrize("devices", [1, 2])
def test_the_mean_of_gradients_is_the_gradient_of_the_mean(keys, devices):
    def mean_loss(params):
        return jnp.mean(jax.vmap(lambda task, key: loss(params, task, key))(TASKS, keys))

    with on_devices(devices):
        inside = jax.jit(lambda p: parallel.mean_over_tasks(jax.grad(loss), p, TASKS, keys, block=2))(PARAMS)
    close(inside, jax.grad(mean_loss)(PARAMS))
    assert jnp.abs(inside["w"]).max() > 1e-2


def test_a_sharded_mean_is_whole_on_every_device(keys):
    with on_devices(2):
        mean = jax.jit(lambda p: parallel.mean_over_tasks(jax.grad(loss), p, TASKS, keys))(PARAMS)
    for leaf in jax.tree.leaves(mean):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 2
        first, second = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(first, second)


def test_several_tasks_are_vmapped_once_a_block(keys):
    """The function is traced the same number of times, however many blocks there are."""
    traces = []

    def counted(params, task, key):
        traces.append(None)
        return loss(params, task, key)

    parallel.map_tasks(counted, PARAMS, TASKS, keys, block=1)
    one_at_a_time = len(traces)
    parallel.map_tasks(counted, PARAMS, TASKS, keys, block=None)
    assert len(traces) == 2 * one_at_a_time


def test_task_keys_know_nothing_of_devices_or_of_the_batch():
    key = jax.random.key(7)
    alone = jax.random.key_data(parallel.task_keys(key, NUM_TASKS))
    with on_devices(2):
        np.testing.assert_array_equal(jax.random.key_data(parallel.task_keys(key, NUM_TASKS)), alone)
    larger = jax.random.key_data(parallel.task_keys(key, 2 * NUM_TASKS))
    np.testing.assert_array_equal(larger[:NUM_TASKS], alone)
    assert len({tuple(row) for row in larger.tolist()}) == 2 * NUM_TASKS
    other = jax.random.key_data(parallel.task_keys(jax.random.key(8), NUM_TASKS))
    assert not (other == alone).all(axis=1).any()


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("block", [1, 2, None])
def test_any_number_of_tasks_runs_on_any_number_of_devices(keys, one_by_one, devices, block):
    odd, odd_keys = jax.tree.map(lambda x: x[:5], (TASKS, keys))
    with on_devices(devices):
        each = jax.jit(lambda p: parallel.map_tasks(evaluate, p, odd, odd_keys, block=block))(PARAMS)
        mean = jax.jit(lambda p: parallel.mean_over_tasks(loss, p, odd, odd_keys, block=block))(PARAMS)
        one = jax.tree.map(lambda x: x[:1], (odd, odd_keys))
        single = jax.jit(lambda p: parallel.map_tasks(loss, p, *one, block=block))(PARAMS)
    close(each, jax.tree.map(lambda x: x[:5], one_by_one))
    close(mean, one_by_one["value"][:5].mean(0))
    close(single, one_by_one["value"][:1])


def test_no_tasks_at_all_are_refused():
    with pytest.raises(ValueError, match="tasks must be at least 1, got 0"):
        parallel.map_tasks(lambda params, task: task["scale"], PARAMS, jax.tree.map(lambda x: x[:0], TASKS))


@pytest.mark.parametrize("devices", [1, 2])
def test_weights_choose_what_a_mean_is_of(keys, one_by_one, devices):
    weight = jnp.array([1.0, 0.0, 2.0, 0.0, 1.0, 0.0])
    expected = (one_by_one["value"] * weight).sum() / weight.sum()

    def with_scale(params, task, key):
        return loss(params, task, key), {"scale": task["scale"]}

    with on_devices(devices):
        mean = jax.jit(lambda p: parallel.mean_over_tasks(loss, p, TASKS, keys, weight=weight, block=2))
        both = jax.jit(
            lambda p: parallel.value_and_grad_over_tasks(with_scale, p, TASKS, keys, weight=weight, block=2)
        )
        (value, auxiliary), gradient = both(PARAMS)
        close(mean(PARAMS), expected)
    close(value, expected)
    close(auxiliary["scale"], (TASKS["scale"] * weight).sum() / weight.sum())
    weighted = jnp.einsum("b,bij->ij", weight, one_by_one["gradient"]) / weight.sum()
    close(gradient["w"], weighted)


@pytest.mark.parametrize("devices", [1, 2])
def test_tasks_that_are_not_finite_are_left_out_and_counted(keys, one_by_one, devices):
    broken = TASKS | {"scale": TASKS["scale"].at[1].set(jnp.nan)}
    weight = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    left = np.array([0, 2, 4, 5])
    with on_devices(devices):
        run = jax.jit(
            lambda p: parallel.mean_over_finite_tasks(
                jax.value_and_grad(loss), p, broken, keys, weight=weight, block=2
            )
        )
        (value, gradient), lost = run(PARAMS)
        assert lost == 2
    close(value, one_by_one["value"][left].mean(0))
    close(gradient["w"], one_by_one["gradient"][left].mean(0))


def test_replicate_places_a_tree_as_a_sharded_program_returns_it(keys):
    mesh = parallel.task_mesh(jax.devices()[:2])
    placed = parallel.replicate(PARAMS, mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda p: parallel.mean_over_tasks(jax.grad(loss), p, TASKS, keys))
        returned = step(placed)
        with small.compilations() as compiled:
            step(returned)
    assert compiled == []
    for before, after in zip(jax.tree.leaves(placed), jax.tree.leaves(returned), strict=True):
        assert before.sharding == after.sharding


@pytest.mark.parametrize(("num_episodes", "tasks"), [(1, 64), (20, 3), (64, 1), (1000, 1)])
def test_a_block_on_a_cpu_steps_about_64_episodes(num_episodes, tasks):
    with jax.set_mesh(parallel.task_mesh(jax.devices("cpu"))):
        assert parallel.block_size(parallel.tasks_per_block(num_episodes)) == tasks


def test_on_other_platforms_all_tasks_are_one_block():
    devices = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((4,), (parallel.AXIS,), abstract_device=devices)
    block = parallel.tasks_per_block(20)
    with jax.sharding.use_abstract_mesh(mesh):
        assert parallel.block_size(block) is None
        assert parallel.block_size(parallel.tasks_per_block(20, chosen=3)) == 3


def test_task_mesh_takes_all_devices_by_default():
    assert parallel.task_mesh().size == len(jax.devices())
    assert parallel.task_mesh().axis_names == (parallel.AXIS,)


@pytest.mark.parametrize("block", [1, 2, None])
def test_results_of_no_elements_keep_their_shape(block):
    """As the data of an adaptation of no steps."""
    empty = parallel.map_tasks(lambda params, task: jnp.zeros((0, 3)), PARAMS, TASKS, block=block)
    assert empty.shape == (NUM_TASKS, 0, 3)
