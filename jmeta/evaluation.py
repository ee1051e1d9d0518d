"""Evaluation: adapt to fresh tasks, then act; returns over adaptation steps with intervals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jmeta import parallel, rollouts
from jmeta.checks import at_least
from jmeta.conformance import conform
from jmeta.types import Array, Key, MetaAlgorithm, Params, Task, TaskFamily


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns after 0..k adaptation steps on fresh tasks.

    Attributes:
      returns: [tasks, k + 1] mean return over the episodes of a task.
      steps: 0..k.
      return_mean: [k + 1] mean over the tasks.
      return_low: [k + 1] lower end of the 95 % bootstrap interval of the mean.
      return_high: [k + 1] its upper end.
      optimal_mean: mean over the tasks of the optimal return, where the family knows it.
    """

    returns: np.ndarray
    steps: list[int]
    return_mean: list[float]
    return_low: list[float]
    return_high: list[float]
    optimal_mean: float | None = None

    @property
    def num_tasks(self) -> int:
        """Number of fresh tasks."""
        return self.returns.shape[0]


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
) -> Evaluation:
    """Adapts to fresh tasks and measures the return after every adaptation step.

    The return after step k < `num_steps` is that of the episodes which the next step adapts on; the
    return after the last is that of `num_episodes` more.

    Args:
      algorithm: any meta-learner.
      family: the tasks.
      params: meta-parameters.
      key: consumed; tasks and episodes are fresh for a fresh key.
      num_tasks: fresh tasks, shared by the devices of the mesh that is set.
      num_steps: k, adaptation steps, as `adaptation_steps` takes it.
      num_episodes: episodes after the last step.
      heldout: draw from the family's held-out split.

    Raises:
      ValueError: a count is out of its range, or not divided by the devices.
    """
    at_least(1, num_episodes=num_episodes)
    family = conform(family)
    num_steps = adaptation_steps(algorithm, num_steps)
    at_least(1, num_tasks=num_tasks)
    block = parallel.tasks_per_block(num_episodes)

    def one_task(params: Params, task: Task, key: Key) -> tuple[Array, Array]:
        key_adapt, key_act = jax.random.split(key)
        adapted, info = algorithm.adapt(params, task, key_adapt, num_steps)
        final = rollouts.batch(family.env, algorithm.policy, adapted, task, key_act, num_episodes)
        optimal = family.optimal_return(task) if family.optimal_return else jnp.nan
        return jnp.append(info.returns, rollouts.returns(final).mean()), jnp.asarray(optimal, float)

    @jax.jit
    def all_tasks(params: Params, key: Key) -> tuple[Array, Array]:
        key_tasks, key_run = jax.random.split(key)
        sample = family.sample_heldout if heldout else family.sample
        tasks = jax.vmap(sample)(parallel.task_keys(key_tasks, num_tasks))
        keys = parallel.task_keys(key_run, num_tasks)
        return parallel.map_tasks(one_task, params, tasks, keys, block=block)

    returns, optimal = all_tasks(params, key)
    result = summarize(np.asarray(returns))
    if family.optimal_return is None:
        return result
    return dataclasses.replace(result, optimal_mean=float(np.asarray(optimal).mean()))


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
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}")
    room = algorithm.max_adapt_steps
    if room is not None and num_steps > room:
        raise ValueError(f"num_steps must be at most {room}, the room of the memory, got {num_steps}")
    return num_steps


def summarize(returns: np.ndarray) -> Evaluation:
    """Means over the tasks with 95 % bootstrap intervals.

    Args:
      returns: [tasks, k + 1].
    """
    mean, low, high = bootstrap_mean(returns)
    return Evaluation(returns, list(range(returns.shape[1])), mean.tolist(), low.tolist(), high.tolist())


def bootstrap_mean(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over axis 0 and its 95 % percentile-bootstrap interval (`scipy.stats.bootstrap`).

    Args:
      samples: [samples, ...]; a single sample has no interval: both ends are NaN.

    Returns:
      mean, low, high: [...] each.
    """
    import scipy.stats  # as slow to import as JAX: not for every command

    samples = samples.astype(np.float64)
    mean = samples.mean(0)
    if len(samples) == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    interval = scipy.stats.bootstrap(
        (samples,), np.mean, method="percentile", n_resamples=5000, rng=0, batch=500
    ).confidence_interval
    return mean, interval.low, interval.high
