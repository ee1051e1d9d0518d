"""Starts the processes of a run as workers of a Ray cluster. The only importer of ray."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
from collections.abc import Callable, Sequence

from jmeta.checks import at_least

Work = Callable[[str, int], None]  # of a process: the coordinator's address, the process's number

_PATIENCE = 600  # seconds for the cluster to start the first process: it may be busy, or growing


def launch(work: Work, num_processes: int) -> None:
    """Runs `work(coordinator, process_id)` in every process of a group, spread over the nodes.

    The cluster is that of `RAY_ADDRESS`, else the one that runs on this machine, else a new one there. Each
    process has an equal share of a node's GPUs, or where no node has any, of its CPUs.

    Args:
      work: can be pickled; jmeta is installed on every node.
      num_processes: of the group.

    Raises:
      ValueError: ray is not installed, or the cluster is too small.
      ConnectionError: no process starts within ten minutes, or one was lost; the others are ended.
      Exception: whatever `work` raises in one of them.
    """
    at_least(1, num_processes=num_processes)
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("the launcher needs ray: pip install '.[ray]'") from None
    ray.init()
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = share(nodes, num_processes)
        devices = os.environ.get("JAX_NUM_CPU_DEVICES", str(max(1, cpus)))
        worker = ray.remote(_Worker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"JAX_NUM_CPU_DEVICES": devices}},
        )
        workers = [worker.remote() for _ in range(num_processes)]
        coordinator = ray.get(workers[0].address.remote(), timeout=_PATIENCE)
        ray.get([one.run.remote(work, coordinator, index, sys.argv) for index, one in enumerate(workers)])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.GetTimeoutError as error:
        raise ConnectionError(f"the cluster started no process of the run in {_PATIENCE} s") from error
    except ray.exceptions.RayActorError as error:
        raise ConnectionError(f"a process of the run was lost: {error}") from error
    finally:
        ray.shutdown()


def share(nodes: Sequence[dict[str, float]], num_processes: int) -> tuple[int, int]:
    """CPUs and GPUs of one process, where they are spread over the nodes.

    Args:
      nodes: the resources of each, by name; those without a GPU are left out if others have one.
      num_processes: of the run.

    Raises:
      ValueError: a process would have none of what there is.
    """
    kind = "GPU" if any(node.get("GPU") for node in nodes) else "CPU"
    nodes = [node for node in nodes if node.get(kind)]
    on_one = -(-num_processes // len(nodes))
    cpus, gpus = (int(min(node.get(name, 0) for node in nodes) // on_one) for name in ("CPU", "GPU"))
    if (gpus if kind == "GPU" else cpus) < 1:
        raise ValueError(f"num_processes must not exceed the {kind}s of the cluster, got {num_processes}")
    return cpus, gpus


def free_port() -> int:
    """A port of this machine, below those that it gives to connections, so that it stays free until taken.

    Raises:
      ConnectionError: none was found.
    """
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("", port))
            return port
    raise ConnectionError("no port is free")


class _Worker:
    """A process of the group."""

    def address(self) -> str:
        """Where this process can be reached, and a port that is free there."""
        import ray

        return f"{ray.util.get_node_ip_address()}:{free_port()}"

    def run(self, work: Work, coordinator: str, process_id: int, argv: list[str]) -> None:
        """Runs the work as if it were started by the words of the user."""
        import jax

        sys.argv = argv
        work(coordinator, process_id)
        jax.distributed.shutdown()  # all at once, before Ray ends them one by one
