"""A policy that carries more than it acts on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jmeta.types import Array, Key, Params, Policy, PolicyInput, PolicyOutput, PyTree


class ExtendedParams(NamedTuple):
    """Parameters of an extended policy."""

    policy: Params
    extra: PyTree


def extended(policy: Policy, extra: Callable[[Params], PyTree]) -> Policy:
    """Lets meta-parameters that shape adaptation (step sizes, discounts) travel with the policy's own.

    Args:
      policy: the policy, which acts on its own parameters alone.
      extra: the policy's initial parameters -> initial values of what else is learned.

    Returns:
      A policy whose params are `ExtendedParams`.
    """

    def init(key: Key) -> ExtendedParams:
        params = policy.init(key)
        return ExtendedParams(params, extra(params))

    def step(params: ExtendedParams, carry: PyTree, inputs: PolicyInput) -> tuple[PyTree, PolicyOutput]:
        return policy.step(params.policy, carry, inputs)

    def unroll(params: ExtendedParams, carry: PyTree, inputs: PolicyInput) -> tuple[PyTree, PolicyOutput]:
        return policy.unroll(params.policy, carry, inputs)

    def observe(params: ExtendedParams, obs: Array, mask: Array) -> ExtendedParams:
        return params._replace(policy=policy.observe(params.policy, obs, mask))

    return policy._replace(init=init, step=step, unroll=unroll, observe=observe, parts={})
