import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.runs import checkpoints
from jmeta.types import MetaState


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


def tree(scale=1.0):
    params = {"w": jnp.array([[1.0, -0.0], [jnp.nan, 1e-45]]) * scale, "b": jnp.ones(3, jnp.bfloat16)}
    state = MetaState(params, {"count": jnp.int32(7), "flag": jnp.array([True, False])}, jnp.int32(3))
    host = {"int": 12, "float": 0.1, "bool": True, "array": np.arange(4, dtype=np.uint8)}
    return state, jax.random.key(5), jax.random.split(jax.random.key(6, impl="rbg"), 2), host, None


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), bits(jax.random.key_data(leaf))
    return type(leaf).__name__, np.asarray(leaf).dtype, np.shape(leaf), np.asarray(leaf).tobytes()


def test_round_trip_is_exact(root):
    saved = tree()
    checkpoints.save(root, 10, saved)
    like = jax.tree.map(lambda x: x, tree(scale=2.0))
    restored = checkpoints.restore(root, 10, like)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert list(map(bits, jax.tree.leaves(restored))) == list(map(bits, jax.tree.leaves(saved)))


def test_shapes_are_enough_to_restore(root):
    saved = tree()[:3]
    checkpoints.save(root, 10, saved)
    restored = checkpoints.restore(root, 10, jax.eval_shape(lambda: tree()[:3]))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert list(map(bits, jax.tree.leaves(restored))) == list(map(bits, jax.tree.leaves(saved)))


def test_restored_keys_draw_the_same(root):
    checkpoints.save(root, 1, jax.random.key(5))
    restored = checkpoints.restore(root, 1, jax.random.key(0))
    assert jax.random.normal(restored) == jax.random.normal(jax.random.key(5))


def test_restored_arrays_lie_where_those_of_the_example_do(root):
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.device_put((jnp.zeros(4), jax.random.key(0)), sharding)
    checkpoints.save(root, 1, jax.device_put((jnp.arange(4.0), jax.random.key(1)), sharding))
    for leaf, example in zip(checkpoints.restore(root, 1, like), like, strict=True):
        assert leaf.sharding.is_equivalent_to(example.sharding, leaf.ndim)


def test_the_last_three_are_kept(root):
    assert checkpoints.latest(root) is None
    for iteration in (8, 9, 10, 11):
        checkpoints.save(root, iteration, jnp.int32(iteration))
    assert sorted(path.name for path in root.iterdir()) == ["10", "11", "9"]
    assert checkpoints.latest(root) == 11
    assert checkpoints.restore(root, 9, jnp.int32(0)) == 9


def test_what_is_not_complete_is_ignored_and_removed(root):
    checkpoints.save(root, 5, jnp.int32(5))
    (root / "tmp-6.orbax-checkpoint-tmp").mkdir()
    (root / "tmp-7").mkdir()
    (root / "8").mkdir()
    (root / "8" / "_METADATA").write_text("{}")
    assert checkpoints.latest(root) == 5
    checkpoints.save(root, 7, jnp.int32(7))
    assert sorted(path.name for path in root.iterdir()) == ["5", "7"]


def test_what_others_put_there_stays(root):
    checkpoints.save(root, 1, jnp.int32(1))
    (root / "notes.txt").write_text("mine")
    (root / "best").mkdir()
    (root / "best" / "manifest.json").write_text("mine")
    (root / "2").write_text("in the way")
    for iteration in (2, 3, 4):
        checkpoints.save(root, iteration, jnp.int32(iteration))
    assert sorted(path.name for path in root.iterdir()) == ["2", "3", "4", "best", "notes.txt"]
    assert (root / "best" / "manifest.json").read_text() == "mine"
    assert checkpoints.latest(root) == 4


def test_saving_again_replaces(root):
    checkpoints.save(root, 1, jnp.int32(1))
    checkpoints.save(root, 1, jnp.int32(2))
    assert checkpoints.restore(root, 1, jnp.int32(0)) == 2


@pytest.mark.parametrize(
    "like", [jnp.zeros(4), jnp.zeros(3, jnp.int32), {"a": jnp.zeros(3)}, (jnp.zeros(3), jnp.zeros(3)), ()]
)
def test_another_tree_is_refused(root, like):
    checkpoints.save(root, 1, jnp.zeros(3))
    with pytest.raises(checkpoints.DamagedRunError, match="is not of this run's configuration"):
        checkpoints.restore(root, 1, like)


def test_a_damaged_checkpoint_is_an_error(root):
    checkpoints.save(root, 1, jnp.zeros(3))
    for path in (root / "1").iterdir():
        if path.is_dir():
            for file in path.rglob("*"):
                if file.is_file():
                    file.write_bytes(b"")
    with pytest.raises(checkpoints.DamagedRunError, match="checkpoint 1 is damaged"):
        checkpoints.restore(root, 1, jnp.zeros(3))


def test_killed_at_any_moment_leaves_complete_checkpoints(root):
    script = (
        "import pathlib, sys, jax.numpy as jnp\n"
        "from jmeta.runs import checkpoints\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for i in range(1, 10000):\n"
        "    checkpoints.save(root, i, {'a': jnp.full(1000, i), 'b': jnp.int32(i)})\n"
        "    print(i, flush=True)\n"
    )
    repository = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", script, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        reported = [int(process.stdout.readline()) for _ in range(4)]
        time.sleep(0.01)
        process.kill()
    last = checkpoints.latest(root)
    assert last >= reported[-1]
    like = {"a": jnp.zeros(1000, jnp.int32), "b": jnp.int32(0)}
    restored = checkpoints.restore(root, last, like)
    assert restored["b"] == last and (restored["a"] == last).all()


def test_saving_says_nothing(root, capfd, caplog):
    checkpoints.save(root, 1, tree())
    checkpoints.restore(root, 1, tree())
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
