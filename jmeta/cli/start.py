"""How a command starts JAX, alone or with other processes."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Flags of how a run is started, which its configuration does not hold."""

    distributed: bool = False
    """Train with other processes, each started with these words, over the devices of all."""
    coordinator: str | None = None
    """HOST:PORT of process 0. It and the next two come from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or from Slurm, if none is given."""
    num_processes: int | None = None
    """Processes of the run."""
    process_id: int | None = None
    """This one, counted from 0, which alone prints and writes."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process is given up, and the run with it."""
    launcher: Literal["ray"] | None = None
    """Start --num-processes of them as workers of a Ray cluster, over the devices of all."""

    @property
    def addresses(self) -> tuple[str | None, int | None, int | None]:
        """What `runtime.connect` takes."""
        return self.coordinator, self.num_processes, self.process_id


def start_jax(num_tasks: int, minibatches: int = 1, processes: Processes | None = None) -> None:
    """Configures JAX and connects the processes of a run.

    Args:
      num_tasks: tasks that the devices share.
      minibatches: how many batches they are divided into; every device takes a part of each.
      processes: of the run; None if this is the only one.

    Raises:
      ValueError: JAX cannot start its devices.
    """
    import jax

    from jmeta import runtime

    if processes is None or not processes.distributed:
        runtime.configure(num_tasks=max(1, num_tasks // minibatches))
    else:
        runtime.configure()
        runtime.connect(*processes.addresses, heartbeat_timeout=processes.heartbeat_timeout)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # for instance JAX_PLATFORMS=cuda without a GPU
        platforms = jax.config.values["jax_platforms"]
        reason = str(error) or f"no backend of JAX_PLATFORMS={platforms} is installed"
        raise ValueError(f"JAX cannot start its devices: {reason}") from error
