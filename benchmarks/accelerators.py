"""Meta-iterations compiled for accelerators that are not there: kernels, memory, and a bound on speed.

JAX compiles for a GPU or a TPU without having one. What comes out says how many kernels a meta-iteration
starts, how many of them an environment step, how much memory a device needs, and what the devices exchange.
From that follows the time that it takes at least, under two assumptions: a kernel costs `--kernel-us` to
start, and one after the other they read their operands from memory and write their results to it at the
device's full bandwidth. Kernels of a loop count as often as it runs.

For GPUs this needs the compiler that comes with `jax[cuda13]`, for TPUs `libtpu`; neither needs a driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import common


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    platform: str  # cuda or tpu
    topology: str
    bandwidth: float  # of a device's memory, bytes/s, from its data sheet
    description: str = ""  # of a GPU, what XLA asks a driver for


_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""
_H200 = _GPU.format(
    name="H200",
    cores=132,
    bandwidth=4_800_000_000_000,
    cache=52_428_800,
    clock=1.98,
    memory=151_397_597_184,
    major=9,
)
_B200 = _GPU.format(
    name="B200",
    cores=148,
    bandwidth=8_000_000_000_000,
    cache=132_644_864,
    clock=1.97,
    memory=191_000_000_000,
    major=10,
)
TARGETS = {
    "h200": Target("cuda", "1x1x1", 4.8e12, _H200),
    "h200-8": Target("cuda", "1x1x8", 4.8e12, _H200),
    "b200": Target("cuda", "1x1x1", 8.0e12, _B200),
    "v5e-8": Target("tpu", "v5e:2x4", 0.819e12),
    "v5p-256": Target("tpu", "v5p:8x4x4", 2.765e12),
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    targets: tuple[str, ...] = ("h200", "v5e-8")
    """Devices: h200, h200-8 (a node of eight), b200, v5e-8 or v5p-256."""
    algorithm: str = "maml"
    """Algorithm, with its preset for the family."""
    family: str = "half-cheetah-direction"
    """Task family."""
    tasks: int = 1024
    """Tasks of a meta-iteration, on all devices together."""
    episodes: int = 20
    """Episodes of a task before each inner step, and after the last."""
    kernels: bool = True
    """Whether physics is written as scalars (`jmeta.kernels`); False shows what it was before."""
    kernel_us: float = 3.0
    """Microseconds to start a kernel; on GPUs 2 to 4 were seen."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One compilation, in a process of its own."""

    target: str
    algorithm: str
    family: str
    tasks: int
    episodes: int
    kernels: bool


# -- reading a compiled program -----------------------------------------------------------------------

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(pred|[suf]\d+|bf16)\[([\d,]*)\]")
# fmt: off
_STARTS_A_KERNEL = {
    "fusion", "custom-call", "sort", "copy", "dot", "convolution", "reduce", "scatter", "gather",
    "dynamic-update-slice", "dynamic-slice", "copy-start", "transpose", "concatenate", "pad",
    "slice", "broadcast", "iota", "reverse", "select-and-scatter", "rng-bit-generator", "cholesky",
    "triangular-solve", "convert", "add", "multiply", "subtract",
}
# fmt: on
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass
class Loop:
    """A computation: what it starts itself, and its loops."""

    trips: int
    kernels: int = 0
    bytes: float = 0.0
    collectives: int = 0
    inside: list[Loop] = dataclasses.field(default_factory=list)

    def total(self, what: str) -> float:
        """Of all trips, loops inside included."""
        return self.trips * (getattr(self, what) + sum(loop.total(what) for loop in self.inside))

    def loops(self) -> Iterator[tuple[int, Loop]]:
        """All loops, each with how often it is begun."""
        for loop in self.inside:
            yield self.trips, loop
            yield from ((self.trips * times, deeper) for times, deeper in loop.loops())


