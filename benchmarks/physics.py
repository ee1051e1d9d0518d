"""Brax's spring physics in one kernel, beside `batch_last` and `jax.vmap`: speed and agreement.

Speed: all three paths step the same robots with random actions in one process on one core. They take turns,
after a warm-up, and the median of the turns is given, in microseconds a robot and step. Beside the kernel
stands the share of the core's peak that it reaches: operations of one step by that time, over those of a loop
that does nothing but multiply and add in registers.

Agreement (`--episodes`): float32 paths of one robot part after some ten steps, because contacts are chaotic,
so returns must agree in distribution. Kernel and `vmap` play that many episodes each, with keys of their own,
under three policies; returns and lengths are compared by two-sample Kolmogorov-Smirnov tests. Where nothing
differs, a p-value is as likely to be anywhere between 0 and 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import common

ROBOTS = ("halfcheetah", "ant", "hopper", "walker2d", "humanoid")
BLOCK = 500  # episodes that are compared, side by side


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    robots: tuple[str, ...] = ROBOTS
    """Robots, by brax's names."""
    sizes: tuple[int, ...] = (64, 256, 1024)
    """Robots side by side."""
    steps: int = 10
    """Steps of one turn."""
    repeats: int = 7
    """Turns of each path."""
    episodes: int = 0
    """Episodes of each side that are compared in distribution; 0 leaves the comparison out."""
    horizon: int = 100
    """Steps in each of them."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@contextlib.contextmanager
def path(name: str) -> Iterator[None]:
    """While robots are made, lets them take one of the paths."""
    import jax

    from jmeta.envs import brax

    paths: dict[str, Callable[..., Any]] = {
        "kernel": brax.one_kernel,
        "batch last": lambda fn, otherwise=jax.jit: otherwise(fn),
        "vmap": lambda fn, otherwise=None: jax.jit(fn),
    }
    before, brax.one_kernel = brax.one_kernel, paths[name]
    try:
        yield
    finally:
        brax.one_kernel = before


PATHS = ("kernel", "batch last", "vmap")


def robot(name: str, horizon: int = 100) -> Any:
    """A robot with brax's own reward."""
    from jmeta.envs import brax

    return brax.make(name, backend="spring", horizon=horizon, reward=lambda state, action, task: state.reward)


def turn(name: str, size: int, num_steps: int) -> Callable[[], float]:
    """A function that steps the robots and returns the microseconds a robot and step."""
    import jax
    import jax.numpy as jnp

    env = robot(name)
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), size), jnp.zeros(size))
    shape = (num_steps, size, env.spec.action.size)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0)

    @jax.jit
    def play(state: Any, actions: Any) -> Any:
        def step(state: Any, action: Any) -> Any:
            state, seen = jax.vmap(lambda s, a: env.step(None, s, a, 0.0))(state, action)
            return state, seen.reward

        return jax.lax.scan(step, state, actions)

    def timed() -> float:
        started = time.perf_counter()
        jax.block_until_ready(play(state, actions))
        return (time.perf_counter() - started) / (size * num_steps) * 1e6

    timed()
    return timed


def operations(name: str) -> int:
    """Scalar operations of one step of a robot."""
    import jax
    import jax.numpy as jnp

    from jmeta.kernels.program import Program

    with path("vmap"):
        env = robot(name)
    state, _ = jax.eval_shape(env.reset, jax.random.key(0), 0.0)
    action = jnp.zeros(env.spec.action.size)
    return Program(jax.make_jaxpr(lambda s, a: env.step(None, s, a, 0.0))(state, action)).count()


def peak() -> float:
    """Operations in a microsecond of a core that multiplies and adds in registers, and does nothing else."""
    import jax
    import jax.numpy as jnp

    from jmeta.kernels import one_kernel

    chains, length, rounds = 16, 16, 2_000

    @one_kernel
    def fn(x: Any) -> Any:
        def step(_: Any, y: Any) -> Any:
            for _ in range(length):
                y = y * x + 0.5
            return y

        return jax.lax.fori_loop(
            0, rounds, step, jnp.broadcast_to(x, (chains,)) * jnp.arange(1.0, chains + 1)
        )

    size = 64
    play = jax.jit(jax.vmap(fn))
    x = jnp.full(size, 0.5)
    jax.block_until_ready(play(x))
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        jax.block_until_ready(play(x))
        seconds.append(time.perf_counter() - started)
    return 2 * chains * length * rounds * size / min(seconds) / 1e6


def speed(flags: Flags) -> list[dict[str, Any]]:
    """Every robot at every size on every path."""
    found = []
    most = peak()
    for name in flags.robots:
        count = operations(name)
        for size in flags.sizes:
            turns = {}
            for which in PATHS:
                with path(which):
                    turns[which] = turn(name, size, flags.steps)
            times: dict[str, list[float]] = {which: [] for which in PATHS}
            for _ in range(flags.repeats):
                for which, timed in turns.items():
                    times[which].append(timed())
            microseconds = {which: statistics.median(values) for which, values in times.items()}
            share = count / microseconds["kernel"] / most
            found.append(
                {
                    "robot": name,
                    "size": size,
                    "operations": count,
                    "share": share,
                    "microseconds": microseconds,
                }
                | {"turns": times, "peak_operations_a_microsecond": most}
            )
            print(f"{name}, {size}: {microseconds}", file=sys.stderr, flush=True)
    return found


