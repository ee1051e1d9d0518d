"""Strategies for random Markov decision processes, which know the prior: Dirichlet(1) and N(1, 1).

A strategy is `plan(key, visits [S, A, S], rewards [S, A], episode, parameter) -> scores [H, S, A]`, made anew
before every episode from the counts of transitions and the sums of rewards; the action of the highest score
is taken, ties broken at random. Rewards have unit noise. `parameter` is tuned on other tasks than those it is
measured on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.envs.tabular_mdp import TabularTask
from jmeta.types import Array, Key

HORIZON = 10
Plan = Callable[[Key, Array, Array, Array, Array], Array]


class Strategy(NamedTuple):
    """How an episode is planned, and the values of its parameter to choose from; () where it has none."""

    plan: Plan
    candidates: tuple[float, ...] = ()


def _posterior(visits: Array, rewards: Array) -> tuple[Array, Array, Array]:
    """Mean transitions [S, A, S], mean rewards and their standard deviation [S, A]."""
    count = visits.sum(-1)
    transition = (visits + 1) / (count + visits.shape[-1])[..., None]
    return transition, (rewards + 1) / (count + 1), 1 / jnp.sqrt(count + 1)


def _backward(score: Callable[[Array], Array], num_states: int) -> Array:
    """Scores [H, S, A] by backward induction; `score(value [S]) -> [S, A]`."""

    def backup(value: Array, _: None) -> tuple[Array, Array]:
        scores = score(value)
        return scores.max(-1), scores

    return jax.lax.scan(backup, jnp.zeros(num_states), length=HORIZON)[1][::-1]


def random(key: Key, visits: Array, rewards: Array, episode: Array, parameter: Array) -> Array:
    """Any action."""
    del key, episode, parameter
    return jnp.zeros((HORIZON, *rewards.shape))


def greedy(key: Key, visits: Array, rewards: Array, episode: Array, parameter: Array) -> Array:
    """The best for the posterior mean."""
    del key, episode, parameter
    transition, reward, _ = _posterior(visits, rewards)
    return _backward(lambda value: reward + transition @ value, len(rewards))


def epsilon_greedy(key: Key, visits: Array, rewards: Array, episode: Array, parameter: Array) -> Array:
    """A random action with probability `parameter` in a state at a step, else the greedy one."""
    scores = greedy(key, visits, rewards, episode, parameter)
    explore = jax.random.uniform(key, scores.shape[:2]) < parameter
    return jnp.where(explore[..., None], 0.0, scores)


def beb(key: Key, visits: Array, rewards: Array, episode: Array, parameter: Array) -> Array:
    """Bayesian exploration bonus, `parameter` / (1 + n) (Kolter and Ng, 2009)."""
    del key, episode
    transition, reward, _ = _posterior(visits, rewards)
    bonus = parameter / (1 + visits.sum(-1))
    return _backward(lambda value: reward + bonus + transition @ value, len(rewards))


def _sample(key: Key, visits: Array, rewards: Array) -> tuple[Array, Array]:
    key_transition, key_reward = jax.random.split(key)
    _, reward, std = _posterior(visits, rewards)
    transition = jax.random.dirichlet(key_transition, visits + 1)
    return transition, reward + std * jax.random.normal(key_reward, reward.shape)


def psrl(key: Key, visits: Array, rewards: Array, episode: Array, parameter: Array) -> Array:
    """The best for a sample of the posterior (Strens, 2000)."""
    del episode, parameter
    transition, reward = _sample(key, visits, rewards)
    return _backward(lambda value: reward + transition @ value, len(rewards))


def opsrl(key: Key, visits: Array, rewards: Array, episode: Array, parameter: Array) -> Array:
    """The best of `parameter` samples, at most 10, in every backup (Osband and Van Roy, 2017)."""
    del episode
    transition, reward = jax.vmap(lambda key: _sample(key, visits, rewards))(jax.random.split(key, 10))
    used = (jnp.arange(10) < parameter)[:, None, None]
    return _backward(
        lambda value: jnp.where(used, reward + transition @ value, -jnp.inf).max(0), len(rewards)
    )


def ucrl2(key: Key, visits: Array, rewards: Array, episode: Array, parameter: Array) -> Array:
    """The best for the most favourable process in a confidence set (Jaksch et al., 2010).

    Its bonuses, at confidence 0.95, are scaled by `parameter`: as they are, they only explore here.
    """
    del key
    num_states, num_actions = rewards.shape
    count = jnp.maximum(visits.sum(-1), 1)
    steps = HORIZON * episode + 1.0
    estimate = visits / count[..., None]
    estimate = jnp.where(visits.sum(-1, keepdims=True) > 0, estimate, 1 / num_states)
    log_term = jnp.log(2 * num_states * num_actions * steps / 0.05)
    reward = jnp.where(visits.sum(-1) > 0, rewards / count, 1.0)
    reward += parameter * jnp.sqrt(3.5 * log_term / count)
    radius = jnp.minimum(parameter * jnp.sqrt(14 * num_states * log_term / count), 2.0)

    def score(value: Array) -> Array:
        best_first = jnp.argsort(-value)
        ordered = estimate[..., best_first]
        raised = ordered.at[..., 0].set(jnp.minimum(1.0, ordered[..., 0] + radius / 2))
        # What the best state gained is taken from the worst ones.
        room = jnp.maximum(1 - jnp.cumsum(raised, axis=-1) + raised, 0)
        return reward + jnp.minimum(raised, room) @ value[best_first]

    return _backward(score, num_states)


@functools.partial(jax.jit, static_argnames=("plan", "num_episodes"))
def total_reward(plan: Plan, tasks: TabularTask, key: Key, parameter: Array, num_episodes: int) -> Array:
    """Reward of every episode [tasks, num_episodes] of a strategy.

    Args:
      plan: the strategy.
      tasks: [tasks, ...].
      key: consumed.
      parameter: [] of the strategy.
      num_episodes: episodes of each task.
    """

    def one(task: TabularTask, key: Key) -> Array:
        def episode(
            counts: tuple[Array, Array], turn: tuple[Array, Key]
        ) -> tuple[tuple[Array, Array], Array]:
            number, key = turn
            key_plan, key_steps = jax.random.split(key)
            scores = plan(key_plan, *counts, number, parameter)

            def step(
                state: tuple[Array, Array, Array], now: tuple[Array, Key]
            ) -> tuple[tuple[Array, ...], Array]:
                at, visits, rewards = state
                score, key = now
                key_tie, key_next, key_reward = jax.random.split(key, 3)
                best = score[at] == score[at].max()
                action = jnp.argmax(jnp.where(best, jax.random.uniform(key_tie, best.shape), -1.0))
                following = jax.random.categorical(key_next, jnp.log(task.transition[at, action]))
                reward = task.reward[at, action] + jax.random.normal(key_reward)
                visits = visits.at[at, action, following].add(1)
                return (following, visits, rewards.at[at, action].add(reward)), reward

            start = (jnp.zeros((), jnp.int32), *counts)
            (_, *counts), reward = jax.lax.scan(step, start, (scores, jax.random.split(key_steps, HORIZON)))
            return tuple(counts), reward.sum()

        zeros = (jnp.zeros_like(task.transition), jnp.zeros_like(task.reward))
        turns = (jnp.arange(num_episodes), jax.random.split(key, num_episodes))
        return jax.lax.scan(episode, zeros, turns)[1]

    return jax.vmap(one)(tasks, jax.random.split(key, tasks.reward.shape[0]))


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(random),
    "psrl": Strategy(psrl),
    "opsrl": Strategy(opsrl, (2.0, 3.0, 5.0, 10.0)),
    "ucrl2": Strategy(ucrl2, (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)),
    "beb": Strategy(beb, (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
    "epsilon_greedy": Strategy(epsilon_greedy, (0.01, 0.02, 0.05, 0.1, 0.2)),
    "greedy": Strategy(greedy),
}