def read(text: str) -> Loop:
    """A compiled program, from its text."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            bodies[name] = []
            entry = name if found[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line)
    return _loop(bodies, entry, 1)


def _loop(bodies: Mapping[str, list[str]], name: str, trips: int) -> Loop:
    loop, sizes = Loop(trips), {}
    for line in bodies[name]:
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        result, shape, op, rest = found.groups()
        sizes[result] = _bytes(shape)
        if op == "while":
            known = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            body = re.search(r"body=%?([\w.\-]+)", rest)
            assert body is not None, f"a loop without a body: {line}"
            loop.inside.append(_loop(bodies, body[1], int(known[1]) if known else 1))
        elif op in ("call", "conditional"):
            for called in re.findall(r"(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)", rest):
                loop.inside.append(_loop(bodies, called, 1))
        elif op in _STARTS_A_KERNEL:
            loop.kernels += 1
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            loop.bytes += sizes[result] + sum(sizes.get(operand, 0) for operand in operands)
        if op.removesuffix("-start") in _COLLECTIVES:
            loop.collectives += 1
    return loop


def _bytes(shape: str) -> float:
    total = 0.0
    for kind, dims in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
        size = 1
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        total += size * bits / 8
    return total


# -- compiling ----------------------------------------------------------------------------------------


def measure(case: Case) -> dict[str, Any]:
    """Compiles a meta-iteration for a target; runs in a process of its own."""
    target = TARGETS[case.target]
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if target.platform == "cuda" else "cpu"
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from jmeta import parallel, training
    from jmeta.presets import preset
    from jmeta.runs.config import build

    if not case.kernels:
        from jmeta.envs import brax

        brax.one_kernel = lambda fn, otherwise=None: jax.jit(fn)
    with jax.default_device(_cpu()):
        options = {"target_config": target.description} if target.description else {}
        arguments = {"topology": target.topology} if target.platform == "cuda" else {}
        named = "" if target.platform == "cuda" else target.topology
        devices = topologies.get_topology_desc(named, target.platform, **arguments, **options).devices
        jax.config.update("jax_default_matmul_precision", "highest")
        config = preset(case.algorithm, case.family)
        sizes = {"num_episodes": case.episodes} if "num_episodes" in config.algorithm else {}
        config = dataclasses.replace(config, algorithm={**config.algorithm, **sizes})
        family, _, algorithm = build(config)
        mesh = parallel.task_mesh(list(devices))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

        def abstract(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

        state = jax.tree.map(abstract, jax.eval_shape(lambda: training.initial_state(algorithm, 0)))
        with jax.set_mesh(mesh):
            chunk = training.compile_chunk(algorithm, family, num_tasks=case.tasks, length=1)
            lowered = chunk.lower(state, abstract(jax.ShapeDtypeStruct((), jnp.int32)))
            started = time.perf_counter()
            program = lowered.compile()
            seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    horizon = family.env.spec.horizon
    whole = read(program.as_text())
    # Loops over the steps of an episode; those that only add up rewards start far fewer kernels.
    episodes = [(times, loop) for times, loop in whole.loops() if loop.trips == horizon]
    most = max((loop.total("kernels") for _, loop in episodes), default=0)
    sampling = [(times, loop) for times, loop in episodes if loop.total("kernels") > most / 4]
    steps = sum(times * loop.trips for times, loop in sampling)
    in_sampling = sum(times * loop.total("kernels") for times, loop in sampling)
    return {
        "devices": len(devices),
        "bandwidth": target.bandwidth,
        "horizon": horizon,
        "env_steps": case.tasks * case.episodes * steps,
        "kernels_a_step": in_sampling / steps if steps else float("nan"),
        "kernels_sampling": in_sampling,
        "kernels": whole.total("kernels"),
        "bytes": whole.total("bytes"),
        "collectives": whole.total("collectives"),
        "mebibytes": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20 if memory else None,
        "compile_seconds": seconds,
    }


def _cpu() -> Any:
    import jax

    with contextlib.suppress(RuntimeError):  # without a driver; the CPU is there afterwards
        jax.devices()
    return jax.local_devices(backend="cpu")[0]


def main() -> None:
    """Runs the command."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(Case(**json.loads(sys.argv[2])))))
        return
    flags = common.parse(Flags, __doc__)
    for name in flags.targets:
        if name not in TARGETS:
            common.fail(f"targets must be of {', '.join(TARGETS)}, got {name!r}")
    common.at_least(1, tasks=flags.tasks, episodes=flags.episodes)
    results, rows = [], []
    for name in flags.targets:
        case = Case(name, flags.algorithm, flags.family, flags.tasks, flags.episodes, flags.kernels)
        found = common.in_own_process("benchmarks.accelerators", case)
        results.append({**dataclasses.asdict(case), **found})
        latency = found["kernels"] * flags.kernel_us * 1e-6
        traffic = found["bytes"] / found["bandwidth"]
        rows.append(
            [
                name,
                str(found["devices"]),
                f"{found['kernels_a_step']:,.0f}",
                f"{found['kernels_sampling']:,.0f}",
                f"{found['kernels'] - found['kernels_sampling']:,.0f}",
                f"{found['mebibytes']:,.0f}",
                f"{found['collectives']:,.0f}",
                f"{latency:.2f}",
                f"{traffic:.2f}",
                f"{found['env_steps'] / (latency + traffic) / 1e6:.1f}",
                f"{found['compile_seconds']:.0f}",
            ]
        )
        print(f"{name}: done", file=sys.stderr, flush=True)
    header = [
        "target",
        "devices",
        "kernels a step",
        "of sampling",
        "of the rest",
        "MiB a device",
        "collectives",
    ]
    header += ["starts, s", "memory, s", "million steps/s at most", "compile s"]
    physics = "as scalars" if flags.kernels else "as jax.vmap maps it"
    print(f"\n{flags.algorithm} on {flags.family}, {flags.tasks} tasks x {flags.episodes} episodes,")
    print(f"physics {physics}, {flags.kernel_us:g} us to start a kernel.\n")
    print(common.markdown(header, rows))
    common.write_json(flags.json, {"settings": common.settings(flags), "results": results})


if __name__ == "__main__":
    main()