def policies(size: int) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """`(key, time, observation) -> action`: of noise, of the clock, and of what is seen."""
    import jax
    import jax.numpy as jnp

    def network(key: Any, time: Any, obs: Any) -> Any:
        first = jax.random.normal(jax.random.key(5), (obs.shape[0], 32)) / jnp.sqrt(obs.shape[0])
        second = jax.random.normal(jax.random.key(6), (32, size)) / jnp.sqrt(32)
        return jnp.tanh(jnp.tanh(obs @ first) @ second * 2) + 0.1 * jax.random.normal(key, (size,))

    return {
        "random": lambda key, time, obs: jax.random.uniform(key, (size,), minval=-1.0),
        "swinging": lambda key, time, obs: jnp.sin(0.3 * time + jnp.arange(size)),
        "network": network,
    }


def play(env: Any, policy: Callable[..., Any], episodes: int, seed: int) -> tuple[Any, Any]:
    """Returns and lengths [episodes]."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    @jax.jit
    @jax.vmap
    def episode(key: Any) -> tuple[Any, Any]:
        key_reset, key_steps = jax.random.split(key)
        state, first = env.reset(key_reset, 0.0)

        def step(carry: Any, inputs: Any) -> Any:
            state, obs, alive = carry
            time, key = inputs
            state, seen = env.step(None, state, policy(key, time, obs), 0.0)
            return (state, seen.obs, alive & ~seen.terminated), (jnp.where(alive, seen.reward, 0), alive)

        inputs = jnp.arange(env.spec.horizon), jax.random.split(key_steps, env.spec.horizon)
        _, (rewards, alive) = jax.lax.scan(step, (state, first.obs, jnp.array(True)), inputs)
        return rewards.sum(), alive.sum()

    keys = jax.random.split(jax.random.key(seed), episodes)
    blocks = [episode(keys[start : start + BLOCK]) for start in range(0, episodes, BLOCK)]
    return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))


def agreement(flags: Flags) -> list[dict[str, Any]]:
    """Kernel and `vmap` in distribution."""
    import numpy as np
    from scipy import stats

    found = []
    for name in flags.robots:
        envs = {}
        for which in ("kernel", "vmap"):
            with path(which):
                envs[which] = robot(name, flags.horizon)
        for policy_name, policy in policies(envs["kernel"].spec.action.size).items():
            sides = [play(env, policy, flags.episodes, seed) for seed, env in enumerate(envs.values())]
            (returns, lengths), (other_returns, other_lengths) = sides
            found.append(
                {
                    "robot": name,
                    "policy": policy_name,
                    "returns": [[float(np.mean(x)), float(np.std(x))] for x in (returns, other_returns)],
                    "lengths": [float(np.mean(x)) for x in (lengths, other_lengths)],
                    "p_returns": float(stats.ks_2samp(returns, other_returns).pvalue),
                    "p_lengths": float(stats.ks_2samp(lengths, other_lengths).pvalue),
                }
            )
            print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    for name in flags.robots:
        if name not in ROBOTS:
            common.fail(f"robots must be of {', '.join(ROBOTS)}, got {name!r}")
    common.at_least(1, steps=flags.steps, repeats=flags.repeats, horizon=flags.horizon)
    common.at_least(0, episodes=flags.episodes)
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    common.start()
    machine = common.machine()
    record: dict[str, Any] = {"settings": common.settings(flags), "machine": machine}
    if flags.sizes:
        record["speed"] = speed(flags)
        header = ["robot", "at once", *(f"{name}, us" for name in PATHS), "over batch last", "over vmap"]
        rows = []
        for row in record["speed"]:
            us = row["microseconds"]
            rows.append(
                [row["robot"], str(row["size"]), *(f"{us[name]:.2f}" for name in PATHS)]
                + [f"{us[name] / us['kernel']:.1f}" for name in PATHS[1:]]
                + [f"{row['operations']:,}", f"{100 * row['share']:.0f} %"]
            )
        print(f"\nMicroseconds a robot and step on one core, median of {flags.repeats}.")
        print(f"{common.machine_line(machine)}.\n")
        print(common.markdown([*header, "operations", "of the core's peak"], rows))
    if flags.episodes:
        record["agreement"] = agreement(flags)
        rows = [
            [row["robot"], row["policy"]]
            + [f"{mean:.2f} ({deviation:.2f})" for mean, deviation in row["returns"]]
            + [f"{length:.2f}" for length in row["lengths"]]
            + [f"{row['p_returns']:.3f}", f"{row['p_lengths']:.3f}"]
            for row in record["agreement"]
        ]
        header = ["robot", "policy", "return, kernel", "return, vmap", "length, kernel", "length, vmap"]
        print(
            f"\n{flags.episodes:,} episodes of {flags.horizon} steps: mean (standard deviation), p-values.\n"
        )
        print(common.markdown([*header, "p, returns", "p, lengths"], rows))
    common.write_json(flags.json, record)


if __name__ == "__main__":
    main()
