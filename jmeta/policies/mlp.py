"""A memoryless policy: a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jmeta import distributions
from jmeta.checks import at_least, boolean, finite, one_of, sizes, without_effect
from jmeta.policies import normalized
from jmeta.policies.layers import apply_layers, init_layers
from jmeta.types import (
    Array,
    Continuous,
    Discrete,
    EnvSpec,
    Key,
    Params,
    Policy,
    PolicyInput,
    PolicyOutput,
    PyTree,
)

_DEFAULT_STD = {"init_log_std": -0.5, "min_log_std": -3.0}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "swish": jax.nn.swish,
}


def mlp(
    spec: EnvSpec,
    *,
    hidden: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    init_log_std: float = _DEFAULT_STD["init_log_std"],
    min_log_std: float = _DEFAULT_STD["min_log_std"],
    critic: bool = False,
    normalize_observations: bool = False,
    context_size: int = 0,
) -> Policy:
    """A perceptron on the observation alone: normal for continuous actions, categorical for discrete ones.

    Orthogonal initialisation (gain sqrt(2), 0.01 for the last policy layer, 1 for the last critic layer) and
    a log standard deviation that does not depend on the state, as is common for PPO (Andrychowicz et al.
    2021).

    Args:
      spec: the environment's.
      hidden: sizes of the hidden layers; none for a linear policy.
      activation: "tanh", "relu", "elu" or "swish".
      init_log_std: initial log standard deviation; continuous actions only.
      min_log_std: lower bound on it. It holds for every set of parameters, the adapted ones too; below it
        the gradient of the log standard deviation is 0.
      critic: whether to estimate values, by a second perceptron of the same sizes; else they are 0.
      normalize_observations: whether to keep and use observation statistics, `policies.normalized`.
      context_size: length of a vector of parameters, initially 0, that is an input beside the observation:
        for methods that adapt it alone. The critic reads it too, and does not move it.

    Returns:
      The policy; its carry is empty and its params are a dict of "policy", "log_std" (continuous actions
      only), "critic" and "context" (where there is one). Its parts are "head", the last layers, and
      "context".

    Raises:
      ValueError: an argument is out of its range.
    """
    hidden = sizes(hidden=hidden)
    one_of(ACTIVATIONS, activation=activation)
    finite(init_log_std=init_log_std, min_log_std=min_log_std)
    traced = isinstance(init_log_std, jax.core.Tracer) or isinstance(min_log_std, jax.core.Tracer)
    if not traced and init_log_std < min_log_std:
        raise ValueError(f"init_log_std must be at least min_log_std={min_log_std}, got {init_log_std}")
    boolean(critic=critic, normalize_observations=normalize_observations)
    at_least(0, context_size=context_size)
    if isinstance(spec.action, Discrete):
        because = "the probabilities of discrete actions have no standard deviation"
        without_effect(because, _DEFAULT_STD, init_log_std=init_log_std, min_log_std=min_log_std)
    continuous = isinstance(spec.action, Continuous)
    num_outputs = spec.action.size if isinstance(spec.action, Continuous) else spec.action.num
    nonlinearity = ACTIVATIONS[activation]
    num_inputs = spec.obs_size + context_size

    def init(key: Key) -> Params:
        key_policy, key_critic = jax.random.split(key)
        params: dict[str, PyTree] = {
            "policy": init_layers(key_policy, (num_inputs, *hidden, num_outputs), last_gain=0.01)
        }
        if continuous:
            params["log_std"] = jnp.full((num_outputs,), init_log_std, dtype=float)
        if critic:
            params["critic"] = init_layers(key_critic, (num_inputs, *hidden, 1), last_gain=1.0)
        if context_size:
            params["context"] = jnp.zeros(context_size, float)
        return params

    def apply(params: Params, carry: PyTree, inputs: PolicyInput) -> tuple[PyTree, PolicyOutput]:
        """One step, or a leading [T] of them: nothing here depends on time."""
        obs = seen = inputs.obs
        if context_size:
            context = jnp.broadcast_to(params["context"], (*obs.shape[:-1], context_size))
            obs = jnp.concatenate([inputs.obs, context], axis=-1)
            seen = jnp.concatenate([inputs.obs, jax.lax.stop_gradient(context)], axis=-1)
        output: PyTree = apply_layers(params["policy"], obs, nonlinearity)
        if continuous:
            log_std = jnp.maximum(params["log_std"], min_log_std)
            output = distributions.NormalParams(output, jnp.broadcast_to(log_std, output.shape))
        if critic:
            value = apply_layers(params["critic"], seen, nonlinearity)[..., 0]
        else:
            value = jnp.zeros(obs.shape[:-1], obs.dtype)
        return carry, PolicyOutput(output, value)

    def head(params: Params) -> PyTree:
        nowhere = jax.tree.map(lambda _: False, params)
        networks = {name: nowhere[name] for name in ("policy", "critic") if name in params}
        last = {name: jax.tree.map(lambda _: True, layers[-1]) for name, layers in networks.items()}
        return nowhere | {name: (*networks[name][:-1], last[name]) for name in networks}

    def context(params: Params) -> PyTree:
        return jax.tree.map(lambda _: False, params) | {"context": True}

    policy = Policy(
        init=init,
        initial_carry=lambda: (),
        step=apply,
        unroll=apply,
        distribution=distributions.for_action(spec.action),
        has_critic=critic,
        parts={"head": head} | ({"context": context} if context_size else {}),
    )
    return normalized.normalize_observations(policy, spec) if normalize_observations else policy
