"""Returns and advantages of one episode [T]."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jmeta.types import Array


def discounted_returns(
    reward: Array, mask: Array, *, discount: float | Array, bootstrap_value: Array | float = 0.0
) -> Array:
    """The discounted sum of rewards from every step of one episode on.

    Args:
      reward: [T].
      mask: [T], positive on the steps that were taken, 0 after a terminal step.
      discount: in [0, 1], per step.
      bootstrap_value: [] value of the observation after step T. It reaches no step when the episode's mask
        ends before T; pass 0 for an episode whose last step is terminal.

    Returns:
      [T] returns, 0 where not `mask`.
    """
    chex.assert_rank([reward, mask], 1)
    valid = (mask > 0).astype(reward.dtype)

    def backward(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward_t, valid_t = step
        return_t = valid_t * (reward_t + discount * later)
        return return_t, return_t

    last = jnp.asarray(bootstrap_value, reward.dtype)
    return jax.lax.scan(backward, last, (reward, valid), reverse=True)[1]


def gae(
    reward: Array,
    value: Array,
    last_value: Array,
    terminated: Array,
    mask: Array,
    *,
    discount: float | Array,
    gae_lambda: float | Array,
) -> tuple[Array, Array]:
    """Generalised advantage estimation for one episode (Schulman et al. 2016, eq. 16).

    Termination is not truncation: the time limit bootstraps from `last_value`, a terminal step from nothing.
    The paper's infinite sum is cut at the time limit, as everywhere.

    Args:
      reward: [T].
      value: [T] estimates of the return from each step on.
      last_value: [] estimate after step T.
      terminated: [T] bool, this step reached a terminal state.
      mask: [T], positive on the steps that were taken, 0 after a terminal step.
      discount: in [0, 1], per step.
      gae_lambda: in [0, 1]; 0 is the one-step temporal difference, 1 the return minus the value.

    Returns:
      advantage: [T], 0 where not `mask`.
      target: [T] the value's regression target, advantage + value, 0 where not `mask`.
    """
    chex.assert_rank([reward, value, terminated, mask], 1)
    chex.assert_rank(last_value, 0)
    valid = (mask > 0).astype(reward.dtype)
    value = value * valid
    next_value = jnp.append(value[1:], last_value)
    discount_t = discount * (1 - terminated.astype(reward.dtype))
    delta = valid * (reward + discount_t * next_value - value)

    def backward(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta_t, decay_t = step
        advantage_t = delta_t + decay_t * later
        return advantage_t, advantage_t

    decay = gae_lambda * discount_t * valid
    _, advantage = jax.lax.scan(backward, jnp.zeros_like(last_value), (delta, decay), reverse=True)
    return advantage, advantage + value


def normalize(advantage: Array, mask: Array, *, epsilon: float = 1e-5) -> Array:
    """Advantages with mean 0 and standard deviation 1 over all axes given: ONE task's (or RL²'s trials).

    Args:
      advantage: [...], usually [N, T].
      mask: [...], the weight of each step; 0 excludes it.
      epsilon: added to the standard deviation: equal advantages become about 0.

    Returns:
      [...], 0 where not `mask`.
    """
    chex.assert_equal_shape([advantage, mask])
    weight = mask / jnp.maximum(jnp.sum(mask), jnp.finfo(mask.dtype).tiny)
    centred = jnp.where(mask > 0, advantage - jnp.sum(weight * advantage), 0)
    std = jnp.sqrt(jnp.sum(weight * jnp.square(centred)))
    return centred / (std + epsilon)
