"""Few-shot regression of sines (Finn et al., 2017, section 5.1): error after steps on the same few points.

Networks are trained with 10 points a task and one inner step. A test takes K points of a fresh sine, k steps
on those same points, and the mean squared error on 100 others. All seeds and methods are tested on the same
sines, so what the sines have in common does not average out over the seeds: the intervals are those of
`jmeta.statistics.over_seeds_and_tasks`.

For comparison, after one step on 10 points unless said otherwise:

- MAML 0.67 and Meta-SGD 0.31: the README of github.com/63days/Meta-SGD; these sines, one run of 60,000
  iterations of 4 tasks, tested on 100.
- 5 points: MAML 0.72, first order 0.81, Meta-SGD 0.46: the README of
  github.com/Zigolox/Meta-Learning-OptML-Project.

Finn et al. show curves alone, after 70,000 iterations of 25 tasks; here the preset says how many.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Any

import numpy as np

from benchmarks import common
from jmeta import statistics

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("maml", {}),
    "maml, first order": ("maml", {"first_order": True}),
    "meta-sgd": ("meta-sgd", {}),
}
SHOTS, STEPS, SHOWN = (5, 10, 20), 10, (0, 1, 10)
TRAINED_SHOTS, TEST_POINTS = 10, 100
DRAWN = 3  # sines in the plot


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    seeds: int = 5
    """Training runs of each method."""
    tasks: int = 1000
    """Fresh sines that each run is tested on."""
    iterations: int | None = None
    """Meta-iterations; None takes the preset's."""
    plot: pathlib.Path = pathlib.Path("benchmarks/results/sinusoid.png")
    """File for the plot."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One method with some number of points."""

    name: str
    shots: int
    iterations: int
    mean: list[float]  # [STEPS + 1] mean squared error
    low: list[float]
    high: list[float]
    median: list[float]
    worse: list[float]  # share of the sines whose error is larger than before the first step
    seconds: float  # of training all seeds, compilation included


def config_of(name: str, shots: int) -> Any:
    """The preset of a method with a number of points."""
    from jmeta.presets import preset

    method, arguments = METHODS[name]
    config = preset(method, "sinusoid")
    return dataclasses.replace(config, algorithm={**config.algorithm, **arguments, "num_episodes": shots})


def adaptation(algorithm: Any, params: Any, task: Any, key: Any) -> Any:
    """Parameters [STEPS + 1, ...] before and after each step on the points that `key` draws."""
    import jax
    import jax.numpy as jnp

    def step(params: Any, _: None) -> tuple[Any, Any]:
        # The same key gives the same points: an input does not depend on the parameters.
        after = algorithm.adapt(params, task, key, 1)[0].params
        return after, after

    _, later = jax.lax.scan(step, params, length=STEPS)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), params, later)


def errors(name: str, shots: int, trained: list[Any], key: Any, num_tasks: int) -> np.ndarray:
    """Mean squared errors [runs, tasks, STEPS + 1] of trained parameters, on fresh points of fresh sines."""
    import jax

    from jmeta import rollouts
    from jmeta.runs.config import build
    from jmeta.types import Adapted

    family, _, algorithm = build(config_of(name, shots))

    def one(params: Any, key: Any) -> Any:
        key_task, key_points, key_test = jax.random.split(key, 3)
        task = family.sample(key_task)

        def error(params: Any) -> Any:
            test = rollouts.batch(
                family.env, algorithm.policy, Adapted(params, ()), task, key_test, TEST_POINTS
            )
            return -rollouts.returns(test).mean()

        return jax.vmap(error)(adaptation(algorithm, params, task, key_points))

    @jax.jit
    def every(params: Any, keys: Any) -> Any:
        return jax.lax.map(lambda key: one(params, key), keys, batch_size=50)

    keys = jax.random.split(key, num_tasks)
    found = np.stack([np.asarray(every(params, keys)) for params in trained])
    return np.where(np.isnan(found), np.inf, found)  # it overflowed


