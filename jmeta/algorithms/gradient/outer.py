"""The outer loop that the gradient-based methods share: MAML's, with places for what they change."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jmeta import inner as inner_loops
from jmeta import parallel, rollouts
from jmeta.checks import at_least, boolean, in_unit_interval, not_negative, one_of, without_effect
from jmeta.conformance import conform
from jmeta.estimators.surrogates import COMPARABLE, SURROGATES
from jmeta.inner import policy_gradient as pg
from jmeta.inner.loop import DIFFERENTIATIONS, Learner, inner_loop, mean_return
from jmeta.optimizers import (
    Requirement,
    check_inner,
    differentiable_at_zero,
    global_norm,
    requirement,
    skip_nonfinite,
    update_arguments,
)
from jmeta.optimizers import report as optimizer_report
from jmeta.types import (
    Adapted,
    AdaptFn,
    AdaptInfo,
    Array,
    InnerLoop,
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


class Parts(NamedTuple):
    """What a method is made of; one that differs from MAML replaces some of it."""

    policy: Policy
    learner: Learner
    inner: InnerLoop
    make_inner: Callable[..., InnerLoop]  # `inner_loop`, arguments filled in as for `inner` unless given
    optimizer: optax.GradientTransformationExtraArgs
    needs_divergence: bool  # whether the optimizer differentiates the divergence, as TRPO does
    differentiable: bool  # whether inner steps have derivatives where a gradient is 0
    num_inner_steps: int
    outer_epochs: int
    block: parallel.Block  # tasks side by side on a device


# Adapted parameters, those before each inner step [K, ...], data, what `prepare` made of it -> loss [].
Loss = Callable[[Params, Params, "Collected", PyTree], Array]


class Collected(NamedTuple):
    """Data of one task, or with a leading [B] of all."""

    pre: PyTree  # of the inner steps [K, N, T, ...]
    post: PyTree  # episodes of the adapted policy [N, T, ...]
    adapted: Params  # the adapted parameters that collected them
    distribution: PyTree  # and their distribution parameters [N, T, ...]


def assemble(
    family: TaskFamily,
    policy: Policy,
    *,
    optimizer: optax.GradientTransformation,
    inner: str = "policy-gradient",
    num_inner_steps: int = 1,
    inner_learning_rate: float = 0.1,
    inner_optimizer: Callable[[float], optax.GradientTransformation] = optax.sgd,
    num_episodes: int = 10,
    first_order: bool = False,
    differentiation: str = "mixed",
    surrogate: str = "ratio",
    outer_surrogate: str = "ratio",
    outer_epochs: int = 1,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    baseline: str = "linear",
    normalize_advantages: bool = True,
    tasks_per_block: int | None = None,
) -> Parts:
    """Checks the hyperparameters that the gradient-based methods share, and makes their parts.

    Args:
      family: the tasks.
      policy: the policy, whose initial parameters are learned.
      optimizer: of the outer update. TRPO, and the optimizers of optax that compare values of the loss (line
        searches, `reduce_on_plateau`), get them; they need an `outer_surrogate` whose value means something,
        "ratio" or "ppo-clip". TRPO takes one epoch, because its bound is from the policies that sampled, and
        does not go with the baseline "value", because the bound does not hold the critic. The loss is
        divided by the horizon, so bounds on the gradient's norm, and step sizes of `sgd`, depend on it.
      inner: what is learned from, a name in `jmeta.inner.REGISTRY`. Surrogates, `gae_lambda`, `baseline` and
        `normalize_advantages` are for "policy-gradient", and `discount` is not for "supervised": where an
        argument has no effect, any value but its default is refused.
      num_inner_steps: K, adaptation steps in training, fresh episodes for each.
      inner_learning_rate: step size of the inner optimizer. The gradient of a policy-gradient step is a mean
        over the steps that episodes take, so this number means the same whatever the horizon is.
      inner_optimizer: step size -> optimizer of the inner step. If inner steps are differentiated, its update
        must have a finite derivative where a gradient is 0: optax's Adam then needs `eps_root` > 0.
      num_episodes: N, episodes of one task before each inner step, and again after the last.
      first_order: drop the Hessian of the inner steps (FOMAML).
      differentiation: of the inner steps: "mixed" (forward over reverse), "reverse" (more memory) or
        "rematerialized" (reverse, recomputing). The gradient is the same. Under "q-learning", whose steps
        have no symmetric derivative, "mixed" is "reverse"; `first_order` differentiates no step.
      surrogate: objective of the inner step, a name in `estimators.surrogates.SURROGATES`: it decides which
        terms the Hessian keeps. All but `ratio` and `ppo-clip` have a meaning only at the parameters that
        sampled: they are for few outer epochs. "dice" is made of rewards and the baseline, so `gae_lambda`
        and `normalize_advantages` have no effect on it.
      outer_surrogate: objective after adaptation, likewise.
      outer_epochs: outer updates on one batch.
      discount: of inner and outer objective, in [0, 1].
      gae_lambda: in [0, 1]; below 1 the baseline's bias enters every advantage.
      baseline: "linear" (refitted for every task and step), "value" (the policy's critic) or "none".
      normalize_advantages: per batch of one task.
      tasks_per_block: tasks that a device runs side by side; None chooses by platform.

    Raises:
      ValueError: an argument is out of its range.
    """
    at_least(0, num_inner_steps=num_inner_steps)
    at_least(1, outer_epochs=outer_epochs, num_episodes=num_episodes)
    not_negative(inner_learning_rate=inner_learning_rate)
    in_unit_interval(discount=discount, gae_lambda=gae_lambda)
    boolean(first_order=first_order, normalize_advantages=normalize_advantages)
    one_of(inner_loops.REGISTRY, inner=inner)
    one_of(pg.BASELINES, baseline=baseline)
    one_of(SURROGATES, surrogate=surrogate, outer_surrogate=outer_surrogate)
    one_of(DIFFERENTIATIONS, differentiation=differentiation)
    family = conform(family)
    rollouts.check_room(policy, family.env.spec.horizon)
    learning: dict[str, Any] = {
        "surrogate": surrogate,
        "outer_surrogate": outer_surrogate,
        "num_episodes": num_episodes,
        "discount": discount,
        "gae_lambda": gae_lambda,
        "baseline": baseline,
        "normalize_advantages": normalize_advantages,
    }
    unused = {name: learning.pop(name) for name in inner_loops.unused_by(inner)}
    without_effect(f"inner {inner!r} does not use it", _DEFAULTS, **unused)
    if first_order:
        because = "first_order does not differentiate inner steps"
        without_effect(because, _DEFAULTS, differentiation=differentiation)
    learner = inner_loops.REGISTRY[inner](family, policy, **learning)
    needs = _requirement(optimizer, policy, learning.get("outer_surrogate"), baseline, outer_epochs)
    step = _make_inner_optimizer(inner_optimizer, inner_learning_rate)
    check_inner(step, policy)
    differentiable = first_order or num_inner_steps == 0 or differentiable_at_zero(inner_optimizer, policy)
    make_inner = functools.partial(
        inner_loop,
        policy=policy,
        learner=learner,
        optimizer=step,
        first_order=first_order,
        differentiation=differentiation,
    )
    return Parts(
        policy=policy,
        learner=learner,
        inner=make_inner(),
        make_inner=make_inner,
        optimizer=skip_nonfinite(optimizer),
        needs_divergence=needs == "divergence",
        differentiable=differentiable,
        num_inner_steps=num_inner_steps,
        outer_epochs=outer_epochs,
        block=parallel.tasks_per_block(num_episodes, tasks_per_block),
    )


def _requirement(
    optimizer: optax.GradientTransformation,
    policy: Policy,
    outer_surrogate: str | None,
    baseline: str,
    outer_epochs: int,
) -> Requirement:
    """What an outer optimizer asks for; ValueError where the loss cannot give it."""
    needs = requirement(optimizer, policy)
    if needs != "gradient" and outer_surrogate not in (None, *COMPARABLE):
        raise ValueError(
            f"outer_surrogate must be one of {', '.join(COMPARABLE)} for an optimizer that compares values of"
            f" the loss, as trpo and line searches do, got {outer_surrogate!r}"
        )
    if needs == "divergence" and baseline == "value":
        raise ValueError(
            "baseline must be linear or none with trpo, got 'value': the divergence does not bound the"
            " critic, which would take up the whole step"
        )
    if needs == "divergence" and outer_epochs > 1:
        raise ValueError(
            "outer_epochs must be 1 with trpo, because its bound is from the policies that sampled, got"
            f" {outer_epochs}"
        )
    if needs == "divergence" and not policy.differentiable:
        raise ValueError(
            "optimizer must not be trpo with a policy whose probabilities have no derivatives (tabular?)"
        )
    return needs


def _make_inner_optimizer(
    make: Callable[[float], optax.GradientTransformation], learning_rate: float
) -> optax.GradientTransformation:
    try:
        optimizer = make(learning_rate)
    except TypeError as error:
        reason = str(error)
    else:
        if isinstance(optimizer, optax.GradientTransformation):
            return optimizer
        reason = f"it gave {optimizer!r}"
    raise ValueError(
        "inner_optimizer must be a function of the step size that gives an optax.GradientTransformation, such"
        f" as optax.sgd, got {make!r}: {reason}"
    )


_DEFAULTS = {name: argument.default for name, argument in inspect.signature(assemble).parameters.items()}


class Batch(NamedTuple):
    """What was collected from all tasks. A task of which something is not finite is lost."""

    collected: Collected  # [B, ...]; use nothing of a lost task
    kept: Array  # [B] float: 1, or 0 for a task that is lost

    def mean(self, x: Array) -> Array:
        """Mean [] over the tasks that are kept of numbers [B]; NaN if there is none."""
        return jnp.where(self.kept > 0, x, 0).sum() / self.kept.sum()


def collect_all(parts: Parts, params: Params, tasks: Task, key: Key) -> Batch:
    """Adapts to every task and collects episodes of the adapted policies."""
    keys = parallel.task_keys(key, jax.tree.leaves(tasks)[0].shape[0])

    def one_task(params: Params, task: Task, key: Key) -> tuple[Collected, Array]:
        collected = collect(parts, params, task, key)
        # Parameters of a distribution may be infinite: those of an action that is never taken.
        return collected, parallel.all_finite(collected._replace(distribution=()))

    collected, finite = parallel.map_tasks(one_task, params, tasks, keys, block=parts.block)
    return Batch(collected, finite.astype(float))


def collect(parts: Parts, params: Params, task: Task, key: Key) -> Collected:
    """Adapts to one task and collects episodes of the adapted policy."""
    key_adapt, key_post = jax.random.split(key)
    adapted, info = parts.inner.adapt(params, task, key_adapt, parts.num_inner_steps)
    post = parts.learner.collect(adapted, task, key_post)
    distribution = pg.unroll(parts.policy, adapted.params, post.inputs).distribution
    return Collected(info.data, post, adapted.params, distribution)


def meta_loss(parts: Parts, loss: Loss | None = None) -> Callable[..., tuple[Array, Params]]:
    """The loss of one task as a function of the meta-parameters, through the inner steps.

    Args:
      parts: what the method is made of.
      loss: after adaptation; default that of the adapted policy (MAML's).

    Returns:
      (params, collected, extra) -> the loss [], and the adapted parameters.
    """
    loss = loss or (lambda adapted, path, collected, extra: parts.learner.loss(adapted, collected.post))

    def through(params: Params, collected: Collected, extra: PyTree = ()) -> tuple[Array, Params]:
        adapted, path = parts.inner.path(params, collected.pre)
        return loss(adapted, path, collected, extra), adapted

    return through


def algorithm(
    parts: Parts,
    *,
    loss: Loss | None = None,
    gradient: Callable[[Params, Collected], tuple[Array, Params]] | None = None,
    prepare: Callable[[Params, Batch], PyTree] | None = None,
    report: Callable[[Params], Metrics] = lambda params: {},
) -> MetaAlgorithm:
    """The meta-learner: collect from every task, then take `outer_epochs` steps of the outer optimiser.

    Args:
      parts: what it is made of.
      loss: after adaptation, of one task; default MAML's.
      gradient: (params, collected) of one task -> loss and its gradient; default that of `loss`, through the
        inner steps.
      prepare: (params, batch) -> what else `loss` needs [B, ...], once a batch; default nothing.
      report: params -> metrics of the new parameters.

    Returns:
      The algorithm. Metrics in addition to the standard ones: `loss`, `gradient_norm`, `kl` (old to new
      adapted policies, after the update), `skipped` (updates so far that were not finite, or of
      several epochs and taken back because `kl` was above `Learner.max_kl`) and those of `report`. A task is
      lost, and left out of everything, if its episodes, its adapted parameters or its gradient are not
      finite; if all are, the update is skipped.
    """
    policy, inner, optimizer = parts.policy, parts.inner, parts.optimizer
    if not parts.differentiable and (gradient is None or parts.needs_divergence):
        raise ValueError(
            "inner_optimizer must have a finite derivative where a gradient is 0, because inner steps are"
            " differentiated: give Adam and its kin eps_root > 0, such as"
            " lambda rate: optax.adam(rate, eps_root=1e-16), and clip by jmeta.optimizers.clip_by_global_norm"
        )
    through = meta_loss(parts, loss)

    def loss_and_gradient(params: Params, collected: Collected, extra: PyTree) -> tuple[Array, Params]:
        if gradient:
            return gradient(params, collected)
        (value, _), slope = jax.value_and_grad(through, has_aux=True)(params, collected, extra)
        return value, slope

    def loss_and_kl(params: Params, collected: Collected, extra: PyTree) -> tuple[Array, Array]:
        """The loss, and KL(old adapted || new adapted), from one replay of the inner steps."""
        value, adapted = through(params, collected, extra)
        new = pg.unroll(policy, adapted, collected.post.inputs).distribution
        return value, pg.mean_kl(policy, collected.distribution, new, collected.post.mask)

    def kl_hvp(point: tuple[Params, Params], collected: Collected) -> Params:
        params, vector = point
        return pg.fisher_product(policy, inner, params, vector, collected.pre, collected.post)

    def update(state: MetaState, tasks: Task, key: Key) -> tuple[MetaState, Metrics]:
        batch = collect_all(parts, state.params, tasks, key)
        collected = batch.collected
        extra = prepare(state.params, batch) if prepare else ()

        def mean(fn: Callable[..., PyTree], params: Params, *args: PyTree) -> tuple[PyTree, Array]:
            return parallel.mean_over_finite_tasks(fn, params, *args, weight=batch.kept, block=parts.block)

        def epoch(loop: PyTree, _: None) -> tuple[PyTree, Metrics]:
            params, opt_state = loop
            (value, gradients), lost = mean(loss_and_gradient, params, collected, extra)

            def value_and_kl(candidate: Params) -> tuple[Array, Array]:
                """NaN if the candidate loses a task, since means of other tasks cannot be compared."""
                (value, kl), lost_there = mean(loss_and_kl, candidate, collected, extra)
                return jnp.where(lost_there > lost, jnp.nan, value), kl

            updates, opt_state = optimizer.update(
                gradients,
                opt_state,
                params,
                **update_arguments(
                    state.step,
                    value,
                    gradients,
                    lambda candidate: value_and_kl(candidate)[0],
                    value_and_kl_fn=value_and_kl,
                    kl_hvp_fn=lambda vector: mean(kl_hvp, (params, vector), collected)[0],
                ),
            )
            params = optax.apply_updates(params, updates)
            metrics = {"loss": value, "gradient_norm": global_norm(gradients), "tasks_lost": lost}
            return (params, opt_state), metrics

        (params, opt_state), metrics = jax.lax.scan(
            epoch, (state.params, state.opt_state), length=parts.outer_epochs
        )
        (_, kl), lost_after = mean(loss_and_kl, params, collected, extra)
        if parts.outer_epochs > 1:
            taken_back = (batch.kept.sum() > 0) & ~(kl <= parts.learner.max_kl)
            before = state.params, state.opt_state._replace(skipped=state.opt_state.skipped + 1)
            params, opt_state = jax.tree.map(
                lambda old, new: jnp.where(taken_back, old, new), before, (params, opt_state)
            )
        # A step that is far too large can leave finite parameters whose policies are not finite.
        tasks_lost = jnp.maximum(metrics["tasks_lost"].max(), lost_after)
        first = {name: values[0] for name, values in metrics.items()}
        reported = jax.vmap(parts.learner.report)(collected.post)
        reported = jax.tree.map(batch.mean, reported)
        metrics = first | returns(parts, batch) | {"tasks_lost": tasks_lost} | reported
        metrics |= report(params) | {"kl": kl, "skipped": opt_state.skipped} | optimizer_report(opt_state)
        post = collected.post
        kept = jax.lax.expand_dims(batch.kept, range(1, post.mask.ndim))
        params = policy.observe(params, post.inputs.obs, kept * post.mask)
        return MetaState(params, opt_state, state.step + 1), metrics

    return MetaAlgorithm(init(parts), update, adapt(parts), policy)


def returns(parts: Parts, batch: Batch) -> Metrics:
    """The metrics that every algorithm reports, as means over the tasks that are not lost."""
    pre, post = batch.collected.pre, batch.collected.post
    after = mean_return(post)
    before = mean_return(pre)[:, 0] if parts.num_inner_steps else after
    return {
        "return_before": batch.mean(before),
        "return_after": batch.mean(after),
        "env_steps": ((pre.mask > 0).sum() + (post.mask > 0).sum()).astype(jnp.int32),
    }


def init(parts: Parts) -> Callable[[Key], MetaState]:
    """`MetaAlgorithm.init`: the policy's parameters, and the outer optimiser's state."""

    def init(key: Key) -> MetaState:
        params = parts.policy.init(key)
        return MetaState(params, parts.optimizer.init(params), jnp.zeros((), jnp.int32))

    return init


def adapt(parts: Parts) -> AdaptFn:
    """`MetaAlgorithm.adapt`: the inner loop."""

    def adapt(
        params: Params,
        task: Task,
        key: Key,
        num_steps: int | None = None,
        step_scale: float | Array | None = None,
    ) -> tuple[Adapted, AdaptInfo]:
        num_steps = parts.num_inner_steps if num_steps is None else num_steps
        at_least(0, num_steps=num_steps)
        return parts.inner.adapt(params, task, key, num_steps, step_scale)

    return adapt


def only(policy: Policy, part: str, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An inner optimiser that changes one part of the policy; ValueError if the policy has no such part."""
    if part not in policy.parts:
        raise ValueError(
            f"the policy must have a part {part!r}, got one with {', '.join(policy.parts) or 'no parts'}"
        )

    def elsewhere(params: Params) -> PyTree:
        return jax.tree.map(lambda inside: not inside, policy.parts[part](params))

    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), elsewhere))
