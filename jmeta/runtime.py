"""Start-up of JAX: devices, numerical precision and the compilation cache."""

from __future__ import annotations

import logging
import os
import pathlib

import jax

_LOGGER = logging.getLogger(__name__)


def configure(*, num_tasks: int | None = None) -> None:
    """Prepares JAX for meta-training; call it once, before anything runs on a device.

    - CPU: one host device a core, since XLA runs a program of small loops on about one core.
    - Matrix products in full precision ("highest"): the TF32 of recent GPUs breaks reinforcement learning.
    - Compiled programs are kept in a private folder of the user, so that a second run starts at once.

    Whatever is already set, by an environment variable (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`,
    `JAX_DEFAULT_MATMUL_PRECISION`, `JAX_COMPILATION_CACHE_DIR`) or in `jax.config`, is left as it is.

    Args:
      num_tasks: if given, take as many cores as divide this number of tasks.

    Raises:
      RuntimeError: if JAX has already started its devices.
    """
    settings = jax.config.values
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and settings["jax_num_cpu_devices"] < 0:
        jax.config.update("jax_num_cpu_devices", _num_cpu_devices(_num_cores(), num_tasks))
    if settings["jax_default_matmul_precision"] is None:
        jax.config.update("jax_default_matmul_precision", "highest")
    if settings["jax_compilation_cache_dir"] is None:
        folder = cache_folder()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # compiled programs are executed: nobody else may write here
        except OSError as error:
            _LOGGER.warning("no compilation cache: %s", error)
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))


def cache_folder() -> pathlib.Path:
    """The folder of compiled programs: `jmeta/xla` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(root) if root else pathlib.Path.home() / ".cache") / "jmeta" / "xla"


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # the cores this process may use, where the system tells
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _num_cpu_devices(num_cores: int, num_tasks: int | None) -> int:
    """The largest number of devices, at most one a core, that divides `num_tasks`."""
    if num_tasks is None:
        return num_cores
    return max(n for n in range(1, num_cores + 1) if num_tasks % n == 0)
