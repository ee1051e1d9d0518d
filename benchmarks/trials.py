"""How fast RL² is on long trials: one update on bandits for every policy with a memory, beside its floor.

An update samples the trials (5 arms, one episode of so many pulls) and learns from them by PPO, as training
does: compiled whole, over all devices of the host. Sampling is compiled and timed alone too, alternately with
the update; learning is the difference of the medians. A token is one step of one trial and is counted once,
though learning passes over it once an epoch.

The floor is the time of the program's matrix products alone (of attention as it is computed, to the whole
cache): their floating-point operations over those that the same devices do in a second, measured in the
same process on products of large float32 matrices in full precision. XLA's count (`cost_analysis`) takes the
body of a loop once, so the operations are counted in the traced program, loops as often as they run.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import common

POLICIES = ("gru", "lstm", "mann", "snail", "transformer")
ARMS = 5
MATRIX = 4096  # side of the matrices whose product measures the peak


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    lengths: tuple[int, ...] = (100, 300, 1000)
    """Pulls in a trial; growth is from the first to the last."""
    trials: int = 64
    """Trials of an update."""
    repeats: int = 5
    """Timed repetitions."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of an update or of a part of it."""

    seconds: float  # median
    floor: float  # those of its matrix products


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy at one length."""

    policy: str
    length: int
    costs: dict[str, Cost]  # update, sampling, learning
    compile_seconds: float  # of the update


def matrix_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of the matrix products in one call, two for each multiply-add."""
    import jax
    from jax.extend.core import Jaxpr, jaxprs_in_params
    from jax.interpreters.partial_eval import dce_jaxpr

    def count(jaxpr: Jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            name, params = equation.primitive.name, equation.params
            inside = sum(map(count, jaxprs_in_params(params)))
            assert not inside or name not in ("while", "cond"), (
                f"how often the body of {name} runs is not known"
            )
            total += inside * params["length"] if name == "scan" else inside
            if name == "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        return total

    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])  # XLA leaves dead code out, too


def timed(call: Callable[[], Any]) -> float:
    """Seconds until the result of a call is there."""
    import jax

    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def peak(repeats: int) -> float:
    """Floating-point operations a second of large products, one on each device: the fastest of `repeats`."""
    import jax
    import jax.numpy as jnp

    from jmeta import parallel

    with jax.set_mesh(parallel.task_mesh()):
        keys = parallel.task_keys(jax.random.key(0), jax.device_count())

        def matrix(_: Any, key: Any) -> Any:
            return jax.random.normal(key, (MATRIX, MATRIX))

        def square(_: Any, x: Any) -> Any:
            return jnp.matmul(x, x, precision="highest")

        matrices = jax.jit(lambda keys: parallel.map_tasks(matrix, (), keys))(keys)
        squares = jax.jit(lambda matrices: parallel.map_tasks(square, (), matrices))
        timed(lambda: squares(matrices))  # warm-up
        seconds = min(timed(lambda: squares(matrices)) for _ in range(repeats))
    return jax.device_count() * 2 * MATRIX**3 / seconds


def config_of(policy: str, length: int) -> Any:
    """The preset with another policy and trials of `length` pulls."""
    return common.rl2_config("bandit", policy, num_arms=ARMS, num_pulls=length)


