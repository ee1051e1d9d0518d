"""How a command starts JAX."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from jmeta.cli.train import Processes


def start_jax(
    num_tasks: int, every_core: bool, minibatches: int = 1, processes: Processes | None = None
) -> None:
    """Configures JAX and connects the processes of a run."""
    import jax

    from jmeta import runtime

    shared = max(1, num_tasks // minibatches)  # every device has a part of every minibatch
    runtime.configure(num_tasks=None if every_core else shared)
    if processes is not None and processes.distributed:
        runtime.connect(*processes.addresses, heartbeat_timeout=processes.heartbeat_timeout)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # for instance JAX_PLATFORMS=cuda without a GPU
        reason = (
            str(error) or f"no backend of JAX_PLATFORMS={jax.config.values['jax_platforms']} is installed"
        )
        raise ValueError(f"JAX cannot start its devices: {reason}") from error
