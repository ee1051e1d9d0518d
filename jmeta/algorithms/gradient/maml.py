"""MAML: meta-learned initial parameters (Finn, Abbeel and Levine, 2017, arXiv 1703.03400)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jmeta import parallel
from jmeta.inner import policy_gradient as pg
from jmeta.optimizers import skip_nonfinite
from jmeta.types import (
    Adapted,
    AdaptInfo,
    Array,
    Key,
    MetaAlgorithm,
    MetaState,
    Metrics,
    Params,
    Policy,
    PolicyOutput,
    PyTree,
    Task,
    TaskFamily,
)


def maml(
    family: TaskFamily,
    policy: Policy,
    *,
    optimizer: optax.GradientTransformation,
    num_inner_steps: int = 1,
    inner_learning_rate: float = 0.1,
    inner_optimizer: Callable[[float], optax.GradientTransformation] = optax.sgd,
    num_episodes: int = 10,
    first_order: bool = False,
    inner_surrogate: str = "ratio",
    outer_surrogate: str = "ratio",
    outer_epochs: int = 1,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    baseline: str = "linear",
    normalize_advantages: bool = True,
    tasks_per_block: int | None = None,
) -> MetaAlgorithm:
    """Meta-learns the parameters from which a few policy-gradient steps solve a task.

    The meta-gradient goes through every inner step (second order) but not through the dependence of the
    pre-adaptation samples on the parameters (that term is E-MAML's). Which terms of the Hessian survive
    depends on `inner_surrogate`. The paper's outer update is TRPO on one batch: `optimizer=trpo()`;
    with Adam, `outer_epochs > 1` and `outer_surrogate="ppo-clip"` repeat updates on the same batch.

    Args:
      family: the tasks.
      policy: the policy, whose initial parameters are learned.
      optimizer: of the outer update; one that needs them gets `value_and_kl_fn` and `kl_hvp_fn`. TRPO wants
        the linear baseline: a critic has no curvature in the divergence, and would take up the whole step.
      num_inner_steps: K, adaptation steps in training, fresh episodes for each.
      inner_learning_rate: step size of the inner optimiser.
      inner_optimizer: step size -> optimiser of the inner step.
      num_episodes: N, episodes of one task before each inner step, and again after the last.
      first_order: drop the Hessian of the inner steps (FOMAML).
      inner_surrogate: objective of the inner step, a name in `estimators.surrogates.SURROGATES`.
      outer_surrogate: objective after adaptation, likewise.
      outer_epochs: outer updates on one batch.
      discount: of inner and outer objective, in [0, 1].
      gae_lambda: in [0, 1]; below 1 the baseline's bias enters every advantage.
      baseline: "linear" (refitted for every task and step), "value" (the policy's critic) or "none".
      normalize_advantages: per batch of one task.
      tasks_per_block: tasks that a device runs side by side; None chooses by platform.

    Returns:
      The algorithm. Metrics beside the standard ones: `loss`, `gradient_norm`, `kl` (old to new adapted
      policies, after the update) and `skipped` (non-finite updates so far).

    Raises:
      ValueError: an argument is out of its range.
    """
    for name, value, least in (("num_inner_steps", num_inner_steps, 0), ("outer_epochs", outer_epochs, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if inner_learning_rate < 0:
        raise ValueError(f"inner_learning_rate must not be negative, got {inner_learning_rate}")
    if tasks_per_block is not None and tasks_per_block < 1:
        raise ValueError(f"tasks_per_block must be at least 1 or None, got {tasks_per_block}")
    estimator = pg.estimator(
        family,
        policy,
        num_episodes=num_episodes,
        discount=discount,
        gae_lambda=gae_lambda,
        baseline=baseline,
        normalize_advantages=normalize_advantages,
    )
    inner = pg.inner_loop(
        policy,
        estimator,
        surrogate=inner_surrogate,
        optimizer=inner_optimizer(inner_learning_rate),
        first_order=first_order,
    )
    outer_loss = estimator.loss(outer_surrogate)
    optimizer = skip_nonfinite(optimizer)
    block = tasks_per_block or parallel.tasks_per_block(num_episodes)

    # For ONE task.

    def collect(params: Params, task: Task, key: Key) -> PyTree:
        key_adapt, key_post = jax.random.split(key)
        adapted, info = inner.adapt(params, task, key_adapt, num_inner_steps)
        post = estimator.collect(adapted, task, key_post)
        return (info.data, post), pg.unroll(policy, adapted.params, post.inputs).distribution

    def adapted_output(params: Params, data: PyTree) -> PolicyOutput:
        pre, post = data
        return pg.unroll(policy, inner.replay(params, pre), post.inputs)

    def loss(params: Params, data: PyTree) -> Array:
        return outer_loss(adapted_output(params, data), data[1])

    def loss_and_kl(params: Params, data: PyTree, old: PyTree) -> tuple[Array, Array]:
        """The loss, and KL(old adapted || new adapted) through the inner steps."""
        output, post = adapted_output(params, data), data[1]
        return outer_loss(output, post), pg.mean_kl(policy, old, output.distribution, post.mask)

    def kl_hvp(point: tuple[Params, Params], data: PyTree) -> Params:
        (params, vector), (pre, post) = point, data
        return pg.fisher_product(policy, inner, params, vector, pre, post)

    # For the batch.

    def init(key: Key) -> MetaState:
        params = policy.init(key)
        return MetaState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(state: MetaState, tasks: Task, key: Key) -> tuple[MetaState, Metrics]:
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        keys = parallel.task_keys(key, num_tasks)
        data, old = parallel.map_tasks(collect, state.params, tasks, keys, block=block)

        def mean(fn: Callable[..., PyTree], params: Params, *args: PyTree) -> PyTree:
            return parallel.mean_over_tasks(fn, params, *args, block=block)

        def epoch(loop: PyTree, _: None) -> tuple[PyTree, Metrics]:
            params, opt_state = loop
            value, gradients = mean(jax.value_and_grad(loss), params, data)

            updates, opt_state = optimizer.update(
                gradients,
                opt_state,
                params,
                value_and_kl_fn=lambda candidate: mean(loss_and_kl, candidate, data, old),
                kl_hvp_fn=lambda vector: mean(kl_hvp, (params, vector), data),
            )
            params = optax.apply_updates(params, updates)
            metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
            return (params, opt_state), metrics

        (params, opt_state), metrics = jax.lax.scan(
            epoch, (state.params, state.opt_state), length=outer_epochs
        )
        pre, post = data
        after = pg.mean_return(post)
        metrics = jax.tree.map(lambda x: x[0], metrics) | {
            "return_before": (pg.mean_return(pre)[:, 0] if num_inner_steps else after).mean(),
            "return_after": after.mean(),
            "kl": mean(loss_and_kl, params, data, old)[1],
            "skipped": opt_state.skipped,
            "env_steps": (pre.mask.sum() + post.mask.sum()).astype(jnp.int32),
        }
        params = policy.observe(params, post.inputs.obs, post.mask)
        return MetaState(params, opt_state, state.step + 1), metrics

    def adapt(
        params: Params, task: Task, key: Key, num_steps: int | None = None
    ) -> tuple[Adapted, AdaptInfo]:
        return inner.adapt(params, task, key, num_inner_steps if num_steps is None else num_steps)

    return MetaAlgorithm(init, update, adapt, policy)
