"""Gymnax environments as task families: a task chooses the environment's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jmeta.envs import wrappers
from jmeta.envs.wrappers import clip_actions
from jmeta.types import Array, Continuous, Discrete, Env, EnvSpec, Key, PyTree, Task, TaskFamily, TimeStep

try:
    from gymnax.environments import spaces
    from gymnax.environments.environment import Environment, EnvParams
except ModuleNotFoundError as error:
    raise ImportError("this adapter needs gymnax: pip install 'jmeta[gymnax]'") from error


def gymnax_family(
    name: str,
    env: Environment,
    *,
    sample: Callable[[Key], Task] = lambda key: (),
    params: Callable[[Task], EnvParams] | None = None,
    hold_reset: bool = False,
) -> TaskFamily:
    """A gymnax environment whose parameters depend on the task, or whose task is drawn when it is reset.

    Task: any pytree that `sample` draws; with `hold_reset` a `wrappers.HeldReset` of it.
    Reward and termination: the environment's.
    Observation: the environment's as one vector [D], a discrete one as one-hot.
    Actions: the environment's if they are discrete; else [-1, 1], clipped, stands for the range of each.
    Horizon: `max_steps_in_episode` of the parameters, the same for every task.
    Splits: none, until `family._replace(sample_heldout=...)`.

    Parameters that gymnax derives from others do not follow them: `params` must set those too. CartPole with
    a pole of varying length, for example:

        env, default = gymnax.make("CartPole-v1")
        family = gymnax_family(
            "cart-pole-length",
            env,
            sample=lambda key: jax.random.uniform(key, minval=0.25, maxval=1.0),
            params=lambda length: default.replace(length=length, polemass_length=default.masspole * length),
        )

    Some environments draw the task itself in `reset`: the goal of PointRobot and MetaMaze, the arms of the
    bandits. Each episode has a new key, so its goal would have nothing to do with the last episode's. With
    `hold_reset` the key is part of the task, and all episodes of a task start from the same draw:

        family = gymnax_family("point-robot", gymnax.make("PointRobot-misc")[0], hold_reset=True)

    Args:
      name: of the family.
      env: the environment, for instance `gymnax.make("CartPole-v1")[0]`.
      sample: draws a task; by default there is nothing to draw.
      params: the environment's parameters for a task; by default those of `env`, for every task.
      hold_reset: whether the key of `reset` is part of the task, which holds all that `reset` draws.

    Returns:
      The family.

    Raises:
      ValueError: if `env` is no gymnax environment, `params` gives no parameters of one, or its action space
        is neither Discrete nor a bounded Box.
    """
    if not isinstance(env, Environment):
        raise ValueError(f"env must be a gymnax Environment, such as gymnax.make(...)[0], got {env!r}")
    if params is None:
        default = env.default_params

        def params(task: Task) -> EnvParams:
            return default

    example = params(sample(jax.random.key(0)))
    if not isinstance(example, EnvParams):
        raise ValueError(f"params must map a task to gymnax EnvParams, got {example!r}")
    actions = env.action_space(example)
    discrete = isinstance(actions, spaces.Discrete)
    bounded = isinstance(actions, spaces.Box) and jnp.isfinite(jnp.subtract(actions.high, actions.low)).all()
    if not (discrete or bounded):
        raise ValueError(f"the action space of env must be Discrete or a bounded Box, got {actions!r}")

    def observe(obs: PyTree, task: Task) -> Array:
        space = env.observation_space(params(task))
        if isinstance(space, spaces.Discrete):
            return jax.nn.one_hot(obs, space.n)
        return jnp.concatenate([jnp.ravel(leaf).astype(float) for leaf in jax.tree.leaves(obs)])

    def reset(key: Key, task: Task) -> tuple[PyTree, TimeStep]:
        obs, state = env.reset_env(key, params(task))
        state = jax.tree.map(jnp.asarray, state)
        return state, TimeStep(observe(obs, task), jnp.zeros(()), jnp.array(False))

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        space = env.action_space(params(task))
        if isinstance(space, spaces.Box):
            action = space.low + (action.reshape(space.shape) + 1) / 2 * (space.high - space.low)
        # `step` would start the next episode at the end of this one.
        obs, state, reward, terminated, _ = env.step_env(key, state, action, params(task))
        reward, terminated = jnp.asarray(reward, float), jnp.asarray(terminated, bool)
        return state, TimeStep(observe(obs, task), reward, terminated)

    start = jax.eval_shape(lambda key: reset(key, sample(key))[1], jax.random.key(0))
    spec = EnvSpec(
        start.obs.shape[0],
        Discrete(actions.n) if discrete else Continuous(math.prod(actions.shape)),
        horizon=int(example.max_steps_in_episode),
    )
    made = Env(reset, step, spec)
    family = TaskFamily(name, made if discrete else clip_actions(made), sample, sample)
    return wrappers.hold_reset(family) if hold_reset else family
