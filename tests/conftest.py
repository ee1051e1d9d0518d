"""Set before JAX starts, and inherited by the processes that tests start; files give their memory back."""

import ctypes
import gc
import itertools
import os
import pathlib

import pytest

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"
# The tests mostly compile, and their programs are small. Unoptimized, each in one part, and without the
# emitters of fused loops, they compile in a third of the time and half of the memory.
_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
]
_RESIDENT = pathlib.Path("/proc/self/statm")
_BOUND = 2**30  # bytes

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # sharding is tested on any machine
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))  # a second test run compiles less
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
gc.set_threshold(20_000, 10, 10)  # tracing makes so many objects that looking for garbage takes its time


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """JAX keeps every program that it compiled, and malloc much of what compiling took."""
    yield
    if not _RESIDENT.exists() or int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") < _BOUND:
        return
    import jax

    from tests import small

    for function in vars(small).values():  # a later file finds its programs compiled, or compiles them first
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    jax.clear_caches()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture
def new_run(tmp_path):
    """Makes empty run folders, whose configuration nobody reads."""
    from jmeta.runs import RunFolder, resolve

    config = resolve(
        algorithm={"name": "scratch"},
        family={"name": "point-goal"},
        policy={"name": "mlp"},
        training={"iterations": 1, "num_tasks": 2},
    )
    names = itertools.count()
    return lambda: RunFolder.create(tmp_path / str(next(names)), config)
