"""Learning Q-values from transitions: tabular where observations are one-hot, else linear in them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta import rollouts
from jmeta.checks import at_least, in_unit_interval
from jmeta.inner.loop import Learner
from jmeta.types import Adapted, Array, Key, Params, Policy, PolicyInput, Task, TaskFamily


class Transitions(NamedTuple):
    """Episodes of one task as transitions."""

    inputs: PolicyInput  # [N, T, ...]
    action: Array  # [N, T] int32
    reward: Array  # [N, T]
    next_obs: Array  # [N, T, D]
    terminated: Array  # [N, T] bool
    mask: Array  # [N, T]


def learner(family: TaskFamily, policy: Policy, *, num_episodes: int, discount: float) -> Learner:
    """Q-learning (Watkins and Dayan, 1992) for a policy whose parameters are weights [D, A] of Q-values.

    A step descends minus the sum over an episode of (r + discount max_b Q(s', b) - Q(s, a)) x grad Q(s, a),
    averaged over the episodes. So with `sgd` and one-hot observations a step of size α moves Q(s, a) by α
    times its temporal difference; unlike online Q-learning, all transitions of a batch see the values before
    it. The end of an episode is a time limit and bootstraps, unless it is a terminal state. After adaptation
    the loss is half the mean squared temporal difference, its target constant.

    Args:
      family: tasks and their environment, of discrete actions.
      policy: such as `policies.tabular`.
      num_episodes: N, episodes in a batch.
      discount: in [0, 1].

    Raises:
      ValueError: a value is out of its range, or the policy's parameters are not such weights.
    """
    at_least(1, num_episodes=num_episodes)
    in_unit_interval(discount=discount)
    weights = jax.eval_shape(policy.init, jax.random.key(0))
    if not isinstance(weights, jax.ShapeDtypeStruct) or len(weights.shape) != 2:
        raise ValueError("inner 'q-learning' needs a policy whose parameters are a matrix, such as tabular")

    def collect(adapted: Adapted, task: Task, key: Key) -> Transitions:
        rollout = rollouts.batch(family.env, policy, adapted, task, key, num_episodes)
        next_obs = jnp.concatenate([rollout.inputs.obs[:, 1:], rollout.last_obs[:, None]], axis=1)
        return Transitions(
            rollout.inputs, rollout.action, rollout.reward, next_obs, rollout.terminated, rollout.mask
        )

    def differences(weights: Params, target_weights: Params, batch: Transitions) -> Array:
        """Temporal differences [N, T]."""
        chosen = jnp.take_along_axis(batch.inputs.obs @ weights, batch.action[..., None], axis=-1)[..., 0]
        following = jnp.where(batch.terminated, 0.0, (batch.next_obs @ target_weights).max(-1))
        return batch.mask * (batch.reward + discount * following - chosen)

    def gradient(weights: Params, batch: Transitions) -> Params:
        action = jax.nn.one_hot(batch.action, weights.shape[1])
        total = jnp.einsum("nt,ntd,nta->da", differences(weights, weights, batch), batch.inputs.obs, action)
        return -total / num_episodes

    def loss(weights: Params, batch: Transitions) -> Array:
        errors = differences(weights, jax.lax.stop_gradient(weights), batch)
        return 0.5 * jnp.square(errors).sum() / errors.size

    return Learner(collect, gradient, loss, conservative=False)
