"""What policies with a memory share: how the input is encoded, and the heads on the core's output."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta import distributions
from jmeta.checks import boolean, positive, sizes
from jmeta.hyperparameters import hyperparameters_of
from jmeta.policies import normalized
from jmeta.policies.layers import Dense, apply_layers, dense, init_layers
from jmeta.types import Array, Continuous, EnvSpec, Key, Params, Policy, PolicyInput, PolicyOutput, PyTree

INIT_LOG_STD, MIN_LOG_STD = -0.5, -3.0  # of continuous actions


class Core(NamedTuple):
    """A sequence model; `unroll` equals scanning `step`."""

    init: Callable[[Key, int], Params]  # key, input size D -> parameters
    initial_carry: Callable[[], PyTree]
    step: Callable[[Params, PyTree, Array], tuple[PyTree, Array]]  # params, carry, x [D] -> carry, y [H]
    unroll: Callable[[Params, PyTree, Array], tuple[PyTree, Array]]  # the same over a leading [T]
    size: int  # H
    max_steps: int | None = None  # longest sequence that the carry can hold


class SequenceParams(NamedTuple):
    """Parameters of a policy with a memory."""

    core: Params
    policy: Dense
    critic_core: Params | None  # where the critic has a core of its own
    critic: Dense
    log_std: Array | None  # [A], continuous actions only
    layers: tuple[Dense, ...]  # between the core and the heads
    critic_layers: tuple[Dense, ...]  # likewise, where the critic has a core of its own


def sequence_policy(
    spec: EnvSpec,
    core: Core,
    *,
    separate_critic: bool = False,
    head_layers: tuple[int, ...] = (),
    reward_scale: float = 1.0,
    normalize_observations: bool = False,
) -> Policy:
    """A policy and a critic on a sequence model, which reads (observation, last action, reward, done, first).

    Args:
      spec: the environment's.
      core: the sequence model.
      separate_critic: whether the critic has a model of its own, or a head on the policy's.
      head_layers: sizes of layers between the model and the heads. They read the input too, so that reactive
        behavior can bypass the recurrent state.
      reward_scale: factor of the reward that the memory is shown. Choose it so that rewards times the factor
        are of size 1: a memory cannot see rewards of size 0.001.
      normalize_observations: whether to keep observation statistics and to use them, as
        `policies.normalized` does.

    Returns:
      The policy; its carry is that of the core, or of both.

    Raises:
      ValueError: a size is not positive.
    """
    head_layers = sizes(head_layers=head_layers)
    positive(reward_scale=reward_scale)
    boolean(separate_critic=separate_critic, normalize_observations=normalize_observations)
    continuous = isinstance(spec.action, Continuous)
    num_outputs = spec.action.size if isinstance(spec.action, Continuous) else spec.action.num
    num_inputs = spec.obs_size + num_outputs + 3
    num_features = head_layers[-1] if head_layers else core.size

    def init_head_layers(key: Key) -> tuple[Dense, ...]:
        if not head_layers:
            return ()
        wide = (core.size + num_inputs, *head_layers)
        return init_layers(jax.random.fold_in(key, 1), wide, last_gain=math.sqrt(2))

    def init(key: Key) -> SequenceParams:
        key_core, key_policy, key_critic_core, key_critic = jax.random.split(key, 4)
        return SequenceParams(
            core=core.init(key_core, num_inputs),
            policy=dense(key_policy, num_features, num_outputs, 0.01),
            critic_core=core.init(key_critic_core, num_inputs) if separate_critic else None,
            critic=dense(key_critic, num_features, 1),
            log_std=jnp.full((num_outputs,), INIT_LOG_STD, float) if continuous else None,
            layers=init_head_layers(key_policy),
            critic_layers=init_head_layers(key_critic) if separate_critic else (),
        )

    def features(layers: tuple[Dense, ...], y: Array, x: Array) -> Array:
        if not layers:
            return y
        return jnp.tanh(apply_layers(layers, jnp.concatenate([y, x], axis=-1), jnp.tanh))

    def initial_carry() -> PyTree:
        carry = core.initial_carry()
        return (carry, carry) if separate_critic else carry

    def over(run: Callable[[Params, PyTree, Array], tuple[PyTree, Array]]) -> Callable[..., PyTree]:
        def apply(params: SequenceParams, carry: PyTree, inputs: PolicyInput) -> tuple[PyTree, PolicyOutput]:
            flags = [reward_scale * jnp.asarray(inputs.prev_reward, float), inputs.prev_done, inputs.first]
            # Not of the type of the observation: a reward of 0.9 would be 0 beside integers.
            scalars = jnp.stack([jnp.asarray(x, float) for x in flags], axis=-1)
            x = jnp.concatenate([inputs.obs.astype(float), inputs.prev_action.astype(float), scalars], -1)
            if separate_critic:
                policy_carry, y = run(params.core, carry[0], x)
                critic_carry, critic_y = run(params.critic_core, carry[1], x)
                carry = (policy_carry, critic_carry)
                seen, judged = features(params.layers, y, x), features(params.critic_layers, critic_y, x)
            else:
                carry, y = run(params.core, carry, x)
                seen = judged = features(params.layers, y, x)
            output: PyTree = params.policy(seen)
            if params.log_std is not None:
                log_std = jnp.maximum(params.log_std, MIN_LOG_STD)
                output = distributions.NormalParams(output, jnp.broadcast_to(log_std, output.shape))
            return carry, PolicyOutput(output, params.critic(judged)[..., 0])

        return apply

    policy = Policy(
        init=init,
        initial_carry=initial_carry,
        step=over(core.step),
        unroll=over(core.unroll),
        distribution=distributions.for_action(spec.action),
        has_critic=True,
        max_steps=core.max_steps,
    )
    return normalized.normalize_observations(policy, spec) if normalize_observations else policy


# What all recurrent policies have in common, but for `head_layers`.
shared_options = hyperparameters_of(sequence_policy, without=("core", "head_layers"))


def longest_trial(spec: EnvSpec, max_steps: int | None) -> int:
    """Steps that a memory of fixed size must hold: `max_steps`, or None for a trial of the family's."""
    return spec.horizon * spec.trial_episodes if max_steps is None else max_steps


def step_of(unroll: Callable[[Params, PyTree, Array], tuple[PyTree, Array]]) -> Callable[..., PyTree]:
    """`Core.step` of a model that is parallel over time: its unroll over one step."""

    def step(params: Params, carry: PyTree, x: Array) -> tuple[PyTree, Array]:
        carry, y = unroll(params, carry, x[None])
        return carry, y[0]

    return step
