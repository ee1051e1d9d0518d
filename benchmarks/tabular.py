"""Q-learning on fresh random processes from a meta-learned table, from zeros and from optimistic values.

Each table is tried by Q-learning, one episode a step, on the same fresh processes of 10 states, 5 actions and
10 steps (`random-mdp`). In the first family half of every table is common to all processes, so that a good
initial table exists but leaves much to learn; in the others only the distribution is.

The opponents are tuned: step size and exploration are those of a grid, and the optimistic value that of a
list, with the greatest return over the last ten of 100 episodes, on processes that are not the test's. The
meta-learned tables get the settings that are best for zeros.

Everything is done with every seed: training, and a test of every table on processes of the seed's own.
Returns have Student's t intervals over the seeds.

"As zeros" is the first episode at which the mean return over it and the nine before it, averaged over the
processes of a seed, reaches that of zeros over episodes 91 to 100; so 10 is the least. "As optimistic"
likewise. It is infinite if that is never reached, so it has no mean: the median over the seeds is shown, and
their range. The range of 5 seeds covers the median of all runs with a probability of 94 %, that of 10 seeds
with 99.8 %.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import common
from jmeta import statistics

FAMILIES: dict[str, dict[str, Any]] = {
    "half shared": {"shared": 0.5},
    "independent": {},
    "uniform transitions": {"transitions": "uniform"},
}
METHODS = ("reptile", "maml")
STEP_SIZES = (0.1, 0.2, 0.4, 0.8)
EPSILONS = (0.05, 0.1, 0.2)
OPTIMISTIC = (5.0, 10.0, 20.0)  # values; a reward is 1 in the mean, ten of them discounted by 0.9 are 6.5
EPISODES, WINDOW = 100, 10
SHOWN = (1, 10, 33, 100)
Curves = Callable[[Any, Any], np.ndarray]  # initial table, key -> returns [tasks, EPISODES]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    tasks: int = 200
    """Fresh processes of each seed that every table is tried on."""
    seeds: int = 5
    """Training runs of each meta-learned table, and tests of every table."""
    iterations: int | None = None
    """Meta-iterations; None takes the preset's."""
    plot: pathlib.Path = pathlib.Path("benchmarks/results/tabular.png")
    """File for the learning curves."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How Q-learning does from one initial table."""

    name: str
    mean: list[float]  # [EPISODES] return
    low: list[float]
    high: list[float]
    as_zeros: tuple[float, float, float]  # episodes needed: median, least and most; infinite if never
    as_optimistic: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Result:
    """One family."""

    name: str
    settings: str
    optimum: float  # mean return of the best policy that knows the process
    rows: list[Row]
    seconds: float


def config_of(method: str, family: dict[str, Any], step_size: float, epsilon: float) -> Any:
    """The preset of a method with a family's and a learner's settings."""
    from jmeta.presets import preset

    config = preset(method, "random-mdp")
    return dataclasses.replace(
        config,
        algorithm={**config.algorithm, "inner_learning_rate": step_size},
        family={**config.family, **family},
        policy={**config.policy, "epsilon": epsilon},
    )


def curves_of(config: Any, num_tasks: int) -> Curves:
    """Q-learning with the settings of a configuration, compiled."""
    import jax

    from jmeta.runs.config import build

    family, _, algorithm = build(config)

    @jax.jit
    def curves(table: Any, key: Any) -> Any:
        key_tasks, key_run = jax.random.split(key)
        tasks = jax.vmap(family.sample)(jax.random.split(key_tasks, num_tasks))

        def one(task: Any, key: Any) -> Any:
            return algorithm.adapt(table, task, key, EPISODES)[1].returns

        return jax.vmap(one)(tasks, jax.random.split(key_run, num_tasks))

    return lambda table, key: np.asarray(curves(table, key))


def tune(
    family: dict[str, Any], tables: dict[float, Any], key: Any
) -> dict[float, tuple[float, float, float]]:
    """The best (return over the last episodes, step size, epsilon) of every table."""
    best = dict.fromkeys(tables, (-np.inf, 0.0, 0.0))
    for step_size in STEP_SIZES:
        for epsilon in EPSILONS:
            curves = curves_of(config_of("maml", family, step_size, epsilon), num_tasks=200)
            for value, table in tables.items():
                reached = float(curves(table, key)[:, -WINDOW:].mean())
                best[value] = max(best[value], (reached, step_size, epsilon))
    return best


def trailing(returns: np.ndarray) -> np.ndarray:
    """Means over WINDOW episodes [..., EPISODES - WINDOW + 1]; the first ends with episode WINDOW."""
    total = np.cumsum(returns, axis=-1)
    total[..., WINDOW:] -= total[..., :-WINDOW].copy()
    return total[..., WINDOW - 1 :] / WINDOW


