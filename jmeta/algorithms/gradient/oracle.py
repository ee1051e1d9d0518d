"""The oracle, a reference for meta-learning: one policy that is told the task."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmeta.algorithms.gradient import outer
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import (
    Adapted,
    AdaptInfo,
    Array,
    InnerLoop,
    Key,
    MetaAlgorithm,
    Params,
    Policy,
    PyTree,
    Task,
    TaskFamily,
)


class Told(NamedTuple):
    """What stands for the data of an adaptation: no episodes, and the task as numbers."""

    episodes: PyTree  # [0, ...]
    context: Array  # [size of a task]

    @property
    def reward(self) -> Array:
        """Of no episodes."""
        return self.episodes.reward

    @property
    def mask(self) -> Array:
        """Of no episodes."""
        return self.episodes.mask


@hyperparameters_of(outer.assemble, without=("first_order", "differentiation", "inner_optimizer"))
def oracle(
    family: TaskFamily, policy: Policy, *, num_inner_steps: int, num_episodes: int, **others: Any
) -> MetaAlgorithm:
    """Trains one policy on all tasks that reads the task beside the observation: nobody can know more.

    The upper line of Finn et al. (2017). It needs a policy with a context as long as a task has numbers,
    `mlp(..., context_size=2)` where a task is a goal in the plane; a task's numbers are written there instead
    of adapting. An update samples as many episodes as MAML's does.

    The hyperparameters are `maml`'s; inner ones have no effect, except that steps count episodes.

    Raises:
      ValueError: an argument is out of its range, or the policy has no context of that length.
    """
    learning = functools.partial(outer.assemble, family, policy, first_order=True, **others)
    measured = learning(num_inner_steps=num_inner_steps, num_episodes=num_episodes)
    parts = learning(num_inner_steps=0, num_episodes=num_episodes * (num_inner_steps + 1))
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(family.sample, jax.random.key(0))))
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    contexts = _contexts(policy, shapes) if "context" in policy.parts else []
    if [context.shape for context in contexts] != [(size,)]:
        found = ", ".join(str(context.shape[0]) for context in contexts) or "none"
        raise ValueError(
            f"the policy must have a context of {size} numbers, as many as a task of {family.name} has, such"
            f" as mlp(..., context_size={size}), got {found}"
        )

    def tell(params: Params, context: Array) -> Params:
        is_context = policy.parts["context"](params)
        return jax.tree.map(lambda leaf, told: context if told else leaf, params, is_context)

    def adapt(
        params: Params,
        task: Task,
        key: Key,
        num_steps: int | None = None,
        step_scale: float | Array | None = None,
    ) -> tuple[Adapted, AdaptInfo]:
        del step_scale  # the episodes that others learn from are played, and nothing is learned from them
        num_steps = num_inner_steps if num_steps is None else num_steps
        return measured.inner.adapt(tell(params, _numbers(task)), task, key, num_steps, 0.0)

    def training_adapt(
        params: Params, task: Task, key: Key, num_steps: int, step_scale: float | Array | None = None
    ) -> tuple[Adapted, AdaptInfo]:
        context = _numbers(task)
        adapted, info = parts.inner.adapt(tell(params, context), task, key, num_steps, step_scale)
        return adapted, info._replace(data=Told(info.data, context))

    def path(params: Params, data: Told) -> tuple[Params, Params]:
        return parts.inner.path(tell(params, data.context), data.episodes)

    def replay(params: Params, data: Told) -> Params:
        return path(params, data)[0]

    def replay_jvp(params: Params, data: Told, tangent: Params) -> tuple[Params, Params]:
        told, tangent = tell(params, data.context), tell(tangent, jnp.zeros(size))
        return parts.inner.replay_jvp(told, data.episodes, tangent)

    inner = InnerLoop(training_adapt, replay, path, replay_jvp)
    return outer.algorithm(parts._replace(inner=inner))._replace(adapt=adapt)


def _contexts(policy: Policy, params: Params) -> list[Any]:
    """The leaves of the parameters that are the context."""
    leaves, is_context = jax.tree.leaves(params), jax.tree.leaves(policy.parts["context"](params))
    return [leaf for leaf, told in zip(leaves, is_context, strict=True) if told]


def _numbers(task: Task) -> Array:
    """A task's numbers in a row."""
    return jnp.concatenate([jnp.ravel(leaf).astype(float) for leaf in jax.tree.leaves(task)])
