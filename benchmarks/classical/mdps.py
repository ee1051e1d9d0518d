"""Strategies for random Markov decision processes.

A strategy plans before every episode from what it remembers of those before, and scores actions [A] at every
step; that of the highest score is taken, ties broken at random. Priors, confidence sets and bonuses are those
of TabulaRL (github.com/iosband/TabulaRL), with which the published columns were measured: a prior N(0, 1) of
mean rewards, where tasks are drawn from N(1, 1), and next to none for greedy, ε-greedy and UCRL2. Its UCRL2
changes the estimated transitions in place, so that optimism compounds from backup to backup; ours does not.
`bayes_greedy` knows the prior that tasks are drawn from. A parameter is tuned on other tasks than those it is
measured on.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.classical import shared
from jmeta import parallel
from jmeta.envs.tabular_mdp import TabularTask
from jmeta.types import Array, Key, PyTree, TaskFamily

CONFIDENCE = 0.95  # of UCRL2
DISCOUNT = 0.9  # of Q-learning
NEXT_TO_NO_PRIOR = 1e-4
Memory = Any
Plan = Any
Parameter = Any  # a number, or a tuple of them
Loop = tuple[PyTree, Array, Memory]  # state of the environment, its index, what is remembered


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


def follow(key: Key, plan: Array, memory: Memory, step: Array, state: Array, parameter: Parameter) -> Array:
    """Scores [A] as planned, [H, S, A], for all steps of the episode."""
    del key, memory, parameter
    return plan[step, state]


class Strategy(NamedTuple):
    """How episodes are planned and played.

    Attributes:
      plan: (key, memory, number of the episode, horizon, parameter) -> what `act` needs.
      candidates: values of the parameter to choose from; () where it has none.
      meaning: of the parameter.
      start: (S, A, parameter) -> memory before the first episode.
      learn: (memory, state, action, reward, next state, parameter) -> memory after a step. Nobody sees the
        state after an episode's last step: it is S.
      act: (key, plan, memory, step of the episode, state, parameter) -> scores [A].
    """

    plan: Callable[[Key, Memory, Array, int, Parameter], Plan]
    candidates: tuple[Parameter, ...] = ()
    meaning: str = ""
    start: Callable[[int, int, Parameter], Memory] = no_counts
    learn: Callable[[Memory, Array, Array, Array, Array, Parameter], Memory] = count
    act: Callable[[Key, Plan, Memory, Array, Array, Parameter], Array] = follow


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


def _backward(score: Callable[[Array, Array], Array], num_states: int, horizon: int) -> Array:
    """Scores [H, S, A] by backward induction; `score(value [S], steps that follow []) -> [S, A]`."""

    def backup(value: Array, following: Array) -> tuple[Array, Array]:
        scores = score(value, following)
        return scores.max(-1), scores

    return jax.lax.scan(backup, jnp.zeros(num_states), jnp.arange(horizon))[1][::-1]


def solve(transition: Array, reward: Array, horizon: int) -> Array:
    """Scores [H, S, A] that are best for a process [S, A, S], [S, A]."""
    return _backward(lambda value, following: reward + transition @ value, len(reward), horizon)


def _explore(key: Key, scores: Array, epsilon: Array) -> Array:
    """Scores [..., A]: with probability `epsilon`, in a state at a step, all actions alike."""
    explore = jax.random.uniform(key, scores.shape[:-1]) < epsilon
    return jnp.where(explore[..., None], 0.0, scores)


def random(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
    """Any action."""
    del key, episode, parameter
    return jnp.zeros((horizon, *counts.rewards.shape))


def greedy(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
    """The best for the likeliest process; where nothing was seen, no reward and any state."""
    del key, episode, parameter
    transition, reward, _ = _posterior(counts, weight=NEXT_TO_NO_PRIOR)
    return solve(transition, reward, horizon)


def bayes_greedy(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
    """The best for the posterior mean under the prior that tasks are drawn from."""
    del key, episode, parameter
    transition, reward, _ = _posterior(counts, mean=1.0)
    return solve(transition, reward, horizon)


def epsilon_greedy(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
    """A random action with probability `parameter`, else the greedy one."""
    return _explore(key, greedy(key, counts, episode, horizon, parameter), parameter)


def beb(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
    """Bayesian exploration bonuses of 1 / (1 + n), pseudo-counts included (Kolter and Ng, 2009).

    That of transitions is for every step that follows, times 2 H^3 `parameter`.
    """
    del key, episode
    transition, reward, _ = _posterior(counts)
    num_states = len(reward)
    reward += 1 / (2 + counts.steps)
    bonus = 2 * horizon**3 * parameter / (1 + num_states + counts.visits.sum(-1))
    return _backward(
        lambda value, following: reward + following * bonus + transition @ value, num_states, horizon
    )


def _sample(key: Key, counts: Counts) -> tuple[Array, Array]:
    key_transition, key_reward = jax.random.split(key)
    _, reward, std = _posterior(counts)
    transition = shared.dirichlet(key_transition, counts.visits + 1)
    return transition, reward + std * jax.random.normal(key_reward, reward.shape)


def psrl(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
    """The best for a sample of the posterior (Strens, 2000)."""
    del episode, parameter
    return solve(*_sample(key, counts), horizon)


def opsrl(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
    """The highest score by any of `parameter` samples of the posterior."""
    del episode

    def better(index: Array, scores: Array) -> Array:
        return jnp.maximum(scores, solve(*_sample(jax.random.fold_in(key, index), counts), horizon))

    nothing = jnp.full((horizon, *counts.rewards.shape), -jnp.inf)
    return jax.lax.fori_loop(0, jnp.asarray(parameter, int), better, nothing)


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


def ucrl2(key: Key, counts: Counts, episode: Array, horizon: int, parameter: Parameter) -> Array:
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
        horizon,
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


def no_plan(key: Key, memory: Memory, episode: Array, horizon: int, parameter: Parameter) -> tuple[()]:
    """Nothing: all is decided step by step."""
    del key, memory, episode, horizon, parameter
    return ()


def q_learning(
    key: Key, plan: tuple[()], values: Array, step: Array, state: Array, parameter: Parameter
) -> Array:
    """ε-greedy by the Q-values as they are now.

    `parameter` is (initial value, step size, ε). The prior is not known to it.
    """
    del plan, step
    return _explore(key, values[state], parameter[2])


@functools.partial(jax.jit, static_argnames=("strategy", "family", "num_episodes"))
def episode_rewards(
    strategy: Strategy,
    family: TaskFamily,
    num_episodes: int,
    parameter: Parameter,
    tasks: TabularTask,
    keys: Key,
) -> Array:
    """Reward [tasks, E] of every episode with a strategy, over the devices of the mesh that is set.

    Args:
      strategy: the strategy.
      family: of tabular processes whose states are observed.
      num_episodes: E; how many come is known to no strategy.
      parameter: of the strategy.
      tasks: [tasks, ...] of the family.
      keys: [tasks] consumed.

    Raises:
      ValueError: if an episode may end before the horizon.
    """
    env = family.env
    horizon, num_states, num_actions = env.spec.horizon, env.spec.obs_size, env.spec.action.num
    shared.check_never_ends(env.spec)

    def one(parameter: Parameter, task: TabularTask, key: Key) -> Array:
        def episode(memory: Memory, turn: tuple[Array, Key]) -> tuple[Memory, Array]:
            number, key = turn
            key_plan, key_reset, key_steps = jax.random.split(key, 3)
            plan = strategy.plan(key_plan, memory, number, horizon, parameter)

            def step(loop: Loop, now: tuple[Array, Key]) -> tuple[Loop, Array]:
                (env_state, state, memory), (number, key) = loop, now
                key_act, key_tie, key_step = jax.random.split(key, 3)
                scores = strategy.act(key_act, plan, memory, number, state, parameter)
                action = shared.best(key_tie, scores)
                env_state, timestep = env.step(key_step, env_state, action, task)
                following = jnp.argmax(timestep.obs)
                seen = jnp.where(number == horizon - 1, num_states, following)
                memory = strategy.learn(memory, state, action, timestep.reward, seen, parameter)
                return (env_state, following, memory), timestep.reward

            env_state, timestep = env.reset(key_reset, task)
            start = (env_state, jnp.argmax(timestep.obs), memory)
            turns = (jnp.arange(horizon), jax.random.split(key_steps, horizon))
            (_, _, memory), reward = jax.lax.scan(step, start, turns)
            return memory, reward.sum()

        memory = strategy.start(num_states, num_actions, parameter)
        turns = (jnp.arange(num_episodes), jax.random.split(key, num_episodes))
        return jax.lax.scan(episode, memory, turns)[1]

    return parallel.map_tasks(one, parameter, tasks, keys, block=parallel.tasks_per_block(1))


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(random),
    "psrl": Strategy(psrl),
    "opsrl": Strategy(opsrl, (2.0, 3.0, 5.0, 10.0, 20.0), "samples"),
    "ucrl2": Strategy(ucrl2, tuple(10 ** (-k / 2) for k in range(9)), "scale of the radii"),
    "beb": Strategy(beb, tuple(10 ** (-k / 2) for k in range(1, 9)), "scale of the bonus"),
    "epsilon_greedy": Strategy(epsilon_greedy, (0.02, 0.05, 0.1, 0.2, 0.3), "ε"),
    "greedy": Strategy(greedy),
    "bayes_greedy": Strategy(bayes_greedy),
    "q_learning": Strategy(
        no_plan,
        tuple(itertools.product((0.0, 5.0, 10.0, 20.0), (0.1, 0.2, 0.4), (0.0, 0.05, 0.1))),
        "initial value, step size, ε",
        initial_values,
        update_values,
        q_learning,
    ),
}
