"""Strategies for random Markov decision processes.

A strategy scores actions [H, S, A] before every episode from what it remembers of those before; the action of
the highest score is taken, ties broken at random. Priors, confidence sets and bonuses are those of TabulaRL
(github.com/iosband/TabulaRL), with which the published columns were measured: a prior N(0, 1) of mean
rewards, where tasks are drawn from N(1, 1), and next to none for greedy, ε-greedy and UCRL2. `bayes_greedy`
knows the prior that tasks are drawn from. A parameter is tuned on other tasks than those it is measured on.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.envs.tabular_mdp import TabularTask
from jmeta.types import Array, Key

HORIZON = 10
CONFIDENCE = 0.95  # of UCRL2
DISCOUNT = 0.9  # of Q-learning
MOST_SAMPLES = 20  # of OPSRL
NEXT_TO_NO_PRIOR = 1e-4
Memory = Any
Parameter = Any  # a number, or a tuple of them


class Counts(NamedTuple):
    """What is remembered of the steps taken."""

    visits: Array  # [S, A, S] how often a state and action were seen to lead to a state
    steps: Array  # [S, A] how often they were taken
    rewards: Array  # [S, A] sum of their rewards


def no_counts(num_states: int, num_actions: int, parameter: Parameter) -> Counts:
    """Nothing seen yet."""
    del parameter
    nothing = jnp.zeros((num_states, num_actions))
    return Counts(jnp.zeros((num_states, num_actions, num_states)), nothing, nothing)


def count(
    counts: Counts, state: Array, action: Array, reward: Array, following: Array, parameter: Parameter
) -> Counts:
    """One step more."""
    del parameter
    return Counts(
        counts.visits.at[state, action, following].add(1, mode="drop"),
        counts.steps.at[state, action].add(1),
        counts.rewards.at[state, action].add(reward),
    )


class Strategy(NamedTuple):
    """How episodes are planned.

    Attributes:
      plan: (key, memory, number of the episode, parameter) -> scores [H, S, A].
      candidates: values of the parameter to choose from; () where it has none.
      meaning: of the parameter.
      start: (S, A, parameter) -> memory before the first episode.
      learn: (memory, state, action, reward, next state, parameter) -> memory after a step. Nobody sees the
        state after an episode's last step: it is S.
    """

    plan: Callable[[Key, Memory, Array, Parameter], Array]
    candidates: tuple[Parameter, ...] = ()
    meaning: str = ""
    start: Callable[[int, int, Parameter], Memory] = no_counts
    learn: Callable[[Memory, Array, Array, Array, Array, Parameter], Memory] = count


def _posterior(counts: Counts, *, weight: float = 1.0, mean: float = 0.0) -> tuple[Array, Array, Array]:
    """Mean transitions [S, A, S], mean rewards and their standard deviation [S, A].

    Args:
      counts: what was seen.
      weight: of the prior, Dirichlet(weight) and N(mean, 1 / weight).
      mean: of rewards.
    """
    visits = counts.visits + weight
    number = counts.steps + weight
    reward = (counts.rewards + weight * mean) / number
    return visits / visits.sum(-1, keepdims=True), reward, 1 / jnp.sqrt(number)


def _backward(score: Callable[[Array, Array], Array], num_states: int) -> Array:
    """Scores [H, S, A] by backward induction; `score(value [S], steps that follow []) -> [S, A]`."""

    def backup(value: Array, following: Array) -> tuple[Array, Array]:
        scores = score(value, following)
        return scores.max(-1), scores

    return jax.lax.scan(backup, jnp.zeros(num_states), jnp.arange(HORIZON))[1][::-1]


def solve(transition: Array, reward: Array) -> Array:
    """Scores [H, S, A] that are best for a process [S, A, S], [S, A]."""
    return _backward(lambda value, following: reward + transition @ value, len(reward))


def _explore(key: Key, scores: Array, epsilon: Array) -> Array:
    """With probability `epsilon`, in a state at a step, all actions alike."""
    explore = jax.random.uniform(key, scores.shape[:2]) < epsilon
    return jnp.where(explore[..., None], 0.0, scores)


def random(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """Any action."""
    del key, episode, parameter
    return jnp.zeros((HORIZON, *counts.rewards.shape))


def greedy(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """The best for the likeliest process; where nothing was seen, no reward and any state."""
    del key, episode, parameter
    transition, reward, _ = _posterior(counts, weight=NEXT_TO_NO_PRIOR)
    return solve(transition, reward)


def bayes_greedy(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """The best for the posterior mean under the prior that tasks are drawn from."""
    del key, episode, parameter
    transition, reward, _ = _posterior(counts, mean=1.0)
    return solve(transition, reward)


def epsilon_greedy(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """A random action with probability `parameter`, else the greedy one."""
    return _explore(key, greedy(key, counts, episode, parameter), parameter)


def beb(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """Bayesian exploration bonuses of 1 / (1 + n), pseudo-counts included (Kolter and Ng, 2009).

    That of transitions is for every step that follows, times 2 H^3 `parameter`.
    """
    del key, episode
    transition, reward, _ = _posterior(counts)
    num_states = len(reward)
    reward += 1 / (2 + counts.steps)
    bonus = 2 * HORIZON**3 * parameter / (1 + num_states + counts.visits.sum(-1))
    return _backward(lambda value, following: reward + following * bonus + transition @ value, num_states)


def _sample(key: Key, counts: Counts) -> tuple[Array, Array]:
    key_transition, key_reward = jax.random.split(key)
    _, reward, std = _posterior(counts)
    transition = jax.random.dirichlet(key_transition, counts.visits + 1)
    return transition, reward + std * jax.random.normal(key_reward, reward.shape)


def psrl(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """The best for a sample of the posterior (Strens, 2000)."""
    del episode, parameter
    return solve(*_sample(key, counts))


def opsrl(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """The highest score by any of `parameter` samples of the posterior."""
    del episode
    keys = jax.random.split(key, MOST_SAMPLES)
    scores = jax.vmap(lambda key: solve(*_sample(key, counts)))(keys)
    used = (jnp.arange(MOST_SAMPLES) < parameter)[:, None, None, None]
    return jnp.where(used, scores, -jnp.inf).max(0)


def confidence_radii(counts: Counts, episode: Array) -> tuple[Array, Array]:
    """How far mean rewards and, in the 1-norm, transitions may be off.

    As Jaksch et al. (2010), eqs. 3 and 4, with TabulaRL's constants and episodes for time.

    Args:
      counts: what was seen.
      episode: [] its number, counted from 0.

    Returns:
      Both radii [S, A].
    """
    num_states, num_actions = counts.rewards.shape
    log = 4 * jnp.log(2 * num_states * num_actions * (episode + 2) / (1 - CONFIDENCE))
    reward, transition = jnp.maximum(counts.steps, 1), jnp.maximum(counts.visits.sum(-1), 1)
    return jnp.sqrt(log / reward), jnp.sqrt(num_states * log / transition)


def optimistic_transition(estimate: Array, radius: Array, value: Array) -> Array:
    """The transitions [S, A, S] near an estimate that promise most (Jaksch et al., 2010, figure 2).

    Args:
      estimate: probabilities [S, A, S].
      radius: [S, A] 1-norm of the largest difference from them.
      value: [S] of the next state.
    """
    best_first = jnp.argsort(-value)
    raised = estimate[..., best_first]
    raised = raised.at[..., 0].set(jnp.minimum(1.0, raised[..., 0] + radius / 2))
    # What the best state gained is taken from the worst ones.
    room = jnp.maximum(1 - jnp.cumsum(raised, axis=-1) + raised, 0)
    return jnp.minimum(raised, room)[..., jnp.argsort(best_first)]


def ucrl2(key: Key, counts: Counts, episode: Array, parameter: Parameter) -> Array:
    """The best for the most favourable process in a confidence set (Jaksch et al., 2010).

    Its radii are scaled by `parameter`: as they are, it only explores here.
    """
    del key
    estimate, reward, _ = _posterior(counts, weight=NEXT_TO_NO_PRIOR)
    reward_radius, radius = confidence_radii(counts, episode)
    reward += parameter * reward_radius
    return _backward(
        lambda value, following: (
            reward + (optimistic_transition(estimate, parameter * radius, value) @ value)
        ),
        len(reward),
    )


def initial_values(num_states: int, num_actions: int, parameter: Parameter) -> Array:
    """Q-values [S, A] before the first episode, all the same."""
    return jnp.full((num_states, num_actions), parameter[0], float)


def update_values(
    values: Array, state: Array, action: Array, reward: Array, following: Array, parameter: Parameter
) -> Array:
    """Q-values after a step (Watkins and Dayan, 1992); after the last there is nothing to learn from."""
    seen = following < len(values)
    difference = reward + DISCOUNT * values[jnp.where(seen, following, 0)].max() - values[state, action]
    return values.at[state, action].add(jnp.where(seen, parameter[1] * difference, 0.0))


def q_learning(key: Key, values: Array, episode: Array, parameter: Parameter) -> Array:
    """ε-greedy by the Q-values with which the episode starts.

    `parameter` is (initial value, step size, ε). The prior is not known to it.
    """
    del episode
    return _explore(key, jnp.broadcast_to(values, (HORIZON, *values.shape)), parameter[2])


@functools.partial(jax.jit, static_argnames=("strategy", "num_episodes"))
def total_reward(
    strategy: Strategy, tasks: TabularTask, key: Key, parameter: Parameter, num_episodes: int
) -> Array:
    """Total reward [tasks] of a strategy over all episodes.

    Args:
      strategy: the strategy.
      tasks: [tasks, ...].
      key: consumed.
      parameter: of the strategy.
      num_episodes: episodes of each task.
    """

    def one(task: TabularTask, key: Key) -> Array:
        def episode(memory: Memory, turn: tuple[Array, Key]) -> tuple[Memory, Array]:
            number, key = turn
            key_plan, key_steps = jax.random.split(key)
            scores = strategy.plan(key_plan, memory, number, parameter)

            def step(
                loop: tuple[Array, Memory], now: tuple[Array, Array, Key]
            ) -> tuple[tuple[Array, Memory], Array]:
                (state, memory), (score, last, key) = loop, now
                key_tie, key_next, key_reward = jax.random.split(key, 3)
                best = score[state] == score[state].max()
                action = jnp.argmax(jnp.where(best, jax.random.uniform(key_tie, best.shape), -1.0))
                following = jax.random.categorical(key_next, jnp.log(task.transition[state, action]))
                reward = task.reward[state, action] + jax.random.normal(key_reward)
                seen = jnp.where(last, num_states, following)
                memory = strategy.learn(memory, state, action, reward, seen, parameter)
                return (following, memory), reward

            start = (jnp.zeros((), jnp.int32), memory)
            last = jnp.arange(HORIZON) == HORIZON - 1
            keys = jax.random.split(key_steps, HORIZON)
            (_, memory), reward = jax.lax.scan(step, start, (scores, last, keys))
            return memory, reward.sum()

        num_states, num_actions = task.reward.shape
        memory = strategy.start(num_states, num_actions, parameter)
        turns = (jnp.arange(num_episodes), jax.random.split(key, num_episodes))
        return jax.lax.scan(episode, memory, turns)[1].sum()

    return jax.vmap(one)(tasks, jax.random.split(key, tasks.reward.shape[0]))


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(random),
    "psrl": Strategy(psrl),
    "opsrl": Strategy(opsrl, (2.0, 3.0, 5.0, 10.0, 20.0), "samples"),
    "ucrl2": Strategy(ucrl2, tuple(10 ** (-k / 2) for k in range(1, 9)), "scale of the radii"),
    "beb": Strategy(beb, tuple(10 ** (-k / 2) for k in range(1, 9)), "scale of the bonus"),
    "epsilon_greedy": Strategy(epsilon_greedy, (0.1, 0.2, 0.3), "ε"),
    "greedy": Strategy(greedy),
    "bayes_greedy": Strategy(bayes_greedy),
    "q_learning": Strategy(
        q_learning,
        tuple(itertools.product((0.0, 5.0, 10.0, 20.0), (0.1, 0.2, 0.4), (0.0, 0.05, 0.1))),
        "initial value, step size, ε",
        initial_values,
        update_values,
    ),
}
