"""Strategies for Bernoulli bandits with a uniform prior on every arm's probability.

A strategy is `choose(key, wins [A], losses [A], pull, parameter) -> scores [A]`: the arm of the highest score
is pulled, ties broken at random. Means and counts include the prior's one win and one loss, so no arm must be
tried first. `parameter` is tuned on other bandits than those it is measured on.

The published Gittins figures are of a closed-form approximation of the index; here it is computed, for the
discount 1 - 1 / T of T pulls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from benchmarks.classical import shared
from jmeta import parallel
from jmeta.types import Array, Key, PyTree, TaskFamily

Choose = Callable[[Key, Array, Array, Array, Array], Array]
Loop = tuple[PyTree, Array, Array]  # state of the environment, wins [A], losses [A]


class Strategy(NamedTuple):
    """How arms are scored."""

    choose: Choose
    candidates: tuple[float, ...] = ()  # values of the parameter to choose from; () where it has none
    meaning: str = ""  # of the parameter


def _mean(wins: Array, losses: Array) -> Array:
    return (wins + 1) / (wins + losses + 2)


def random(key: Key, wins: Array, losses: Array, pulls: Array, parameter: Array) -> Array:
    """Any arm."""
    del key, losses, pulls, parameter
    return jnp.zeros_like(wins)


def greedy(key: Key, wins: Array, losses: Array, pulls: Array, parameter: Array) -> Array:
    """The arm of the highest mean."""
    del key, pulls, parameter
    return _mean(wins, losses)


def epsilon_greedy(key: Key, wins: Array, losses: Array, pulls: Array, parameter: Array) -> Array:
    """Any arm with probability `parameter`, else the greedy one."""
    del pulls
    return jnp.where(jax.random.uniform(key) < parameter, jnp.zeros_like(wins), _mean(wins, losses))


def ucb1(key: Key, wins: Array, losses: Array, pulls: Array, parameter: Array) -> Array:
    """Mean plus `parameter` sqrt(2 log t / n) (Auer et al., 2002, with a tuned width)."""
    del key
    count = wins + losses + 2
    return _mean(wins, losses) + parameter * jnp.sqrt(2 * jnp.log(pulls + 1.0) / count)


def thompson(key: Key, wins: Array, losses: Array, pulls: Array, parameter: Array) -> Array:
    """A sample of the posterior (Thompson, 1933)."""
    del pulls, parameter
    return shared.beta(key, wins + 1, losses + 1)


def optimistic_thompson(key: Key, wins: Array, losses: Array, pulls: Array, parameter: Array) -> Array:
    """The most probable, for all arms at once, of `parameter` samples of the posterior.

    That is what the published figures are of (the scripts of Duan et al., 2016, with up to 20 samples). The
    variant of May et al. (2012), whom they cite, is the larger of sample and mean; it gives less.
    """

    def better(index: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        sample = thompson(jax.random.fold_in(key, index), wins, losses, pulls, parameter)
        log_density = (special.xlogy(wins, sample) + special.xlog1py(losses, -sample)).sum()
        more_probable = log_density >= best[0]
        return jnp.maximum(log_density, best[0]), jnp.where(more_probable, sample, best[1])

    start = (jnp.array(-jnp.inf), jnp.zeros_like(wins))
    return jax.lax.fori_loop(0, jnp.asarray(parameter, int), better, start)[1]


def gittins(num_pulls: int, discount: float) -> Choose:
    """The Gittins index of a discounted bandit, for up to `num_pulls` pulls (Gittins, 1979)."""
    table = jnp.asarray(gittins_indices(num_pulls, discount))

    def choose(key: Key, wins: Array, losses: Array, pulls: Array, parameter: Array) -> Array:
        del key, pulls, parameter
        return table[wins.astype(int), losses.astype(int)]

    return choose


@functools.cache
def gittins_indices(num_pulls: int, discount: float, resolution: int = 400) -> np.ndarray:
    """Indices [wins, losses] for up to `num_pulls` pulls, by calibration against a certain payment.

    An arm of unknown probability is worth λ if one is indifferent between pulling it on and being paid λ for
    ever (Gittins, Glazebrook and Weber, 2011, section 8.4). The value of the best choice is found by backward
    induction for a grid of λ; beyond `num_pulls` + 200 pulls the arm's probability is taken for known.
    """
    grid = (np.arange(resolution) + 0.5) / resolution
    retire = grid / (1 - discount)
    depth = num_pulls + 200
    wins = np.arange(depth + 1)
    known = (wins + 1) / (depth + 2)
    value = np.maximum(retire[None], known[:, None] / (1 - discount))  # [wins, λ] at wins + losses = depth
    indices = np.zeros((num_pulls + 1, num_pulls + 1), np.float32)
    for pulls in range(depth - 1, -1, -1):
        wins = np.arange(pulls + 1)
        mean = ((wins + 1) / (pulls + 2))[:, None]
        pull = mean * (1 + discount * value[1:]) + (1 - mean) * discount * value[:-1]
        value = np.maximum(retire[None], pull)
        if pulls <= num_pulls:
            # The advantage of pulling falls with λ: where it crosses zero is the index.
            crossing = (pull > retire[None]).sum(1)
            indices[wins, pulls - wins] = crossing / resolution
    return indices


@functools.partial(jax.jit, static_argnames=("strategy", "family"))
def rewards(strategy: Strategy, family: TaskFamily, parameter: Array, tasks: Array, keys: Key) -> Array:
    """Rewards [tasks, T] of a strategy's pulls on bandits, over the devices of the mesh that is set.

    Args:
      strategy: the strategy.
      family: of Bernoulli bandits.
      parameter: [] of the strategy.
      tasks: [tasks, ...] of the family.
      keys: [tasks] consumed.

    Raises:
      ValueError: if an episode may end before the horizon.
    """
    env = family.env
    shared.check_never_ends(env.spec)

    def one(parameter: Array, task: Array, key: Key) -> Array:
        def pull(loop: Loop, step: tuple[Array, Key]) -> tuple[Loop, Array]:
            state, wins, losses = loop
            number, key = step
            key_choose, key_tie, key_step = jax.random.split(key, 3)
            arm = shared.best(key_tie, strategy.choose(key_choose, wins, losses, number, parameter))
            state, timestep = env.step(key_step, state, arm, task)
            reward = timestep.reward
            return (state, wins.at[arm].add(reward), losses.at[arm].add(1 - reward)), reward

        key_reset, key_pulls = jax.random.split(key)
        nothing = jnp.zeros(env.spec.action.num)
        start = (env.reset(key_reset, task)[0], nothing, nothing)
        numbers = jnp.arange(1, env.spec.horizon + 1)
        return jax.lax.scan(pull, start, (numbers, jax.random.split(key_pulls, len(numbers))))[1]

    return parallel.map_tasks(one, parameter, tasks, keys, block=parallel.tasks_per_block(1))


def total_reward(strategy: Strategy, family: TaskFamily, parameter: Array, tasks: Array, keys: Key) -> Array:
    """Total reward [tasks] of a strategy; arguments and errors are those of `rewards`."""
    return rewards(strategy, family, parameter, tasks, keys).sum(1)


def strategies(num_pulls: int) -> dict[str, Strategy]:
    """Every strategy by the name of its published column."""
    return {
        "random": Strategy(random),
        "gittins": Strategy(gittins(num_pulls, 1 - 1 / num_pulls)),
        "thompson": Strategy(thompson),
        "optimistic_thompson": Strategy(optimistic_thompson, (5.0, 7.0, 10.0, 20.0), "samples"),
        "ucb1": Strategy(ucb1, tuple(np.round(np.arange(0.05, 1.05, 0.05), 2)), "width"),
        "epsilon_greedy": Strategy(epsilon_greedy, (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2), "ε"),
        "greedy": Strategy(greedy),
    }
