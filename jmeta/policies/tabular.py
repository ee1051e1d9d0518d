"""A policy of action values: a table where observations are one-hot, else linear in them."""

from __future__ import annotations

import jax.numpy as jnp

from jmeta import distributions
from jmeta.checks import finite, in_interval
from jmeta.types import Discrete, EnvSpec, Key, Params, Policy, PolicyInput, PolicyOutput, PyTree


def tabular(spec: EnvSpec, *, epsilon: float = 0.1, init_value: float = 0.0) -> Policy:
    """Acts ε-greedily by Q-values, linear in the observation; ties are broken at random.

    Args:
      spec: the environment's; its actions are discrete.
      epsilon: probability of a uniformly random action, in (0, 1].
      init_value: initial weights. For one-hot observations these are the values; optimistic ones explore.

    Returns:
      The policy. Its params are weights [D, A], its value is the greatest Q-value. Its probabilities are
      piecewise constant, so it cannot learn by policy gradients.

    Raises:
      ValueError: the actions are continuous, or `epsilon` is out of its range.
    """
    if not isinstance(spec.action, Discrete):
        raise ValueError("tabular needs discrete actions, got continuous ones")
    in_interval("(0, 1]", epsilon=epsilon)
    finite(init_value=init_value)
    num_actions = spec.action.num

    def init(key: Key) -> Params:
        del key
        return jnp.full((spec.obs_size, num_actions), init_value, float)

    def apply(params: Params, carry: PyTree, inputs: PolicyInput) -> tuple[PyTree, PolicyOutput]:
        """One step, or a leading [T] of them: nothing here depends on time."""
        values = inputs.obs @ params
        best = values.max(-1)
        greedy = (values == best[..., None]).astype(values.dtype)
        greedy /= greedy.sum(-1, keepdims=True)
        return carry, PolicyOutput(jnp.log((1 - epsilon) * greedy + epsilon / num_actions), best)

    return Policy(
        init,
        initial_carry=lambda: (),
        step=apply,
        unroll=apply,
        distribution=distributions.Categorical,
        has_critic=True,
        differentiable=False,
    )
