"""Start-up of JAX: processes, devices, numerical precision and the compilation cache."""

from __future__ import annotations

import logging
import math
import os
import pathlib
import re

import jax

from jmeta import parallel
from jmeta.checks import at_least

_LOGGER = logging.getLogger(__name__)


def configure(*, num_tasks: int | None = None) -> None:
    """Prepares JAX for meta-training; call it once, before anything runs on a device.

    - CPU: one host device a core, since XLA runs a program of small loops on about one core.
    - Matrix products in full precision ("highest"): the TF32 of recent GPUs breaks reinforcement learning.
    - Compiled programs are kept in a private folder of the user, so that a second run starts at once.

    Whatever is already set, by an environment variable (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`,
    `JAX_DEFAULT_MATMUL_PRECISION`, `JAX_COMPILATION_CACHE_DIR`) or in `jax.config`, is left as it is.

    Args:
      num_tasks: how many tasks the devices will share. If given, no more cores are taken than make a
        difference to the largest number of tasks that one of them has.

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
        try:
            folder = cache_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # compiled programs are executed: nobody else may write here
        except (OSError, RuntimeError) as error:  # the latter where the user has no home folder
            _LOGGER.warning("no compilation cache: %s", error)
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins the processes of a run, whose devices become one; call it after `configure`, before all else.

    Each process calls it, and waits here for the others. On a CPU they talk over Gloo, as JAX has it.

    Args:
      coordinator: "host:port" at which process 0 is reached. It and the next two are given all, or none; then
        they are `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or where these are not
        set, what Slurm or whatever else JAX knows has started.
      num_processes: of the run.
      process_id: of this one, 0 to `num_processes` - 1.
      heartbeat_timeout: seconds without a sign of life after which a process is given up, and with it all.

    Raises:
      ValueError: an argument is missing or out of its range.
      ConnectionError: nothing says which processes there are, or they do not meet.
    """
    if coordinator is None and num_processes is None and process_id is None:
        coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
        num_processes = _integer("JAX_NUM_PROCESSES")
        process_id = _integer("JAX_PROCESS_ID")
    given = (coordinator, num_processes, process_id)
    if None in given and given != (None, None, None):
        raise ValueError(f"give coordinator, num_processes and process_id, all or none, not {given}")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"coordinator must be HOST:PORT, got {coordinator!r}")
    at_least(1, heartbeat_timeout=heartbeat_timeout)
    if num_processes is not None:
        at_least(1, num_processes=num_processes)
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be 0 to {num_processes - 1}, below num_processes, got {process_id}"
        )
    jax.config.update("jax_enable_preemption_service", False)  # it would keep a process alive on SIGTERM
    try:
        jax.distributed.initialize(
            *given,
            # Who is told everything takes all of its devices; Slurm's tasks take one GPU each.
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,  # nor does the end wait longer for one that failed
        )
        # Gloo opens its connections at the first sum, within 30 s: now, and not when one has compiled longer.
        parallel.agree(0)
    except (ValueError, RuntimeError) as error:
        raise ConnectionError(f"the processes of the run do not meet: {error}") from error


def cache_folder() -> pathlib.Path:
    """The folder of compiled programs: `jmeta/xla` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    A relative `$XDG_CACHE_HOME` is ignored, as its specification says; RuntimeError without a home folder.
    """
    root = pathlib.Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "")))
    return (root if root.is_absolute() else pathlib.Path.home() / ".cache") / "jmeta" / "xla"


def _integer(variable: str) -> int | None:
    text = os.environ.get(variable)
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ValueError(f"{variable} must be an integer, got {text!r}") from None


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # the cores this process may use, where the system tells
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _num_cpu_devices(num_cores: int, num_tasks: int | None) -> int:
    """One device a core, except those whose tasks the others could take without having more than before."""
    if num_tasks is None:
        return num_cores
    most = math.ceil(num_tasks / num_cores)
    return math.ceil(num_tasks / most)
