"""ES-MAML: evolution strategies over the initial parameters (Song et al., 2020, arXiv 1910.01215)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jmeta import parallel
from jmeta.algorithms.gradient import outer
from jmeta.checks import at_least, positive
from jmeta.hyperparameters import hyperparameters_of
from jmeta.inner.loop import mean_return
from jmeta.optimizers import check_no_divergence, global_norm, report, update_arguments
from jmeta.types import (
    Array,
    Key,
    MetaAlgorithm,
    MetaState,
    Metrics,
    Params,
    Policy,
    PyTree,
    Task,
    TaskFamily,
)


@hyperparameters_of(
    outer.assemble, without=("first_order", "differentiation", "outer_surrogate", "outer_epochs")
)
def es_maml(
    family: TaskFamily,
    policy: Policy,
    *,
    num_perturbations: int = 16,
    perturbation_std: float = 0.05,
    num_episodes: int = 2,
    **others: Any,
) -> MetaAlgorithm:
    """Perturbs the initial parameters, adapts, and moves toward the perturbations that adapted best.

    The gradient of the return after adaptation, smoothed by a normal distribution: the mean over pairs of
    ε (F(θ + σε) - F(θ - σε)) / 2σ (algorithms 2 and 3, antithetic), unbiased for the smoothed return. It
    differentiates nothing, so adaptation need not be differentiable. Both of a pair meet the same task with
    the same random numbers. A call takes 2 x tasks x `num_perturbations` adaptations, in blocks.

    The metrics are of the perturbed policies. A pair of which something is not finite is left out;
    `tasks_lost` is their number in units of a task's pairs, rounded up. The outer optimizer cannot be TRPO,
    which needs a divergence.

    Args:
      num_perturbations: pairs for each task.
      perturbation_std: σ.
      num_episodes: N, as in `maml`: before each inner step of one perturbation, and after the last.
      discount: of the inner objective, in [0, 1]; the outer one is the undiscounted return.
      baseline: of inner steps, "linear" or "none": nothing here would train a critic.

    Raises:
      ValueError: an argument is out of its range, or the policy keeps observation statistics.
    """
    at_least(1, num_perturbations=num_perturbations)
    positive(perturbation_std=perturbation_std)
    if others["baseline"] == "value":
        raise ValueError("baseline must be linear or none, got 'value': es-maml trains no critic")
    if "statistics" in policy.parts:
        raise ValueError("es-maml perturbs every parameter: it cannot be used with normalize_observations")
    parts = outer.assemble(family, policy, num_episodes=num_episodes, **others)
    check_no_divergence("es-maml", parts.optimizer, policy)

    def one_pair(params: Params, task: Task, key: Key) -> tuple[Params, Metrics]:
        key_noise, key_run = jax.random.split(key)
        noise = optax.tree.random_like(key_noise, params)

        def measure(scale: float) -> Metrics:
            perturbed = jax.tree.map(lambda p, e: p + scale * e, params, noise)
            collected = outer.collect(parts, perturbed, task, key_run)
            after = mean_return(collected.post)
            before = mean_return(collected.pre)[0] if parts.num_inner_steps else after
            steps = (collected.pre.mask > 0).sum() + (collected.post.mask > 0).sum()
            return {"return_before": before, "return_after": after, "env_steps": steps.astype(after.dtype)}

        high, low = measure(perturbation_std), measure(-perturbation_std)
        slope = (high["return_after"] - low["return_after"]) / (2 * perturbation_std)
        return jax.tree.map(lambda e: -slope * e, noise), jax.tree.map(lambda a, b: (a + b) / 2, high, low)

    def update(state: MetaState, tasks: Task, key: Key) -> tuple[MetaState, Metrics]:
        num_pairs = num_perturbations * jax.tree.leaves(tasks)[0].shape[0]
        repeated: PyTree = jax.tree.map(lambda x: jnp.repeat(x, num_perturbations, axis=0), tasks)
        keys = parallel.task_keys(key, num_pairs)
        (gradients, metrics), lost = parallel.mean_over_finite_tasks(
            one_pair, state.params, repeated, keys, block=parts.block
        )

        def value_of(candidate: Params) -> Array:
            (_, measured), lost_there = parallel.mean_over_finite_tasks(
                one_pair, candidate, repeated, keys, block=parts.block
            )
            return jnp.where(lost_there > lost, jnp.nan, -measured["return_after"])

        updates, opt_state = parts.optimizer.update(
            gradients,
            state.opt_state,
            state.params,
            **update_arguments(state.step, -metrics["return_after"], gradients, value_of),
        )
        params = optax.apply_updates(state.params, updates)
        left = (num_pairs - lost).astype(metrics["env_steps"].dtype)
        env_steps = jnp.where(left > 0, metrics["env_steps"] * 2 * left, 0)
        metrics |= {
            "env_steps": jnp.round(env_steps).astype(jnp.int32),
            "gradient_norm": global_norm(gradients),
            "tasks_lost": -(-lost // num_perturbations),
            "skipped": opt_state.skipped,
            **report(opt_state),
        }
        return MetaState(params, opt_state, state.step + 1), metrics

    return MetaAlgorithm(outer.init(parts), update, outer.adapt(parts), policy)
