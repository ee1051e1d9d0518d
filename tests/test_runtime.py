import json
import os
import pathlib
import subprocess
import sys

import pytest

from jmeta import runtime

REPOSITORY = pathlib.Path(__file__).parents[1]
NAMES = ("jax_num_cpu_devices", "jax_default_matmul_precision", "jax_compilation_cache_dir")


def configured(home, **variables):
    """Settings and device count of a fresh process after `configure()`."""
    script = (
        "import json, jax\n"
        "from jmeta import runtime\n"
        "runtime.configure()\n"
        f"print(json.dumps([[jax.config.values[n] for n in {NAMES}], jax.device_count('cpu')]))\n"
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "XDG_"))}
    environment = {**inherited, "PYTHONPATH": str(REPOSITORY), "HOME": str(home), "JAX_PLATFORMS": "cpu"}
    environment.update(variables)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_defaults(tmp_path):
    (devices, precision, cache), count = configured(tmp_path)
    assert devices == count == runtime._num_cores()
    assert precision == "highest"
    folder = tmp_path / ".cache" / "jmeta" / "xla"
    assert cache == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_explicit_settings_are_left_alone(tmp_path):
    (devices, precision, cache), count = configured(
        tmp_path,
        JAX_NUM_CPU_DEVICES="3",
        JAX_DEFAULT_MATMUL_PRECISION="tensorfloat32",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
    )
    assert (devices, count, precision, cache) == (3, 3, "tensorfloat32", str(tmp_path / "mine"))
    (devices, _, _), count = configured(tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=5")
    assert (devices, count) == (-1, 5)


def test_cache_folder_honours_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / "jmeta" / "xla"


def test_a_variable_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES must be an integer, got 'two'"):
        runtime.connect()


@pytest.mark.parametrize(
    ("cores", "tasks", "devices"),
    [(2, 20, 2), (8, 20, 7), (16, 20, 10), (4, 7, 4), (4, 5, 3), (64, 20, 20), (6, 1, 1), (6, None, 6)],
)
def test_as_many_devices_as_make_a_difference(cores, tasks, devices):
    assert runtime._num_cpu_devices(cores, tasks) == devices
