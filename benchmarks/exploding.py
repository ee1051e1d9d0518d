"""What exploding simulations cost: returns of runs in which some tasks are lost, and of runs without.

In every meta-iteration a share of the tasks turns NaN at a random step of an episode, in the state (and with
it in all that follows), the observation or the reward. Both kinds of runs are evaluated on the same fresh
tasks, none of which explodes.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import common

PAIRS = (("maml", "point-goal"), ("rl2", "bandit"))
PLACES = ("state", "observation", "reward")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    share: float = 0.01
    """Share of the tasks that explode."""
    seeds: int = 3
    """Training runs of each kind."""
    tasks: int = 200
    """Fresh tasks that each run is evaluated on."""
    iterations: int | None = None
    """Meta-iterations; None takes the preset's."""
    json: pathlib.Path | None = None
    """File for what is printed."""


class Exploding(NamedTuple):
    """A task, and when and where it turns NaN."""

    task: Any
    step: Any  # [] int32, of an episode; the horizon or later: never
    place: Any  # [] int32, an index of `PLACES`


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs of one algorithm on one family, with or without exploding tasks."""

    algorithm: str
    family: str
    share: float
    lost: list[float]  # share of the tasks that were lost in training, by seed
    exploded: list[float]  # share of the tasks that were drawn to explode, by seed
    skipped: list[int]  # updates, by seed
    returns: list[float]  # mean return after adaptation, by seed
    mean: float
    low: float
    high: float
    seconds: float


def exploding(family: Any, share: float) -> Any:
    """A family of which so many tasks explode."""
    import jax
    import jax.numpy as jnp

    horizon = family.env.spec.horizon

    def sample(key: Any) -> Exploding:
        key_task, key_step, key_place, key_explodes = jax.random.split(key, 4)
        step = jax.random.randint(key_step, (), 0, horizon)
        explodes = jax.random.bernoulli(key_explodes, share)
        place = jax.random.randint(key_place, (), 0, len(PLACES))
        return Exploding(family.sample(key_task), jnp.where(explodes, step, horizon), place)

    def broken(tree: Any, when: Any) -> Any:
        def one(x: Any) -> Any:
            return jnp.where(when, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x

        return jax.tree.map(one, tree)

    def reset(key: Any, task: Exploding) -> Any:
        state, timestep = family.env.reset(key, task.task)
        return (state, jnp.zeros((), jnp.int32)), timestep

    def step(key: Any, state: Any, action: Any, task: Exploding) -> Any:
        inner, taken = state
        now = taken == task.step
        inner, timestep = family.env.step(key, broken(inner, now & (task.place == 0)), action, task.task)
        timestep = timestep._replace(
            # A state without numbers that can be NaN is given away by its reward.
            reward=broken(timestep.reward, now & (task.place != 1)),
            obs=broken(timestep.obs, now & (task.place == 1)),
        )
        return (inner, taken + 1), timestep

    env = family.env._replace(reset=reset, step=step)
    return family._replace(env=env, sample=sample, sample_heldout=sample, optimal_return=None)


def measure(algorithm_name: str, family_name: str, share: float, flags: Flags) -> Row:
    """Trains with every seed, and evaluates on tasks that do not explode."""
    import jax

    import jmeta
    from jmeta import statistics
    from jmeta.presets import preset
    from jmeta.runs.config import build

    config = preset(algorithm_name, family_name)
    training = config.training
    if flags.iterations is not None:
        training = dataclasses.replace(training, iterations=flags.iterations)
        config = dataclasses.replace(config, training=training)
    healthy, _, _ = build(config)
    family, _, algorithm = build(config, exploding(healthy, share))
    calm = exploding(healthy, 0.0)
    started, lost, drawn, skipped, returns = time.perf_counter(), [], [], [], []
    for seed in range(flags.seeds):
        records: list[dict[str, float]] = []
        state = jmeta.train(
            algorithm,
            family,
            **(dataclasses.asdict(training) | {"seed": seed}),
            callback=lambda progress, records=records: records.extend(progress.records),
        )
        total = training.num_tasks * training.iterations
        lost.append(sum(record["tasks_lost"] for record in records) / total)
        drawn.append(share_drawn(family, seed, training))
        skipped.append(int(records[-1]["skipped"]))
        key = jax.random.key(10_000 + seed)  # no task of any training run
        result = jmeta.evaluate(algorithm, calm, state.params, key, num_tasks=flags.tasks, num_steps=None)
        returns.append(float(result.return_mean[1 if algorithm_name == "maml" else -1]))
        print(f"{algorithm_name}, {share:.0%}, seed {seed}: {returns[-1]:.2f}", file=sys.stderr, flush=True)
    mean, low, high, _ = (float(x) for x in statistics.over_seeds(np.array(returns)))
    seconds = time.perf_counter() - started
    return Row(algorithm_name, family_name, share, lost, drawn, skipped, returns, mean, low, high, seconds)


def share_drawn(family: Any, seed: int, training: Any) -> float:
    """Share of the tasks of a training run that were drawn to explode, from the run's own keys."""
    import jax

    from jmeta import parallel

    key_run = jax.random.split(jax.random.key(seed))[1]

    @jax.jit
    def count(iteration: Any) -> Any:
        key_tasks, _ = jax.random.split(jax.random.fold_in(key_run, iteration))
        tasks = jax.vmap(family.sample)(parallel.task_keys(key_tasks, training.num_tasks))
        return (tasks.step < family.env.spec.horizon).sum()

    total = sum(int(count(iteration)) for iteration in range(training.iterations))
    return total / (training.num_tasks * training.iterations)


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(1, seeds=flags.seeds, tasks=flags.tasks)
    common.start()
    rows: list[Row] = []
    for algorithm, family in PAIRS:
        for share in (0.0, flags.share):
            rows.append(measure(algorithm, family, share, flags))
            record = {"flags": common.settings(flags), "machine": common.machine(), "rows": rows}
            common.write_json(flags.json, record)
    from jmeta import statistics

    header = ["algorithm", "family", "explode", "drawn", "lost", "skipped updates", "return", "minutes"]
    cells = [
        [
            row.algorithm,
            row.family,
            f"{row.share:.0%}",
            f"{np.mean(row.exploded):.2%}",
            f"{np.mean(row.lost):.2%}",
            str(sum(row.skipped)),
            f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]",
            f"{row.seconds / 60:.1f}",
        ]
        for row in rows
    ]
    print(f"\nReturn after adaptation, {statistics.heading(flags.seeds)}, {flags.tasks} fresh tasks a seed;")
    print(f"{common.machine_line(common.machine())}\n")
    print(common.markdown(header, cells))


if __name__ == "__main__":
    main()
