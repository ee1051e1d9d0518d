"""Returns and advantages of one episode [T]."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jmeta.types import Array

# Differences that are a smaller part of what they are differences of are taken for rounding errors.
NEGLIGIBLE = 1e-5


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
    """Generalized advantage estimation for one episode (Schulman et al. 2016, eq. 16).

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


def normalize(advantage: Array, mask: Array, *, scale: Array | float) -> Array:
    """Advantages with mean 0 and standard deviation 1 over all axes given: ONE task's (or RL²'s trials).

    Args:
      advantage: [...], usually [N, T].
      mask: [...], the weight of each step; 0 excludes it.
      scale: [] size of the returns, as `root_mean_square` gives it. Advantages whose standard deviation is
        below `NEGLIGIBLE` of it are rounding errors and no signal: they become 0 instead of being blown up.

    Returns:
      [...], 0 where not `mask`. Its derivatives are finite everywhere.
    """
    chex.assert_equal_shape([advantage, mask])
    weight = mask / jnp.maximum(jnp.sum(mask), jnp.finfo(mask.dtype).tiny)
    # Divided by the largest first: squares of very large or very small numbers would leave their range.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(jnp.where(mask > 0, advantage, 0))))
    divided = jnp.where(mask > 0, advantage / jnp.where(largest > 0, largest, 1), 0)
    centered = jnp.where(mask > 0, divided - jnp.sum(weight * divided), 0)
    variance = jnp.sum(weight * jnp.square(centered))
    smallest = jnp.maximum(NEGLIGIBLE * scale / jnp.where(largest > 0, largest, 1), 1e-6)
    signal = variance > jnp.square(smallest)
    # The root has no derivative at 0: it is not taken there.
    return jnp.where(signal, centered / jnp.sqrt(jnp.where(signal, variance, 1)), 0)


def root_mean_square(x: Array, mask: Array) -> Array:
    """The size [] of numbers [...], weighted by a mask of the same shape; 0 if there are none."""
    largest = jnp.max(jnp.abs(jnp.where(mask > 0, x, 0)))
    divided = jnp.where(mask > 0, x / jnp.where(largest > 0, largest, 1), 0)
    total = jnp.sum(mask)
    return largest * jnp.sqrt(jnp.sum(mask * jnp.square(divided)) / jnp.where(total > 0, total, 1))


def has_signal(reward: Array, mask: Array) -> Array:
    """Whether rewards tell any action from another: [] bool.

    Where all episodes got the same rewards at the same times, whatever was done made no difference, and an
    advantage is the error of its baseline. Of a single episode the steps are compared with each other.

    Args:
      reward: [N, T], 0 where not `mask`.
      mask: [N, T], positive on the steps that were taken; an episode without any is not compared.
    """
    chex.assert_rank([reward, mask], 2)
    taken = mask > 0
    if len(reward) > 1:  # an episode that has ended gets 0, which the others may not
        compared = jnp.broadcast_to(taken.any(1, keepdims=True), taken.shape).astype(reward.dtype)
        count = jnp.maximum(jnp.sum(compared, axis=0, keepdims=True), 1)
        mean = jnp.sum(compared * reward, axis=0, keepdims=True) / count
    else:
        compared = taken.astype(reward.dtype)
        mean = jnp.sum(compared * reward) / jnp.maximum(jnp.sum(compared), 1)
    spread = root_mean_square(reward - mean, compared)
    return spread > NEGLIGIBLE * root_mean_square(reward, compared)
