"""RL²: a policy that learns within its own memory (Duan et al., 2016, arXiv 1611.02779)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jmeta import parallel, rollouts
from jmeta.checks import at_least, boolean, in_unit_interval, not_negative
from jmeta.conformance import conform
from jmeta.estimators import advantages
from jmeta.estimators.surrogates import PolicyGradientBatch, ppo_clip
from jmeta.optimizers import check_no_divergence, global_norm, report, skip_nonfinite, update_arguments
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
    PyTree,
    Rollout,
    Task,
    TaskFamily,
)


class TrialBatch(NamedTuple):
    """One trial as data, in chunks of C steps, and the carry before each chunk."""

    steps: PolicyGradientBatch  # [L / C, C, ...]
    carry: PyTree  # [L / C, ...]; None where the trial is one chunk, and starts from the initial carry


def rl2(
    family: TaskFamily,
    policy: Policy,
    *,
    optimizer: optax.GradientTransformation,
    num_episodes: int | None = None,
    epochs: int = 4,
    minibatches: int = 4,
    clip: float = 0.2,
    entropy_weight: float = 0.01,
    value_weight: float = 0.5,
    discount: float = 0.99,
    gae_lambda: float = 0.95,
    normalize_advantages: bool = True,
    unroll_length: int | None = None,
    tasks_per_block: int | None = None,
) -> MetaAlgorithm:
    """Meta-trains a policy with memory by PPO over trials: several episodes of one task in sequence.

    The carry is kept over the episodes of a trial, each of which sees the last transition of the one before;
    returns run across them and stop at the trial's end. Adapting is playing: `adapt` with k steps plays k
    episodes. The trials of an iteration, at least two, are compared with each other (`with_advantages`). The
    paper optimises by TRPO, later work (as here) by PPO (Schulman et al., 2017, arXiv 1707.06347). With the
    policies `snail` or `mann` this is the reinforcement learning of those papers.

    Args:
      family: the tasks.
      policy: with a critic, and a memory if it is to adapt.
      optimizer: of every minibatch; it cannot be TRPO, which needs a divergence.
      num_episodes: E, episodes in a trial; None takes the family's.
      epochs: passes over the trials of an iteration.
      minibatches: parts of the trials, each an optimizer's step; at most as many as there are tasks.
      clip: largest change of the likelihood ratio that is rewarded.
      entropy_weight: weight of the policy's entropy.
      value_weight: weight of the critic's squared error, in units of the spread of returns over the trials.
      discount: within the trial, in [0, 1].
      gae_lambda: in [0, 1].
      normalize_advantages: over all trials of an iteration.
      unroll_length: C, steps that are back-propagated through, from stored carries; it divides the trial's
        length. None means the whole trial. A carry that is a cache, as SNAIL's and the transformer's, costs
        more memory to store than this saves.
      tasks_per_block: trials that a device runs side by side; None chooses by platform.

    Returns:
      The algorithm. `return_before` and `return_after` are of the first and the last episode of the trials,
      `return_trial` of all. `loss`, `entropy` and `gradient_norm` are of an iteration's first minibatch,
      `skipped` counts the updates so far that were not finite. A task is lost if anything in its trial is not
      finite.

    Raises:
      ValueError: an argument is out of its range, or the policy cannot hold a trial.
    """
    family = conform(family)
    episodes = family.env.spec.trial_episodes if num_episodes is None else num_episodes
    at_least(1, num_episodes=episodes, epochs=epochs, minibatches=minibatches)
    not_negative(clip=clip, entropy_weight=entropy_weight, value_weight=value_weight)
    boolean(normalize_advantages=normalize_advantages)
    in_unit_interval(discount=discount, gae_lambda=gae_lambda)
    if not policy.differentiable:
        raise ValueError("policy of rl2 must have probabilities with derivatives, got one without (tabular?)")
    if not policy.has_critic:
        raise ValueError("rl2 needs a policy with a critic, such as mlp(..., critic=True), got one without")
    length = episodes * family.env.spec.horizon
    rollouts.check_room(policy, length)
    chunk = length if unroll_length is None else unroll_length
    at_least(1, unroll_length=chunk)
    if length % chunk:
        raise ValueError(f"unroll_length must divide the trial's {length} steps, got {unroll_length}")
    # Episodes that leave room for one more.
    room = None if policy.max_steps is None else policy.max_steps // family.env.spec.horizon - 1
    check_no_divergence("rl2", optimizer, policy)
    optimizer = skip_nonfinite(optimizer)
    block = parallel.tasks_per_block(1, tasks_per_block)

    # For ONE task.

    def collect(params: Params, task: Task, key: Key) -> tuple[Rollout, Array, Array, Array]:
        empty = Adapted(params, policy.initial_carry())
        _, rollout, returns = rollouts.trial(family.env, policy, empty, task, key, episodes)
        # A trial of which anything is not finite is lost: it has no step, and numbers that harm nobody.
        finite = parallel.all_finite(rollout._replace(measures={}))
        clean = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), (rollout, returns))
        return *clean, finite, (rollout.mask > 0).sum()

    def carries(params: Params, inputs: PyTree) -> PyTree:
        def unroll(carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
            return policy.unroll(params, carry, inputs)[0], carry

        return jax.lax.scan(unroll, policy.initial_carry(), inputs)[1]

    def loss(params: Params, trial: TrialBatch) -> tuple[Array, Array]:
        steps = trial.steps

        def unroll(carry: PyTree, inputs: PyTree) -> PyTree:
            return policy.unroll(params, carry, inputs)[1]

        carry = trial.carry
        if carry is None:
            carry = jax.tree.map(lambda x: x[None], policy.initial_carry())
        output = jax.vmap(unroll)(carry, steps.inputs)
        log_prob = jax.vmap(jax.vmap(policy.distribution.log_prob))(output.distribution, steps.action)
        objective = ppo_clip(log_prob, steps, discount=discount, gae_lambda=gae_lambda, clip=clip)
        entropies = jax.vmap(jax.vmap(policy.distribution.entropy))(output.distribution)
        entropy = (steps.mask * entropies).sum() / steps.mask.size
        error = (steps.mask * jnp.square(output.value - steps.target)).sum() / steps.mask.size
        return value_weight * error - objective - entropy_weight * entropy, entropy

    # For the batch.

    def init(key: Key) -> MetaState:
        params = policy.init(key)
        return MetaState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(state: MetaState, tasks: Task, key: Key) -> tuple[MetaState, Metrics]:
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        least = max(2, minibatches)
        if num_tasks < least:
            raise ValueError(
                f"tasks must be at least {least}, because rl2 compares trials with each other and each of the"
                f" {minibatches} minibatches needs one, got {num_tasks}"
            )
        key_collect, key_order = jax.random.split(key)
        keys = parallel.task_keys(key_collect, num_tasks)
        rollout, returns, finite, taken = parallel.map_tasks(collect, state.params, tasks, keys, block=block)
        kept = finite.astype(float)
        horizon = family.env.spec.horizon
        steps = with_advantages(
            rollout,
            horizon=horizon,
            discount=discount,
            gae_lambda=gae_lambda,
            normalize_advantages=normalize_advantages,
        )
        steps = jax.tree.map(lambda x: x.reshape(num_tasks, -1, chunk, *x.shape[2:]), steps)
        carry = None
        if chunk < length:
            carry = parallel.map_tasks(carries, state.params, steps.inputs, block=block)
        trials = TrialBatch(steps, carry)

        def minibatch(loop: PyTree, chosen: tuple[Array, Array]) -> tuple[PyTree, Metrics]:
            params, opt_state = loop
            index, weight = chosen
            part = jax.tree.map(lambda x: x[source[index]], trials)
            weight = weight * kept[index]
            (value, entropy), gradients = parallel.value_and_grad_over_tasks(
                loss, params, part, weight=weight, block=block
            )

            def value_of(candidate: Params) -> Array:
                return parallel.mean_over_tasks(loss, candidate, part, weight=weight, block=block)[0]

            arguments = update_arguments(state.step, value, gradients, value_of)
            updates, opt_state = optimizer.update(gradients, opt_state, params, **arguments)
            metrics = {"loss": value, "entropy": entropy, "gradient_norm": global_norm(gradients)}
            return (optax.apply_updates(params, updates), opt_state), metrics

        # A lost trial has no weight, and its place is taken by one that is not lost: zeros are no inputs of a
        # policy, and could give it a gradient that is not finite.
        source = jnp.where(kept > 0, jnp.arange(num_tasks), jnp.argmax(kept))
        places, weight = _minibatches(num_tasks, minibatches)
        orders = jax.vmap(lambda key: jax.random.permutation(key, num_tasks)[places])(
            jax.random.split(key_order, epochs)
        )
        chosen = orders.reshape(epochs * minibatches, -1), jnp.tile(weight, (epochs, 1))
        (params, opt_state), metrics = jax.lax.scan(minibatch, (state.params, state.opt_state), chosen)

        def mean(x: Array) -> Array:
            return x.sum() / kept.sum()  # of lost trials it is 0

        metrics = jax.tree.map(lambda x: x[0], metrics) | {
            "return_before": mean(returns[:, 0]),
            "return_after": mean(returns[:, -1]),
            "return_trial": mean(returns.sum(-1)),
            "tasks_lost": (num_tasks - kept.sum()).astype(jnp.int32),
            "skipped": opt_state.skipped,
            **report(opt_state),
            "env_steps": taken.sum().astype(jnp.int32),
        }
        params = policy.observe(params, steps.inputs.obs, steps.mask)
        return MetaState(params, opt_state, state.step + 1), metrics

    def adapt(
        params: Params,
        task: Task,
        key: Key,
        num_steps: int | None = None,
        step_scale: float | Array | None = None,
    ) -> tuple[Adapted, AdaptInfo]:
        if step_scale is not None:
            raise ValueError(
                f"step_scale must be None, got {step_scale}: rl2 adapts by no step that has a size"
            )
        num_steps = episodes - 1 if num_steps is None else num_steps
        at_least(0, num_steps=num_steps)
        if room is not None and num_steps > room:
            raise ValueError(f"num_steps must be at most {room}, got {num_steps}: the memory holds no more")

        def play(before: Adapted, key: Key) -> tuple[Adapted, tuple[Array, Adapted]]:
            after, rollout = rollouts.episode(family.env, policy, before, task, key)
            return after, (rollouts.returns(rollout), before)

        start = rollouts.begin_trial(family.env, Adapted(params, policy.initial_carry()))
        adapted, (returns, path) = jax.lax.scan(play, start, jax.random.split(key, num_steps))
        return adapted, AdaptInfo(returns, (), path)

    return MetaAlgorithm(init, update, adapt, policy, episodes - 1, room)


def with_advantages(
    rollout: Rollout, *, horizon: int, discount: float, gae_lambda: float, normalize_advantages: bool = False
) -> PolicyGradientBatch:
    """Trials with advantages that run across their episodes, and what the critic is to learn.

    An episode that ends early keeps its time: what follows is as far away as if it had not. Were the next
    one to begin at once, all that is discounted would come closer by ending the first, and an agent that
    falls would lose little.

    An agent is given no clock: a critic of plain returns, which shrink to nothing as the trial ends, would
    first have to learn to count. So the critic says by how much a trial will do better than the mean of the
    *other* trials from the same time on, in units of their spread: what it predicts is of size one whatever
    the rewards. A trial that is alone in taking a step at some time is compared with all other trials, which
    wait for their next episode.

    Args:
      rollout: trials side by side, from their initial carries [B, L, ...], steps that were taken first. A
        trial without any step has no part in the comparison.
      horizon: T, steps in an episode that does not end early; it divides L.
      discount: a step, within the trial.
      gae_lambda: the critic is trusted with the share 1 - gae_lambda.
      normalize_advantages: to zero mean and unit standard deviation over all trials.

    Returns:
      The steps [B, L, ...]; `advantage` is in units of the reward unless it is normalized, `target` in the
      critic's. Where all trials got the same rewards at the same times, normalized advantages are 0.
    """
    length = rollout.mask.shape[1]
    time = jax.vmap(functools.partial(_time, horizon=horizon))(rollout.inputs.first, rollout.mask)

    def at_their_time(x: Array) -> Array:
        return jax.vmap(lambda x, time: jnp.zeros_like(x).at[time].set(x, mode="drop"))(x, time)

    def in_order(x: Array) -> Array:
        return rollout.mask * jax.vmap(lambda x, time: x[jnp.minimum(time, length - 1)])(x, time)

    taken, reward = at_their_time(rollout.mask), at_their_time(rollout.reward)
    always = jnp.ones_like(taken)
    to_go = jax.vmap(functools.partial(advantages.discounted_returns, discount=discount))(reward, always)
    mean = _mean_of_others(to_go, taken)
    size = advantages.root_mean_square(to_go, taken)
    spread = advantages.root_mean_square(to_go - mean, taken)
    spread = jnp.maximum(spread, advantages.NEGLIGIBLE * size) + 1e-8  # where trials are alike
    value = mean + spread * at_their_time(rollout.value)

    def while_waiting(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        value = jnp.where(step[0] > 0, step[1], discount * later)
        return value, value

    nothing = jnp.zeros(len(taken), value.dtype)  # follows the trial
    value = jax.lax.scan(while_waiting, nothing, (taken.T, value.T), reverse=True)[1].T
    # An episode's end is no end of the trial. Between two episodes there is nothing to trust the critic with.
    going_on, trust = jnp.zeros_like(rollout.terminated), jnp.where(taken > 0, gae_lambda, 1.0)
    estimate = jax.vmap(lambda *x: advantages.gae(*x[:-1], discount=discount, gae_lambda=x[-1]))
    advantage, target = estimate(reward, value, nothing, going_on, always, trust)
    advantage = in_order(advantage)
    if normalize_advantages:
        advantage = jnp.where(advantages.has_signal(reward, taken), advantage, 0)
        advantage = advantages.normalize(advantage, rollout.mask, scale=size)
    return PolicyGradientBatch(
        inputs=rollout.inputs,
        action=rollout.action,
        log_prob=rollout.log_prob,
        advantage=advantage,
        target=in_order((target - mean) / spread),
        reward=rollout.reward,
        value=in_order(value),
        mask=rollout.mask,
        terminated=going_on,
        last_value=jnp.zeros_like(value),  # of no use, and of the others' shape
    )


def _mean_of_others(to_go: Array, taken: Array) -> Array:
    """The mean return of the other trials from every time on, [B, L].

    Of those that take a step at that time, or if there are none, of all that take any step.
    """

    def others(present: Array) -> tuple[Array, Array]:
        total = present * to_go
        return total.sum(0, keepdims=True) - total, present.sum(0, keepdims=True) - present

    sum_taking, num_taking = others((taken > 0).astype(to_go.dtype))
    exists = (taken > 0).any(1, keepdims=True)
    sum_all, num_all = others(jnp.broadcast_to(exists, taken.shape).astype(to_go.dtype))
    mean_taking, mean_all = sum_taking / jnp.maximum(num_taking, 1), sum_all / jnp.maximum(num_all, 1)
    return jnp.where(num_taking > 0, mean_taking, mean_all)


def _minibatches(num_tasks: int, minibatches: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts of almost equal size: indices [minibatches, size], and 0 as the weight of a place left empty."""
    parts = np.array_split(np.arange(num_tasks), minibatches)
    size = len(parts[0])
    weight = np.array([[place < len(part) for place in range(size)] for part in parts], float)
    return np.array([np.resize(part, size) for part in parts]), weight


def _time(first: Array, taken: Array, *, horizon: int) -> Array:
    """When each step of a trial [L] would be if no episode ended early; L for those that were not taken."""
    index = jnp.arange(len(first))
    start = jax.lax.cummax(jnp.where(first, index, 0))
    return jnp.where(taken > 0, (jnp.cumsum(first) - 1) * horizon + index - start, len(first))
