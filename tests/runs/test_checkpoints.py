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
    params |= {"none": jnp.zeros((0, 3)), "few": jnp.arange(-2, 3, dtype=jnp.int4), "i": jnp.array(1j)}
    state = MetaState(params, {"count": jnp.int32(7), "flag": jnp.array([True, False])}, jnp.int32(3))
    host = {"int": 12, "float": 0.1, "bool": True, "array": np.arange(8, dtype=np.uint16)[::2]}
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
    assert checkpoints.iterations(root) == []
    for iteration in (8, 9, 10, 11):
        checkpoints.save(root, iteration, jnp.int32(iteration))
    assert sorted(path.name for path in root.iterdir()) == ["10", "11", "9"]
    assert checkpoints.iterations(root) == [9, 10, 11]
    assert checkpoints.restore(root, 9, jnp.int32(0)) == 9


def test_checkpoints_to_keep_and_those_passed_over(root):
    for iteration in (1, 2, 3, 4, 5, 6):
        checkpoints.save(root, iteration, jnp.int32(iteration), keep=(2,))
    assert checkpoints.iterations(root) == [2, 4, 5, 6]
    checkpoints.save(root, 5, jnp.int32(50), keep=(2,))  # 6 is of a future that is trained again
    assert checkpoints.iterations(root) == [2, 4, 5]
    assert checkpoints.restore(root, 5, jnp.int32(0)) == 50


def test_what_a_killed_process_left_is_ignored_and_removed(root):
    checkpoints.save(root, 5, jnp.int32(5))
    (root / "tmp-0123abcd").mkdir()
    (root / "tmp-0123abcd" / "arrays.bin").write_text("")
    (root / "tmp-7").write_text("")
    assert checkpoints.iterations(root) == [5]
    checkpoints.save(root, 7, jnp.int32(7))
    assert sorted(path.name for path in root.iterdir()) == ["5", "7"]


def test_what_others_put_there_stays(root):
    checkpoints.save(root, 1, jnp.int32(1))
    (root / "notes.txt").write_text("mine")
    (root / "best").mkdir()
    (root / "best" / "manifest.json").write_text("mine")
    (root / "007").mkdir()
    (root / "2").write_text("in the way")
    for iteration in (2, 3, 4):
        checkpoints.save(root, iteration, jnp.int32(iteration))
    assert sorted(path.name for path in root.iterdir()) == ["007", "2", "3", "4", "best", "notes.txt"]
    assert (root / "best" / "manifest.json").read_text() == "mine"
    assert checkpoints.iterations(root) == [2, 3, 4]


def test_only_the_link_to_a_folder_of_others_is_removed(root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("mine")
    checkpoints.save(root, 1, jnp.int32(1))
    (root / "2").symlink_to(tmp_path / "mine")
    checkpoints.save(root, 2, jnp.int32(2))
    assert checkpoints.restore(root, 2, jnp.int32(0)) == 2
    assert (tmp_path / "mine" / "manifest.json").read_text() == "mine"


def test_saving_again_replaces(root):
    checkpoints.save(root, 1, jnp.int32(1))
    checkpoints.save(root, 1, jnp.int32(2))
    assert checkpoints.restore(root, 1, jnp.int32(0)) == 2


@pytest.mark.parametrize(
    "like", [jnp.zeros(4), jnp.zeros(3, jnp.int32), {"a": jnp.zeros(3)}, (jnp.zeros(3), jnp.zeros(3)), ()]
)
def test_another_tree_is_refused(root, like):
    checkpoints.save(root, 1, jnp.zeros(3))
    with pytest.raises(checkpoints.DamagedRunError, match="does not belong to this run's configuration"):
        checkpoints.restore(root, 1, like)


@pytest.mark.parametrize("name", ["arrays.bin", "manifest.json"])
def test_every_flipped_bit_is_found(root, name):
    checkpoints.save(root, 1, jnp.arange(3.0))
    path = root / "1" / name
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(checkpoints.DamagedRunError, match=f"checkpoint 1 is damaged: {name}: "):
            checkpoints.restore(root, 1, jnp.zeros(3))


def test_the_checkpoint_of_another_iteration_is_no_substitute(root):
    checkpoints.save(root, 1, jnp.zeros(3))
    (root / "1").rename(root / "2")
    with pytest.raises(checkpoints.DamagedRunError, match="it is that of iteration 1"):
        checkpoints.restore(root, 2, jnp.zeros(3))


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
    last = checkpoints.iterations(root)[-1]
    assert last >= reported[-1]
    like = {"a": jnp.zeros(1000, jnp.int32), "b": jnp.int32(0)}
    restored = checkpoints.restore(root, last, like)
    assert restored["b"] == last and (restored["a"] == last).all()


def test_saving_says_nothing(root, capfd, caplog):
    checkpoints.save(root, 1, tree())
    checkpoints.restore(root, 1, tree())
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
