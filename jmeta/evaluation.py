"""Evaluation: adapts to fresh tasks, acts, and measures after every adaptation step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jmeta import parallel, rollouts, statistics
from jmeta.checks import at_least, not_negative
from jmeta.compiled import once
from jmeta.conformance import conform
from jmeta.types import Array, Key, MetaAlgorithm, Params, Policy, PyTree, Task, TaskFamily

_APART = 2**31 - 1  # more than any number that training folds into a key
STEP_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on fresh tasks after 0..k adaptation steps; k + 1 is S below.

    Means and intervals leave out the tasks that were lost. The intervals are over the tasks only: another
    training run may differ by more, and intervals over runs are in `jmeta.statistics`.

    Attributes:
      episode_returns: [tasks, S, episodes] undiscounted return of every measured episode.
      episode_lengths: [tasks, S, episodes] steps that it took, int32.
      episode_measures: name -> [tasks, S, episodes] measures of the environment (`TimeStep.measures`),
        reduced over the steps of an episode: whether it happened (0 or 1) for a bool, else the mean.
      tasks: the tasks themselves, leading axis [tasks].
      lost: [tasks] bool: something that was not finite was met in a measured episode of the task.
      optimal_returns: [tasks] the greatest expected return, where the family knows it.
      steps: 0..k.
      return_mean: [S] mean over the tasks; NaN if all were lost.
      return_low: [S] lower end of the 95 % bootstrap interval over the tasks; NaN for fewer than two tasks.
      return_high: [S] upper end.
      optimal_mean: mean of the optimal returns.
      measure_means: name -> [S] mean over the tasks.
    """

    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    episode_measures: dict[str, np.ndarray]
    tasks: Task
    lost: np.ndarray
    optimal_returns: np.ndarray | None
    steps: list[int]
    return_mean: list[float]
    return_low: list[float]
    return_high: list[float]
    optimal_mean: float | None
    measure_means: dict[str, list[float]]

    @property
    def returns(self) -> np.ndarray:
        """[tasks, S] mean return over the episodes of each task, lost ones too."""
        return self.episode_returns.mean(-1)

    @property
    def num_tasks(self) -> int:
        """Number of fresh tasks, lost ones too."""
        return len(self.lost)

    @property
    def tasks_lost(self) -> int:
        """Number of tasks that are left out of means and intervals."""
        return int(self.lost.sum())

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that was measured, by names that a file can hold.

        The leaves of the tasks are "task/..." by their paths, the measures "measures/..."; random keys among
        the tasks are their numbers.
        """
        found = {
            "returns": self.episode_returns,
            "lengths": self.episode_lengths,
            "lost": self.lost,
            "steps": np.array(self.steps, np.int32),
        }
        if self.optimal_returns is not None:
            found["optimal_returns"] = self.optimal_returns
        found |= {f"measures/{name}": values for name, values in self.episode_measures.items()}
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.tasks):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            found["task/" + name if name else "task"] = np.asarray(
                jax.random.key_data(leaf) if is_key else leaf
            )
        return found


def evaluation_key(seed: int) -> Key:
    """The key of an evaluation: with it no task and no episode is that of a training run of the same seed."""
    return jax.random.fold_in(jax.random.key(seed), _APART)


def evaluate(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    params: Params,
    key: Key,
    *,
    num_tasks: int = 100,
    num_steps: int | None = None,
    num_episodes: int = 20,
    heldout: bool = False,
    deterministic: bool = False,
    step_scale: float | None = None,
) -> Evaluation:
    """Adapts to fresh tasks and measures after every adaptation step.

    After each of 0..k steps `num_episodes` episodes are played from the policy as it then is. They are for
    measuring only: the next step does not learn from them, and a policy with a memory does not remember them.
    A second call for the same algorithm, family and sizes compiles nothing.

    Args:
      algorithm: any meta-learner.
      family: the tasks.
      params: meta-parameters.
      key: consumed; tasks and episodes are fresh for a fresh key. `evaluation_key` keeps off those of
        training.
      num_tasks: fresh tasks; any number on any number of devices.
      num_steps: k, adaptation steps, as `adaptation_steps` takes it.
      num_episodes: measured episodes of each task after each step.
      heldout: draw from the family's held-out split.
      deterministic: take the mode of the policy's distribution in the measured episodes, the action that it
        prefers, as an agent acts that is put to use. The episodes that adaptation learns from are always
        sampled, because without noise there is nothing to learn from; a memory, too, is filled by sampled
        episodes.
      step_scale: factor on every inner step; see `AdaptFn`. None means as trained.

    Raises:
      ValueError: a number is out of its range, or the method has no inner step to scale.
    """
    at_least(1, num_tasks=num_tasks, num_episodes=num_episodes)
    family = conform(family)
    num_steps = adaptation_steps(algorithm, num_steps)
    if step_scale is not None:
        not_negative(step_scale=step_scale)

    def make() -> Callable[[Params, Key, Array | None], PyTree]:
        return jax.jit(
            _program(algorithm, family, num_tasks, num_steps, num_episodes, heldout, deterministic)
        )

    uses = (algorithm, family, num_tasks, num_steps, num_episodes, heldout, deterministic)
    program = once(make, algorithm.adapt, *uses)
    scale = None if step_scale is None else jnp.asarray(step_scale, float)
    tasks, measured, optimal = program(params, key, scale)
    (returns, lengths, measures, finite), optimal = jax.device_get((measured, optimal))
    return _summarize(returns, lengths, measures, tasks, ~finite, optimal)


def tune_step_scale(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    params: Params,
    key: Key,
    *,
    scales: Sequence[float] = STEP_SCALES,
    num_tasks: int = 100,
    num_steps: int | None = None,
    num_episodes: int = 20,
) -> list[float]:
    """The factor on the inner steps that serves best for each number of adaptation steps.

    Every factor is tried on the same tasks, which must not be those that results are reported on: give
    another key. Lost tasks count against a factor: one that loses fewer tasks is better, whatever the others
    return.

    Args:
      algorithm: a method with inner steps.
      family: the tasks.
      params: meta-parameters.
      key: of the tasks and episodes, the same for every factor.
      scales: factors on the step size of training, see `AdaptFn`.
      num_tasks: validation tasks.
      num_steps: k.
      num_episodes: measured episodes of each task after each step.

    Returns:
      [k + 1] the best factor for 0..k steps; for 0 steps, which has none, 1.
    """
    found = [
        evaluate(
            algorithm,
            family,
            params,
            key,
            num_tasks=num_tasks,
            num_steps=num_steps,
            num_episodes=num_episodes,
            step_scale=scale,
        )
        for scale in scales
    ]
    # Of factors that are equally good, the one closest to that of training.
    order = sorted(range(len(scales)), key=lambda index: abs(np.log(scales[index])))

    def best(step: int) -> float:
        if step == 0:
            return 1.0
        chosen = max(
            order,
            key=lambda i: (-found[i].tasks_lost, np.nan_to_num(found[i].return_mean[step], nan=-np.inf)),
        )
        return scales[chosen]

    return [best(step) for step in found[0].steps]


def adaptation_steps(algorithm: MetaAlgorithm, num_steps: int | None) -> int:
    """Adaptation steps to evaluate: updates, or of a policy with a memory episodes.

    Args:
      algorithm: any meta-learner.
      num_steps: None takes 3, or where a policy plays a trial, all episodes but the trial's last.

    Raises:
      ValueError: if it is negative, or more than the policy's memory has room for.
    """
    if num_steps is None:
        return 3 if algorithm.trial_steps is None else algorithm.trial_steps
    at_least(0, num_steps=num_steps)
    room = algorithm.max_adapt_steps
    if room is not None and num_steps > room:
        raise ValueError(f"num_steps must be at most {room}, the room of the memory, got {num_steps}")
    return num_steps


def acting_by_the_mode(policy: Policy) -> Policy:
    """A policy that takes the mode of its distribution in place of a sample."""
    mode = policy.distribution.mode
    return policy._replace(distribution=policy.distribution._replace(sample=lambda key, params: mode(params)))


def _program(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    num_tasks: int,
    num_steps: int,
    num_episodes: int,
    heldout: bool,
    deterministic: bool,
) -> Callable[[Params, Key, Array | None], PyTree]:
    """The whole evaluation, to be compiled: (params, key, step_scale) -> tasks, what was measured, optima."""
    policy = acting_by_the_mode(algorithm.policy) if deterministic else algorithm.policy
    sample = family.sample_heldout if heldout else family.sample

    def one_task(meta: tuple[Params, Array | None], task: Task, key: Key) -> PyTree:
        params, step_scale = meta
        key_adapt, key_act = jax.random.split(key)
        adapted, info = algorithm.adapt(params, task, key_adapt, num_steps, step_scale)
        path = jax.tree.map(lambda path, last: jnp.concatenate([path, last[None]]), info.path, adapted)

        def measure(one: PyTree) -> PyTree:
            now, key = one
            rollout = rollouts.batch(family.env, policy, now, task, key, num_episodes)
            returns, measures = rollouts.returns(rollout), rollouts.measures(rollout)
            # An observation that is not finite shows in the probability of the action.
            seen = [returns, rollout.mask * rollout.log_prob, *measures.values()]
            finite = jnp.stack([jnp.isfinite(x).all() for x in seen]).all()
            return returns, rollouts.lengths(rollout), measures, finite

        *measured, finite = jax.lax.map(measure, (path, jax.random.split(key_act, num_steps + 1)))
        optimal = family.optimal_return(task) if family.optimal_return else None
        return (*measured, finite.all()), optimal

    def program(params: Params, key: Key, step_scale: Array | None) -> PyTree:
        key_tasks, key_run = jax.random.split(key)
        tasks = jax.vmap(sample)(parallel.task_keys(key_tasks, num_tasks))
        keys = parallel.task_keys(key_run, num_tasks)
        block = parallel.tasks_per_block(num_episodes)
        measured, optimal = parallel.map_tasks(one_task, (params, step_scale), tasks, keys, block=block)
        return tasks, measured, optimal

    return program


def _summarize(
    returns: np.ndarray,
    lengths: np.ndarray,
    measures: dict[str, np.ndarray],
    tasks: Task,
    lost: np.ndarray,
    optimal: np.ndarray | None,
) -> Evaluation:
    """Means and intervals over the tasks that are left; arguments as the attributes of `Evaluation`."""
    kept, steps = ~lost, returns.shape[1]

    def mean(values: np.ndarray) -> np.ndarray:
        left = values[kept].astype(np.float64)
        return left.mean(0) if len(left) else np.full(values.shape[1:], np.nan)

    low = high = np.full(steps, np.nan)
    if kept.any():
        _, low, high, _ = statistics.over_tasks(returns[kept].mean(-1))
    return Evaluation(
        episode_returns=returns,
        episode_lengths=lengths,
        episode_measures=measures,
        tasks=tasks,
        lost=lost,
        optimal_returns=optimal,
        steps=list(range(steps)),
        return_mean=mean(returns.astype(np.float64).mean(-1)).tolist(),
        return_low=low.tolist(),
        return_high=high.tolist(),
        optimal_mean=None if optimal is None else float(mean(optimal)),
        measure_means={name: mean(values.mean(-1)).tolist() for name, values in measures.items()},
    )
