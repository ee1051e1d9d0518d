"""Observation normalisation around any policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.types import Array, EnvSpec, Key, Params, Policy, PolicyInput, PolicyOutput, PyTree

_CLIP = 10.0
_LARGEST = 1e12  # of an observation that is counted: sums of the squares of many are finite in float32
_EPSILON = 1e-8  # added to the variance


class ObservationStatistics(NamedTuple):
    """Moments of the observations seen so far."""

    num: Array  # [] float, observations seen
    mean: Array  # [D]
    sum_of_squares: Array  # [D] of the deviations from the mean


class NormalizedParams(NamedTuple):
    """Parameters of a normalising policy. Gradients with respect to `statistics` are 0."""

    policy: Params
    statistics: ObservationStatistics


def normalize_observations(policy: Policy, spec: EnvSpec) -> Policy:
    """Gives `policy` observations of mean 0 and variance 1, clipped to [-10, 10].

    The statistics are part of the parameters, change in `observe` alone, and pass no gradient: adaptation and
    the outer optimiser leave them as they are. Before the first `observe` the policy sees raw observations.

    Args:
      policy: the policy to wrap.
      spec: the environment's.

    Returns:
      A policy whose params are `NormalizedParams`.
    """

    def init(key: Key) -> NormalizedParams:
        zeros = jnp.zeros((spec.obs_size,), float)
        return NormalizedParams(policy.init(key), ObservationStatistics(jnp.zeros((), float), zeros, zeros))

    def step(params: NormalizedParams, carry: PyTree, inputs: PolicyInput) -> tuple[PyTree, PolicyOutput]:
        return policy.step(params.policy, carry, _normalized(params.statistics, inputs))

    def unroll(params: NormalizedParams, carry: PyTree, inputs: PolicyInput) -> tuple[PyTree, PolicyOutput]:
        return policy.unroll(params.policy, carry, _normalized(params.statistics, inputs))

    def observe(params: NormalizedParams, obs: Array, mask: Array) -> NormalizedParams:
        return params._replace(statistics=_merge(params.statistics, obs, mask))

    def part(of_policy: Callable[[Params], PyTree]) -> Callable[[NormalizedParams], PyTree]:
        return lambda params: NormalizedParams(
            of_policy(params.policy), jax.tree.map(lambda _: False, params.statistics)
        )

    def statistics(params: NormalizedParams) -> NormalizedParams:
        nowhere: NormalizedParams = jax.tree.map(lambda _: False, params)
        return nowhere._replace(statistics=jax.tree.map(lambda _: True, params.statistics))

    parts = {name: part(of_policy) for name, of_policy in policy.parts.items()} | {"statistics": statistics}
    return policy._replace(init=init, step=step, unroll=unroll, observe=observe, parts=parts)


def _normalized(statistics: ObservationStatistics, inputs: PolicyInput) -> PolicyInput:
    num, mean, sum_of_squares = jax.lax.stop_gradient(statistics)
    std = jnp.sqrt(sum_of_squares / jnp.maximum(num, 1) + _EPSILON)
    mean, std = (jnp.broadcast_to(x, inputs.obs.shape) for x in (mean, std))
    obs = jnp.clip((inputs.obs - mean) / std, -_CLIP, _CLIP)
    return inputs._replace(obs=jnp.where(num > 0, obs, inputs.obs))


def _merge(statistics: ObservationStatistics, obs: Array, mask: Array) -> ObservationStatistics:
    """Moments of the old and the new observations together (Chan et al. 1983, eqs. 2.1)."""
    num, mean, sum_of_squares = statistics
    obs = obs.reshape(-1, obs.shape[-1])
    # One diverged adaptation may see NaN, or numbers whose squares overflow. They would stay forever.
    valid = ((mask.reshape(-1) > 0) & (jnp.abs(obs) < _LARGEST).all(-1))[:, None]
    new_num = jnp.sum(valid, dtype=num.dtype)
    new_mean = jnp.sum(jnp.where(valid, obs, 0), axis=0) / jnp.maximum(new_num, 1)
    new_sum_of_squares = jnp.sum(jnp.where(valid, jnp.square(obs - new_mean[None]), 0), axis=0)
    delta = new_mean - mean
    total = num + new_num
    new_share = new_num / jnp.maximum(total, 1)
    return ObservationStatistics(
        num=total,
        mean=mean + delta * new_share,
        sum_of_squares=sum_of_squares + new_sum_of_squares + jnp.square(delta) * num * new_share,
    )
