"""How good the meta-gradients are: bias and variance of every estimator against the exact one.

On the two-state process of `tests/oracle.py`, whose episodes can all be enumerated. An estimate is one update
of the library's algorithm, in double precision, on two tasks with N episodes each before every inner step and
after the last; no baseline, no discount.

What "exact" refers to. The inner step is itself estimated from N episodes, so there are two objectives:
- J(theta + a grad J(theta)), the adaptation to endless episodes. Its gradient is "the exact meta-gradient".
- F_N, the expected J after adaptation to N random episodes. It approaches the former as 1/N.
With DiCE's Hessian an estimate is of the gradient of the former, with a bias of order 1/N. With the
derivative of the step on given episodes, which `reinforce` has, and E-MAML's sampling term it is of that of
F_N, exactly. Without that term `reinforce` lacks what the samples' dependence on the parameters gives;
`ratio` and low-variance curvature have a part of it in their Hessian, DiCE all of it: with the term it counts
twice. Evolution strategies estimate the gradient of F_N smoothed by their perturbations. Implicit gradients
are of another adaptation, to the optimum of J(phi) - |phi - theta|^2 / 2a; from ten episodes the system to be
solved is now and then indefinite, and its solution stops early.

Without a baseline DiCE and Loaded DiCE are equal sample by sample, and so are the ratio and low-variance
curvature: their rows differ by random numbers alone.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from benchmarks import common
from tests import oracle

STEP_SIZE = 2.0
PROXIMAL_WEIGHT = 1 / STEP_SIZE  # so that the first step toward the proximal optimum is MAML's
CONVERGED = 10  # inner steps that end 3e-10 from that optimum
PERTURBATION_STD = 0.1
TASKS = 2  # in an estimate: E-MAML's credit is relative to the other tasks'
LEAST_REPLICAS = 32
EPISODES_AT_ONCE = 8192
LIMIT = 3.0  # standard errors that an unbiased estimate may be off


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    episodes: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 10000)
    """N, episodes of a task in a batch."""
    steps: tuple[int, ...] = (1, 2, 3)
    """K, inner steps."""
    budget: int = 320_000
    """N times replicas, of each estimator, K and N; but there are at least 32 replicas."""
    plot: pathlib.Path = pathlib.Path("benchmarks/results/meta-gradients.png")
    """File for the figure of bias and variance; it needs the extra `benchmarks`."""
    json: pathlib.Path | None = None
    """File for what is printed."""


class Method(NamedTuple):
    """An estimator, and what is known of it on paper."""

    name: str
    algorithm: str
    options: dict[str, Any]
    limit: Callable[[int], np.ndarray]  # K -> its expectation [S, A] as N grows
    paper: str
    biased: bool  # against the exact meta-gradient, for ever


class Cell(NamedTuple):
    """One measurement."""

    method: Method
    num_steps: int
    num_episodes: int
    num_blocks: int  # of replicas
    block: int  # replicas side by side


@dataclasses.dataclass(frozen=True)
class Result:
    """What the replicas of a cell say."""

    method: str
    inner_steps: int
    episodes: int
    replicas: int
    mean: list[float]  # [S A]
    cosine: tuple[float, float]  # of the mean with the reference, and its standard error
    norm: tuple[float, float]  # of the mean over the reference's, and its standard error
    bias: float  # norm of (mean - reference) over the reference's
    variance: float  # trace of the covariance of one estimate, over the reference's squared norm
    from_reference: float  # distances of the mean, in standard errors
    from_limit: float


def exact(num_steps: int, surrogate: str = "dice", *, sampling_term: bool = False) -> np.ndarray:
    """Expected estimate [S, A] as N grows; by default the exact meta-gradient."""
    return oracle.meta_gradient(
        STEP_SIZE, num_steps, surrogate, first_order=False, sampling_term=sampling_term
    )


def through_steps(algorithm: str, surrogate: str, paper: str, *, biased: bool) -> Method:
    limit = functools.partial(exact, surrogate=surrogate, sampling_term=algorithm == "e-maml")
    return Method(f"{algorithm} {surrogate}", algorithm, {"surrogate": surrogate}, limit, paper, biased)


def implicit_limit(num_steps: int) -> np.ndarray:
    return oracle.implicit_gradient(oracle.proximal(STEP_SIZE, PROXIMAL_WEIGHT, num_steps), PROXIMAL_WEIGHT)


THROUGH_STEPS = (
    through_steps("maml", "reinforce", "biased: lacks the sampling term", biased=True),
    through_steps("maml", "ratio", "biased: lacks part of it", biased=True),
    through_steps("maml", "low-variance-curvature", "biased: lacks part of it", biased=True),
    through_steps("maml", "dice", "unbiased as N grows", biased=False),
    through_steps("maml", "loaded-dice", "unbiased as N grows", biased=False),
    through_steps("e-maml", "reinforce", "unbiased; of F_N at every N", biased=False),
    through_steps("e-maml", "dice", "biased: sampling term twice", biased=True),
)
ES = Method(
    "es-maml",
    "es-maml",
    {"surrogate": "reinforce", "perturbation_std": PERTURBATION_STD, "num_perturbations": 1},
    lambda num_steps: oracle.smoothed_meta_gradient(STEP_SIZE, num_steps, PERTURBATION_STD),
    "unbiased; of smoothed F_N at every N",
    biased=False,
)
IMPLICIT = Method(
    "imaml",
    "imaml",
    {"surrogate": "dice", "proximal_weight": PROXIMAL_WEIGHT},
    implicit_limit,
    "biased: another adaptation",
    biased=True,
)
METHODS = (*THROUGH_STEPS, ES, IMPLICIT)


def make_cell(method: Method, num_steps: int, num_episodes: int, budget: int) -> Cell:
    replicas = max(LEAST_REPLICAS, budget // num_episodes)
    block = min(replicas, max(1, EPISODES_AT_ONCE // num_episodes))
    return Cell(method, num_steps, num_episodes, -(-replicas // block), block)


def estimates(cell: Cell, seed: int) -> np.ndarray:
    """Estimates [replicas, S A] of the meta-gradient of J, to ascend."""
    import jax
    import optax

    from jmeta import algorithms

    algorithm = algorithms.REGISTRY[cell.method.algorithm](
        oracle.family(),
        oracle.softmax_policy(),
        optimizer=optax.sgd(1.0),
        num_inner_steps=cell.num_steps,
        inner_learning_rate=STEP_SIZE,
        num_episodes=cell.num_episodes,
        discount=1.0,
        gae_lambda=1.0,
        baseline="none",
        normalize_advantages=False,
        tasks_per_block=TASKS,
        **cell.method.options,
    )
    tasks = jax.vmap(oracle.family().sample)(jax.random.split(jax.random.key(0), TASKS))
    state = algorithm.init(jax.random.key(0))

    def replica(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        new, _ = algorithm.update(state, tasks, key)
        return (new.params - state.params).ravel(), new.opt_state.skipped

    keys = jax.random.split(jax.random.key(seed), (cell.num_blocks, cell.block))
    # Fewer passes of the compiler: half its time, and the programs are as fast.
    options = {"xla_backend_optimization_level": 1}
    every = jax.jit(lambda keys: jax.lax.map(jax.vmap(replica), keys), compiler_options=options)
    found, skipped = jax.device_get(every(keys))
    if skipped.any():
        raise FloatingPointError(f"{cell.method.name}: an estimate was not finite, and skipped")
    found = found.reshape(-1, found.shape[-1])
    return found / oracle.HORIZON if cell.method is ES else found  # it ascends the return, not return / T


def run(cells: Sequence[Cell], first_seed: int) -> list[np.ndarray]:
    """The estimates of every cell, a cell at a time on each device."""
    import jax

    devices = jax.devices()

    def work(index: int) -> np.ndarray:
        cell, started = cells[index], time.perf_counter()
        with jax.default_device(devices[index % len(devices)]):
            found = estimates(cell, first_seed + index)
        label = f"{cell.method.name}, K = {cell.num_steps}, N = {cell.num_episodes}"
        print(f"{label}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        return found

    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(work, range(len(cells))))


def distance(samples: np.ndarray, point: np.ndarray) -> float:
    """How far the mean of samples [replicas, S A] is from a point [S, A], in standard errors.

    Over all directions at once: the two-sided normal deviate as probable as Hotelling's T^2, at most 37.
    """
    count = len(samples)
    values, vectors = np.linalg.eigh(np.cov(samples.T) / count)
    varying = values > 1e-9 * values[-1]  # the mean of a row of logits has no effect
    rank = varying.sum()
    offset = vectors.T @ (samples.mean(0) - point.ravel())
    squared = np.sum(offset[varying] ** 2 / values[varying])
    probability = scipy.stats.f.sf(squared * (count - rank) / (rank * (count - 1)), rank, count - rank)
    return float(scipy.stats.norm.isf(max(probability, 1e-300) / 2))


def describe(cell: Cell, samples: np.ndarray, reference: np.ndarray, limit: np.ndarray) -> Result:
    """Bias and variance of samples [replicas, S A] against a reference [S, A].

    Standard errors are those of the mean in 1,000 draws from its normal distribution.
    """
    count, mean, covariance = len(samples), samples.mean(0), np.cov(samples.T)
    size = np.linalg.norm(reference)

    def cosine_and_norm(means: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(means, axis=-1)
        return np.stack([means @ reference.ravel() / (norms * size), norms / size], axis=-1)

    draws = np.random.default_rng(0).multivariate_normal(mean, covariance / count, size=1000)
    (cosine, norm), errors = cosine_and_norm(mean), cosine_and_norm(draws).std(0)
    return Result(
        method=cell.method.name,
        inner_steps=cell.num_steps,
        episodes=cell.num_episodes,
        replicas=count,
        mean=mean.tolist(),
        cosine=(float(cosine), float(errors[0])),
        norm=(float(norm), float(errors[1])),
        bias=float(np.linalg.norm(mean - reference.ravel()) / size),
        variance=float(np.trace(covariance) / size**2),
        from_reference=distance(samples, reference),
        from_limit=distance(samples, limit),
    )


def against_exact(flags: Flags) -> list[Result]:
    """Every estimator, K and N, against the exact meta-gradient."""
    references = {k: exact(k) for k in flags.steps}
    limits = {(method.name, k): method.limit(k) for method in METHODS for k in flags.steps}
    cells = [
        make_cell(method, num_steps, num_episodes, flags.budget)
        for num_steps in flags.steps
        for method in METHODS
        for num_episodes in flags.episodes
    ]
    return [
        describe(
            cell,
            samples,
            references[cell.num_steps],
            limits[cell.method.name, cell.num_steps],
        )
        for cell, samples in zip(cells, run(cells, 0), strict=True)
    ]


def against_few_episodes(flags: Flags) -> list[Result]:
    """One inner step on 1 and 2 episodes, against the gradient of F_1 and F_2: all batches enumerated."""

    def expected(method: Method, num_episodes: int) -> np.ndarray:
        return oracle.finite_meta_gradient(
            STEP_SIZE,
            num_episodes,
            method.options["surrogate"],
            sampling_term=method.algorithm == "e-maml",
        )

    unbiased = next(method for method in THROUGH_STEPS if method.name == "e-maml reinforce")
    cells = [make_cell(method, 1, n, flags.budget) for n in (1, 2) for method in THROUGH_STEPS]
    references = {n: expected(unbiased, n) for n in (1, 2)}
    return [
        describe(
            cell,
            samples,
            references[cell.num_episodes],
            expected(cell.method, cell.num_episodes),
        )
        for cell, samples in zip(cells, run(cells, 1000), strict=True)
    ]


def against_implicit(flags: Flags) -> list[Result]:
    """Implicit gradients after few and many inner steps, against that at the exact proximal optimum."""
    reference = oracle.implicit_gradient(oracle.proximal_optimum(PROXIMAL_WEIGHT), PROXIMAL_WEIGHT)
    cells = [make_cell(IMPLICIT, k, max(flags.episodes), flags.budget) for k in (1, CONVERGED)]
    return [
        describe(cell, samples, reference, implicit_limit(cell.num_steps))
        for cell, samples in zip(cells, run(cells, 2000), strict=True)
    ]


def verdict(results: Sequence[Result], *, biased: bool) -> str:
    """Whether the results of an estimator, by rising N, bear out what is known of it on paper.

    At the largest N the mean must be within 3 standard errors of its limit. For a bias some N must be within
    them of the limit and beyond them of what is exact.
    """
    if results[-1].from_limit > LIMIT:
        return "NOT as on paper"
    if not biased:
        return "as on paper"
    seen = [result.episodes for result in results if result.from_reference > LIMIT >= result.from_limit]
    return f"as on paper, seen at N = {seen[-1]:,}" if seen else "bias not resolved"


def plus_minus(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3f} ± {pair[1]:.3f}"


def print_by_episodes(title: str, results: Sequence[Result], show: Callable[[Result], str]) -> None:
    """A table with a row for each estimator and K, and a column for each N."""
    episodes = list(dict.fromkeys(result.episodes for result in results))
    rows: dict[tuple[str, int], list[str]] = {}
    for result in results:
        rows.setdefault((result.method, result.inner_steps), []).append(show(result))
    print(f"\n{title}\n")
    header = ["estimator", "K", *(f"N = {n:,}" for n in episodes)]
    print(common.markdown(header, [[name, str(k), *cells] for (name, k), cells in rows.items()]))


def print_verdicts(
    title: str, groups: Iterable[Sequence[Result]], paper: Callable[[Result], tuple[str, bool]]
) -> None:
    """A table with a row for each group, the results of one estimator by rising N: those of the largest."""
    header = ["estimator", "K", "N", "replicas", "cosine", "relative norm", "from exact", "from its limit"]
    rows = []
    for results in groups:
        last = results[-1]
        expected, biased = paper(last)
        rows.append(
            [
                last.method,
                str(last.inner_steps),
                f"{last.episodes:,}",
                f"{last.replicas:,}",
                plus_minus(last.cosine),
                plus_minus(last.norm),
                f"{last.from_reference:.1f}",
                f"{last.from_limit:.1f}",
                expected,
                verdict(results, biased=biased),
            ]
        )
    print(f"\n{title}\n")
    print(common.markdown([*header, "on paper", "verdict"], rows))


def draw(results: Sequence[Result], path: pathlib.Path) -> None:
    """Bias and variance against N, a column for each K."""
    plt = common.pyplot()

    steps = list(dict.fromkeys(result.inner_steps for result in results))
    figure, axes = plt.subplots(
        2,
        len(steps),
        figsize=(3.6 * len(steps) + 2.4, 6.5),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, num_steps in enumerate(steps):
        for index, method in enumerate(METHODS):
            chosen = [r for r in results if (r.method, r.inner_steps) == (method.name, num_steps)]
            episodes = [result.episodes for result in chosen]
            style: dict[str, Any] = {
                "color": f"C{index}",
                "linestyle": "-" if method.biased else "--",
                "linewidth": 1.2,
            }
            bias, variance = axes[:, column]
            bias.plot(episodes, [result.bias for result in chosen], **style)
            for result in chosen:
                face = style["color"] if result.from_reference > LIMIT else "white"
                bias.plot(result.episodes, result.bias, "o", color=style["color"], mfc=face, ms=5)
            variance.plot(
                episodes, [result.variance for result in chosen], marker="o", ms=4, label=method.name, **style
            )
        bias.set(title=f"{num_steps} inner step{'s' * (num_steps > 1)}", xscale="log", yscale="log")
        variance.set(xlabel="episodes N", yscale="log")
        for axis in axes[:, column]:
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("bias: |mean - exact| / |exact|")
    axes[1, 0].set_ylabel("variance / |exact|²")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title="solid: biased on paper", frameon=False)
    figure.suptitle("Meta-gradient estimators (hollow: no bias beyond 3 standard errors)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    common.check_plot(flags.plot)
    import jax

    from jmeta import runtime

    runtime.configure()
    jax.config.update("jax_enable_x64", True)
    started = time.perf_counter()
    results, few, implicit = against_exact(flags), against_few_episodes(flags), against_implicit(flags)
    replicas = dict.fromkeys((result.episodes, result.replicas) for result in results)
    described = ", ".join(f"{count:,} of N = {episodes:,}" for episodes, count in replicas)
    print(f"\nMeta-gradients on the two-state process, step size {STEP_SIZE}. Replicas: {described}.")
    print_by_episodes(
        "Cosine of the mean estimate with the exact one", results, lambda r: plus_minus(r.cosine)
    )
    print_by_episodes("Norm of the mean estimate over the exact one's", results, lambda r: plus_minus(r.norm))
    print_by_episodes(
        "Variance of an estimate over the exact one's squared norm", results, lambda r: f"{r.variance:.3g}"
    )
    methods = {method.name: method for method in METHODS}
    print_verdicts(
        "Against the exact meta-gradient; distances in standard errors",
        [list(group) for _, group in itertools.groupby(results, lambda r: (r.inner_steps, r.method))],
        lambda result: (methods[result.method].paper, methods[result.method].biased),
    )
    print_verdicts(
        "Few episodes: against the gradient of F_N by enumeration of all batches",
        [[result] for result in few],
        lambda result: ("unbiased", False) if result.method == "e-maml reinforce" else ("biased", True),
    )
    print_verdicts(
        "Implicit: against the exact implicit gradient, at the proximal optimum",
        [[result] for result in implicit],
        lambda result: (
            ("unbiased as N grows", False)
            if result.inner_steps == CONVERGED
            else ("biased: short of the optimum", True)
        ),
    )
    seconds = time.perf_counter() - started
    print(f"\n{seconds / 60:.1f} minutes on {common.machine()['cores']} cores")
    record = {"machine": common.machine(), "exact": results, "few": few, "implicit": implicit}
    common.write_json(flags.json, record | {"seconds": seconds})
    draw(results, flags.plot)


if __name__ == "__main__":
    main()