def measure(name: str, flags: Flags) -> tuple[list[Row], Any]:
    """Trains with every seed, tests with every number of points; and the first seed's parameters."""
    import jax

    import jmeta
    from jmeta.runs.config import build

    config = config_of(name, TRAINED_SHOTS)
    family, _, algorithm = build(config)
    training = config.training
    if flags.iterations is not None:
        training = dataclasses.replace(training, iterations=flags.iterations)
    started, trained = time.perf_counter(), []
    for seed in range(flags.seeds):
        state = jmeta.train(algorithm, family, **{**dataclasses.asdict(training), "seed": seed})
        trained.append(jax.device_get(state.params))
        print(f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - started
    rows = []
    for shots in SHOTS:
        key = jax.random.key(10_000)  # no sine of any training run; the same ones for every method
        found = errors(name, shots, trained, key, flags.tasks)
        with np.errstate(invalid="ignore"):  # where an error is infinite, there is no interval
            mean, low, high, _ = (x.tolist() for x in statistics.over_seeds_and_tasks(found))
        median = np.median(found, axis=(0, 1)).tolist()
        worse = (found > found[..., :1]).mean((0, 1)).tolist()
        rows.append(Row(name, shots, training.iterations, mean, low, high, median, worse, seconds))
    return rows, trained[0]


def draw(rows: list[Row], params: Any, path: pathlib.Path) -> None:
    """Fits of MAML to a few sines, and the median error over steps of every method."""
    import jax
    import jax.numpy as jnp

    pyplot = common.pyplot()

    from jmeta.runs.config import build
    from jmeta.types import PolicyInput

    family, policy, algorithm = build(config_of("maml", TRAINED_SHOTS))
    grid = jnp.linspace(-5, 5, 200)
    nothing = jnp.zeros(len(grid))
    inputs = PolicyInput(grid[:, None], nothing[:, None], nothing, nothing > 0, nothing > 0)

    figure, axes = pyplot.subplots(1, DRAWN + 1, figsize=(4 * (DRAWN + 1), 3.6))
    for axis, key in zip(axes, jax.random.split(jax.random.key(5), DRAWN), strict=False):
        key_task, key_points = jax.random.split(key)
        task = family.sample(key_task)
        _, info = algorithm.adapt(params, task, key_points, 1)
        points = np.asarray(info.data.inputs.obs).ravel()
        path_of = adaptation(algorithm, params, task, key_points)
        predictions = jax.vmap(lambda p: policy.unroll(p, (), inputs)[1].distribution.mean[:, 0])(path_of)
        axis.plot(grid, task.amplitude * jnp.sin(grid - task.phase), color="black", label="sine")
        axis.plot(points, task.amplitude * np.sin(points - task.phase), "k^", label="points")
        for step, style in zip(SHOWN, (":", "--", "-"), strict=True):
            axis.plot(grid, predictions[step], style, label=f"steps: {step}")
        axis.set(xlabel="x")
    axes[0].set_ylabel("y")
    axes[0].legend(fontsize="small", loc="lower left", framealpha=1)
    for row in rows:
        if row.shots == TRAINED_SHOTS:
            axes[-1].plot(row.median, label=row.name)  # means are spoiled by the few that diverge
    axes[-1].set(
        xlabel=f"steps on the same {TRAINED_SHOTS} points", ylabel="median squared error", yscale="log"
    )
    axes[-1].legend(fontsize="small")
    figure.tight_layout()
    common.save_figure(figure, path)


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.check_plot(flags.plot)
    common.start(*((config_of(name, TRAINED_SHOTS).training.num_tasks, 1) for name in METHODS))
    rows, first = [], {}
    for name in METHODS:
        measured, first[name] = measure(name, flags)
        rows += measured
        record = {"flags": common.settings(flags), "machine": common.machine(), "rows": rows}
        common.write_json(flags.json, record)
    means = [f"after {k}" for k in SHOWN]
    header = [
        "method",
        "points",
        "iterations",
        *means,
        *(f"median {m}" for m in means[1:]),
        "worse",
        "minutes",
    ]
    cells = [
        [
            row.name,
            str(row.shots),
            str(row.iterations),
            *(
                f"{row.mean[k]:.3f} [{row.low[k]:.3f}, {row.high[k]:.3f}]"
                if row.mean[k] < 1e3
                else "diverged"  # on some sine: trained for one step
                for k in SHOWN
            ),
            *(f"{row.median[k]:.3f}" for k in SHOWN[1:]),
            f"{row.worse[STEPS]:.2%}",
            f"{row.seconds / 60:.1f}",
        ]
        for row in rows
    ]
    print(f"\nMean squared error after k steps, {statistics.heading(flags.seeds)},")
    print(f"all of them on the same {flags.tasks} fresh sines;")
    print(f"worse: sines whose error after {STEPS} steps is larger than before the first\n")
    print(common.markdown(header, cells))
    draw(rows, first["maml"], flags.plot)


if __name__ == "__main__":
    main()
