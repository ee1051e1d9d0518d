"""Set before JAX starts, and inherited by the processes that tests start; files give their memory back."""

import gc
import itertools
import os
import pathlib
import sys

import pytest

from tests import memory

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"
# The tests mostly compile, and their programs are small. Unoptimized, each in one part, and without the
# emitters of fused loops, they compile in a third of the time and half of the memory.
_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
]

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # sharding is tested on any machine
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))  # a second test run compiles less
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
gc.set_threshold(20_000, 10, 10)  # tracing makes so many objects that looking for garbage takes its time


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Coverage doubles the time of tracing: it pauses in `unmeasured` tests, their fixtures and processes."""
    if not item.get_closest_marker("unmeasured"):
        return (yield)
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
            return (yield)
    finally:
        sys.settrace(trace)


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    yield
    memory.give_back()


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
