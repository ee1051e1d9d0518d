"""How fast: environment steps/s of whole meta-iterations, beside those of the physics alone.

Physics alone steps the same batch of environments with random actions, in the same blocks on the same
devices; both sides are timed alternately in one process, after a warm-up, and the median is given. On both
sides every step that is computed counts, those after an episode's end, too. Peak memory is that of a process
of its own for each size.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import common


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    family: str = "half-cheetah-direction"
    """Task family."""
    tasks: tuple[int, ...] = (20, 200, 1000)
    """Tasks of the scaling rows; the first is also that of the comparisons."""
    episodes: int = 20
    """Episodes of a task in the comparison of optimisers and devices."""
    scaling_episodes: int = 4
    """Episodes of a task in the scaling rows."""
    repeats: int = 3
    """Timed repetitions of each side."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement, made in a process of its own."""

    family: str
    outer: str  # of those in `OUTER`
    num_tasks: int
    num_episodes: int
    repeats: int
    compare_devices: bool  # also train on one device alone


OUTER: dict[str, tuple[str | None, dict[str, Any]]] = {  # optimizer, arguments
    "ppo": (None, {}),  # the preset: Adam on the clipped objective, several epochs
    "ppo, 5 epochs": (None, {"outer_epochs": 5}),  # as many as ProMP's authors take
    "trpo": ("trpo", {}),
}


def measure(case: Case) -> dict[str, Any]:
    """Times meta-iterations and physics alternately; returns medians."""
    import jax
    import jax.numpy as jnp

    from jmeta import parallel, runtime, training
    from jmeta.presets import preset
    from jmeta.runs.config import build

    runtime.configure(num_tasks=case.num_tasks)
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are cold ones
    optimizer, outer = OUTER[case.outer]
    config = preset("maml", case.family, optimizer=optimizer)
    arguments = {**config.algorithm, **outer, "num_episodes": case.num_episodes}
    family, _, algorithm = build(dataclasses.replace(config, algorithm=arguments))
    env, block = family.env, parallel.tasks_per_block(case.num_episodes)
    steps = case.num_tasks * case.num_episodes * env.spec.horizon  # of a batch of episodes

    def random_episode(task: Any, key: Any) -> Any:
        key_reset, key_act, key_steps = jax.random.split(key, 3)
        state, _ = env.reset(key_reset, task)
        actions = jax.random.uniform(key_act, (env.spec.horizon, env.spec.action.size), minval=-1, maxval=1)

        def step(state: Any, inputs: Any) -> tuple[Any, Any]:
            state, timestep = env.step(inputs[1], state, inputs[0], task)
            return state, timestep.reward

        return jax.lax.scan(step, state, (actions, jax.random.split(key_steps, env.spec.horizon)))[1].sum()

    def physics(key: Any) -> Any:
        def one_task(_: Any, task: Any, key: Any) -> Any:
            keys = jax.random.split(key, case.num_episodes)
            return jax.vmap(lambda key: random_episode(task, key))(keys)

        return parallel.map_tasks(one_task, (), *common.fresh_tasks(family, case.num_tasks, key), block=block)

    def sides(devices: list[Any]) -> tuple[dict[str, Callable[[], float]], float]:
        """Both sides as functions that run once and return steps/s, and the seconds to compile training."""
        mesh = parallel.task_mesh(devices)
        jitted_physics = jax.jit(physics)
        chunk = training.compile_chunk(algorithm, family, num_tasks=case.num_tasks, length=1)
        with jax.set_mesh(mesh):
            state = parallel.replicate(training.initial_state(algorithm, seed=0), mesh)
            started = time.perf_counter()
            state, _ = jax.block_until_ready(chunk(state, jnp.int32(0)))
            compile_seconds = time.perf_counter() - started
        box = [state]

        def run_training() -> float:
            with jax.set_mesh(mesh):
                started = time.perf_counter()
                box[0], _ = jax.block_until_ready(chunk(box[0], jnp.int32(1)))
                seconds = time.perf_counter() - started
            return (config.algorithm["num_inner_steps"] + 1) * steps / seconds

        def run_physics() -> float:
            with jax.set_mesh(mesh):
                started = time.perf_counter()
                jitted_physics(jax.random.key(1)).block_until_ready()
                seconds = time.perf_counter() - started
            return steps / seconds

        return {"training": run_training, "physics": run_physics}, compile_seconds

    every, compile_seconds = sides(jax.devices())
    for side in every.values():
        side()  # warm-up
    peak_memory = common.peak_memory()
    if case.compare_devices:
        one, _ = sides(jax.devices()[:1])
        every["training_one_device"] = one["training"]
        one["training"]()
    rates: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(case.repeats):
        for name, side in every.items():
            rates[name].append(side())
    result: dict[str, Any] = {name: statistics.median(values) for name, values in rates.items()}
    result |= {"compile_seconds": compile_seconds, "devices": len(jax.devices())}
    return result | {"peak_mebibytes": peak_memory, "rates": rates, "machine": common.machine()}


def main() -> None:
    """Runs the command."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(Case(**json.loads(sys.argv[2])))))
        return
    flags = common.parse(Flags, __doc__)
    if not flags.tasks:
        common.fail("tasks must be at least one number, got none")
    common.at_least(1, tasks=min(flags.tasks), repeats=flags.repeats)
    common.at_least(1, episodes=flags.episodes, scaling_episodes=flags.scaling_episodes)
    cases = [
        Case(
            flags.family, outer, flags.tasks[0], flags.episodes, flags.repeats, compare_devices=outer == "ppo"
        )
        for outer in OUTER
    ] + [
        Case(flags.family, "ppo", tasks, flags.scaling_episodes, flags.repeats, compare_devices=False)
        for tasks in flags.tasks
    ]
    results = []
    for case in cases:
        found = common.in_own_process("benchmarks.throughput", case)
        results.append({**dataclasses.asdict(case), **found})
        print(f"{case.outer}, {case.num_tasks} x {case.num_episodes}: done", file=sys.stderr, flush=True)
    first = results[-len(flags.tasks)]["training"]
    header = ["outer update", "tasks x episodes", "devices", "steps/s", "physics alone", "ratio"]
    header += ["vs one device", "vs first size", "compile s", "peak MiB"]
    rows = []
    for index, result in enumerate(results):
        one = result.get("training_one_device")
        scaling = index >= len(OUTER)
        rows.append(
            [
                result["outer"],
                f"{result['num_tasks']} x {result['num_episodes']}",
                str(result["devices"]),
                f"{result['training']:,.0f}",
                f"{result['physics']:,.0f}",
                f"{result['training'] / result['physics']:.2f}",
                f"{result['training'] / one:.2f}" if one else "",
                f"{result['training'] / first:.2f}" if scaling else "",
                f"{result['compile_seconds']:.1f}",
                f"{result['peak_mebibytes']:,.0f}",
            ]
        )
    print(f"\n{flags.family}: environment steps/s of whole meta-iterations, median of {flags.repeats}\n")
    print(common.markdown(header, rows))
    common.write_json(flags.json, {"results": results})


if __name__ == "__main__":
    main()