def needs(returns: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Episodes that a table needs for what another reaches: median, least and most of the seeds.

    Args:
      returns: [seeds, tasks, EPISODES].
      other: the same of the other table, on the same tasks.
    """
    smooth, target = trailing(returns.mean(1)), trailing(other.mean(1))[:, -1:]
    reached = smooth >= target
    counts = np.where(reached.any(1), reached.argmax(1) + float(WINDOW), np.inf)
    # Of an even number of seeds, the worse of the two in the middle: their mean may not exist.
    return float(np.sort(counts)[len(counts) // 2]), float(counts.min()), float(counts.max())


def measure(name: str, arguments: dict[str, Any], flags: Flags) -> Result:
    """Tunes, meta-learns and compares on one family."""
    import jax

    import jmeta
    from jmeta.evaluation import evaluation_key
    from jmeta.runs.config import build

    started = time.perf_counter()
    seeds = range(flags.seeds)
    family, policy, _ = build(config_of("maml", arguments, STEP_SIZES[0], EPSILONS[0]))
    zeros = policy.init(jax.random.key(0))
    key_tune = evaluation_key(flags.seeds)  # that of no seed's test
    best = tune(arguments, {value: zeros + value for value in (0.0, *OPTIMISTIC)}, key_tune)
    optimism = max(OPTIMISTIC, key=lambda value: best[value])
    settings = {"zeros": (0.0, best[0.0][1:]), "optimistic": (optimism, best[optimism][1:])}
    learners = {
        tuned: curves_of(config_of("maml", arguments, *tuned), flags.tasks) for _, tuned in settings.values()
    }

    def test(tables: list[Any], tuned: tuple[float, float]) -> np.ndarray:
        """Returns [seeds, tasks, EPISODES] from the table of every seed, on its own processes."""
        return np.stack([learners[tuned](tables[seed], evaluation_key(seed)) for seed in seeds])

    returns = {
        start: test([zeros + value] * flags.seeds, tuned) for start, (value, tuned) in settings.items()
    }
    for method in METHODS:
        tuned = best[0.0][1:]
        config = config_of(method, arguments, *tuned)
        training = dataclasses.asdict(config.training)
        if flags.iterations is not None:
            training["iterations"] = flags.iterations
        algorithm = build(config)[2]
        tables = [jmeta.train(algorithm, family, **(training | {"seed": seed})).params for seed in seeds]
        returns[method] = test([jax.device_get(one) for one in tables], tuned)
        print(f"{name}: {method} trained, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    assert family.optimal_return is not None
    optimal = jax.jit(jax.vmap(lambda key: family.optimal_return(family.sample(key))))
    tasks = [jax.random.split(jax.random.split(evaluation_key(seed))[0], flags.tasks) for seed in seeds]
    optimum = float(np.mean([optimal(keys) for keys in tasks]))
    rows = []
    for start, one in returns.items():
        mean, low, high, _ = (x.tolist() for x in statistics.over_seeds(one.mean(1)))
        needed = (needs(one, returns[other]) for other in ("zeros", "optimistic"))
        rows.append(Row(start, mean, low, high, *needed))
    described = ", ".join(
        f"{start}: value {value:g}, step size {tuned[0]:g}, epsilon {tuned[1]:g}"
        for start, (value, tuned) in settings.items()
    )
    return Result(name, described, optimum, rows, time.perf_counter() - started)


def table(result: Result) -> str:
    """One family as text."""

    def episodes(needed: tuple[float, float, float]) -> str:
        count, low, high = (f"{x:.0f}" if np.isfinite(x) else f"> {EPISODES}" for x in needed)
        return f"{count} [{low}, {high}]"

    cells = []
    for row in result.rows:
        shown = [f"{row.mean[e - 1]:.1f} [{row.low[e - 1]:.1f}, {row.high[e - 1]:.1f}]" for e in SHOWN]
        last = float(np.mean(row.mean[-WINDOW:]))
        needed = [episodes(row.as_zeros), episodes(row.as_optimistic)]
        cells.append([row.name, *shown, f"{last:.1f}", f"{last / result.optimum:.0%}", *needed])
    header = [
        "from",
        *(f"episode {e}" for e in SHOWN),
        "91 to 100",
        "of optimum",
        "as zeros",
        "as optimistic",
    ]
    return (
        f"{result.name}: optimum {result.optimum:.2f}; {result.settings}\n\n{common.markdown(header, cells)}"
    )


def draw(results: list[Result], path: pathlib.Path) -> None:
    """Learning curves, the intervals of their episodes (both as means over ten), and the optimum."""
    pyplot = common.pyplot()

    figure, axes = pyplot.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    episodes = np.arange(WINDOW, EPISODES + 1)
    for axis, result in zip(axes[0], results, strict=True):
        for row in result.rows:
            (line,) = axis.plot(episodes, trailing(np.array(row.mean)), label=row.name)
            low, high = trailing(np.array(row.low)), trailing(np.array(row.high))
            axis.fill_between(episodes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.axhline(result.optimum, color="black", linestyle="--", label="optimum")
        axis.set(title=result.name, xlabel="episode", ylabel="return, mean over ten episodes")
    axes[0][0].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    common.save_figure(figure, path)


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.at_least(1, seeds=flags.seeds, tasks=flags.tasks)
    common.check_plot(flags.plot)
    from jmeta.presets import preset

    common.start(*((preset(method, "random-mdp").training.num_tasks, 1) for method in METHODS))
    results = [measure(name, arguments, flags) for name, arguments in FAMILIES.items()]
    record = {"flags": common.settings(flags), "machine": common.machine(), "results": results}
    common.write_json(flags.json, record)
    print(f"Return of an episode, {statistics.heading(flags.seeds)}, {flags.tasks} fresh processes each;")
    print("episodes needed: median over the seeds [their range]")
    for result in results:
        print(f"\n{table(result)}\n\n{result.seconds:.0f} s")
    draw(results, flags.plot)


if __name__ == "__main__":
    main()
