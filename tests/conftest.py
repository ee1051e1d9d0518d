"""Set before JAX starts, and inherited by the processes that tests start."""

import os
import pathlib

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # sharding is tested on any machine
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))  # a second test run compiles less
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# The tests mostly compile, and their programs are small: unoptimised, all of it takes a third less time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
