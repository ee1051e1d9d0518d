"""A finite Markov decision process whose task is its tables."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import at_least, not_negative
from jmeta.types import Array, Discrete, Env, EnvSpec, Key, TimeStep


class TabularTask(NamedTuple):
    """The tables of a Markov decision process of S states and A actions."""

    transition: Array  # [S, A, S] probability of the next state, given state and action
    reward: Array  # [S, A] mean reward of an action in a state


def tabular_mdp(*, num_states: int, num_actions: int, horizon: int, reward_std: float = 0.0) -> Env:
    """Makes a finite Markov decision process that starts in state 0 and never terminates.

    The reward of a step is `reward[state, action]`, of the state in which the action is taken, plus noise.

    Args:
      num_states: S.
      num_actions: A.
      horizon: steps in an episode.
      reward_std: standard deviation of the normal noise on rewards.

    Returns:
      The environment: its task is a `TabularTask`, its state the index of a state, its observation the state
      as a one-hot vector [S].

    Raises:
      ValueError: if a size is not positive or the standard deviation is negative.
    """
    at_least(1, num_states=num_states, num_actions=num_actions, horizon=horizon)
    not_negative(reward_std=reward_std)

    def observe(state: Array, reward: Array) -> TimeStep:
        return TimeStep(jax.nn.one_hot(state, num_states), reward, jnp.array(False))

    def reset(key: Key, task: TabularTask) -> tuple[Array, TimeStep]:
        del key, task
        state = jnp.zeros((), jnp.int32)
        return state, observe(state, jnp.zeros(()))

    def step(key: Key, state: Array, action: Array, task: TabularTask) -> tuple[Array, TimeStep]:
        key_state, key_reward = jax.random.split(key)
        next_state = jax.random.categorical(key_state, jnp.log(task.transition[state, action]))
        reward = task.reward[state, action] + reward_std * jax.random.normal(key_reward)
        return next_state.astype(jnp.int32), observe(next_state, reward)

    return Env(reset, step, EnvSpec(num_states, Discrete(num_actions), horizon, terminates=False))


def finite_horizon_value(task: TabularTask, horizon: int) -> Array:
    """Expected return [S] of the best policy over `horizon` steps, by value iteration (Bellman 1957)."""

    def backup(value: Array, _: None) -> tuple[Array, None]:
        return (task.reward + task.transition @ value).max(-1), None

    return jax.lax.scan(backup, jnp.zeros(task.reward.shape[0]), length=horizon)[0]