def measure(name: str, length: int, flops_per_second: float, flags: Flags) -> Row:
    """Counts, compiles and times the update of one policy, and its sampling."""
    import jax
    import jax.numpy as jnp

    from jmeta import parallel, training
    from jmeta.runs.config import build

    family, policy, algorithm = build(config_of(name, length))

    trial = common.trial_of(family, policy, num_episodes=1)

    def sample(params: Any, tasks: Any, key: Any) -> Any:
        keys = parallel.task_keys(key, flags.trials)
        return parallel.map_tasks(trial, params, tasks, keys, block=parallel.tasks_per_block(1))

    state, key = training.initial_state(algorithm, seed=0), jax.random.key(1)
    tasks = jax.vmap(family.sample)(parallel.task_keys(key, flags.trials))
    # Traced for one device; sharing the trials changes nothing about the sum.
    floor = matrix_flops(algorithm.update, state.meta, tasks, key) / flops_per_second
    sampling_floor = matrix_flops(sample, state.meta.params, tasks, key) / flops_per_second

    mesh = parallel.task_mesh()
    with jax.set_mesh(mesh):
        chunk = training.compile_chunk(algorithm, family, num_tasks=flags.trials, length=1)
        jitted_sample = jax.jit(sample)
        state = parallel.replicate(state, mesh)

        def update(count: int) -> Any:
            nonlocal state
            state, metrics = chunk(state, jnp.int32(count))
            return metrics

        sides: dict[str, Callable[[], Any]] = {
            "update": lambda: update(1),
            "sampling": lambda: jitted_sample(state.meta.params, tasks, key),
        }
        compile_seconds = timed(lambda: update(0))
        for side in sides.values():
            timed(side)  # warm-up
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(flags.repeats):
            for side_name, side in sides.items():
                seconds[side_name].append(timed(side))
    whole, sampling = (statistics.median(seconds[name]) for name in ("update", "sampling"))
    costs = {
        "update": Cost(whole, floor),
        "sampling": Cost(sampling, sampling_floor),
        "learning": Cost(whole - sampling, floor - sampling_floor),
    }
    return Row(name, length, costs, compile_seconds)


def speed_table(rows: list[Row], trials: int) -> str:
    """Throughput, seconds and their ratios to the floor."""
    header = ["policy", "pulls", "trials/s", "tokens/s", "compile s"]
    for part in ("update", "sampling", "learning"):
        header += [f"{part} s", "floor s", "ratio"]
    cells = []
    for row in rows:
        rate = trials / row.costs["update"].seconds
        line = [row.policy, str(row.length), f"{rate:,.1f}", f"{rate * row.length:,.0f}"]
        line.append(f"{row.compile_seconds:.1f}")
        for cost in row.costs.values():
            line += [f"{cost.seconds:.3g}", f"{cost.floor:.2g}", f"{cost.seconds / cost.floor:.1f}"]
        cells.append(line)
    return common.markdown(header, cells)


def growth_table(rows: list[Row], shortest: int, longest: int) -> str:
    """Time a token at one length over that at another, and the same ratio of the matrix products."""
    header = ["policy"]
    for part in ("update", "sampling", "learning"):
        header += [part, "floor"]
    by_case = {(row.policy, row.length): row.costs for row in rows}
    cells = []
    for policy in POLICIES:
        line = [policy]
        for part, end in by_case[policy, longest].items():
            start = by_case[policy, shortest][part]
            ratios = (end.seconds / start.seconds, end.floor / start.floor)
            line += [f"{ratio * shortest / longest:.2f}" for ratio in ratios]
        cells.append(line)
    return common.markdown(header, cells)


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    if not flags.lengths:
        common.fail("lengths must be at least one number, got none")
    common.at_least(1, repeats=flags.repeats, trials=flags.trials, lengths=min(flags.lengths))
    import jax

    algorithm = config_of(POLICIES[0], flags.lengths[0]).algorithm
    epochs, minibatches = algorithm["epochs"], algorithm["minibatches"]
    rows: list[Row] = []
    try:
        common.start((flags.trials, minibatches))
        jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are cold ones
        record = {"flags": common.settings(flags), "machine": common.machine()}
        flops_per_second = peak(flags.repeats)
        for policy in POLICIES:
            for length in flags.lengths:
                rows.append(measure(policy, length, flops_per_second, flags))
                print(f"{policy}, {length}: done", file=sys.stderr, flush=True)
                common.write_json(flags.json, record | {"flops_per_second": flops_per_second, "rows": rows})
    except ValueError as error:
        common.fail(str(error))
    devices = f"devices: {jax.device_count()}, {flops_per_second / 1e9:,.0f} Gflop/s on large matrices"
    print(f"\nAn update on {flags.trials} trials, {epochs} epochs, median of {flags.repeats}; {devices}\n")
    print(speed_table(rows, flags.trials))
    print(f"\nTime a token at {flags.lengths[-1]} pulls over that at {flags.lengths[0]}\n")
    print(growth_table(rows, flags.lengths[0], flags.lengths[-1]))


if __name__ == "__main__":
    main()
