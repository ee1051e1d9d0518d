"""Finite Markov decision processes with random tables."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jmeta.checks import in_interval, one_of
from jmeta.envs.tabular_mdp import TabularTask, finite_horizon_value, tabular_mdp
from jmeta.envs.wrappers import trials
from jmeta.types import Array, Key, TaskFamily

_SHARED_SEED = 0  # of the part of the tables that tasks have in common


def random_mdp(
    *,
    num_states: int = 10,
    num_actions: int = 5,
    horizon: int = 10,
    transitions: Literal["dirichlet", "uniform"] = "dirichlet",
    shared: float = 0.0,
) -> TaskFamily:
    """Random transition probabilities and rewards, which the agent must find out.

    Task: a `TabularTask`. Transition probabilities P(. | s, a) ~ Dirichlet(1, ..., 1), or U[0, 1] normalised;
    mean rewards ~ N(1, 1). With `shared` = w > 0 tasks have structure in common: one table of each kind,
    fixed, is mixed with the task's own, w P0 + (1 - w) P and 1 + w R0 + sqrt(1 - w^2) R with R0, R ~ N(0, 1),
    so that rewards keep their distribution.
    Reward: the mean reward of the state and action, plus noise ~ N(0, 1).
    Observation: the state, one-hot [S]. Actions: A of them. Episodes start in state 0.
    Termination: never. A trial is 10 episodes.
    Splits: none: the held-out tasks are fresh ones of the same distribution.
    Source: Duan et al. 2016 (RL²), section 3.2; "uniform" and `shared` are not in it.

    `optimal_return`: by finite-horizon value iteration.

    Args:
      num_states: S.
      num_actions: A.
      horizon: steps in an episode.
      transitions: how transition probabilities are drawn.
      shared: w, in [0, 1).

    Returns:
      The family `random-mdp`.

    Raises:
      ValueError: an argument is out of its range.
    """
    one_of(("dirichlet", "uniform"), transitions=transitions)
    in_interval("[0, 1)", shared=shared)
    env = tabular_mdp(num_states=num_states, num_actions=num_actions, horizon=horizon, reward_std=1.0)
    env = trials(env, num_episodes=10)

    def draw(key: Key) -> TabularTask:
        key_transition, key_reward = jax.random.split(key)
        # Exponential weights, normalised, are Dirichlet(1, ..., 1).
        random = jax.random.exponential if transitions == "dirichlet" else jax.random.uniform
        weights = random(key_transition, (num_states, num_actions, num_states))
        reward = jax.random.normal(key_reward, (num_states, num_actions))
        return TabularTask(weights / weights.sum(-1, keepdims=True), reward)

    def sample(key: Key) -> TabularTask:
        own, common = draw(key), draw(jax.random.key(_SHARED_SEED))
        return TabularTask(
            shared * common.transition + (1 - shared) * own.transition,
            1 + shared * common.reward + jnp.sqrt(1 - shared**2) * own.reward,
        )

    def optimal_return(task: TabularTask) -> Array:
        return finite_horizon_value(task, horizon)[0]

    return TaskFamily("random-mdp", env, sample, sample, optimal_return)
