"""MuJoCo Playground environments as task families: a task changes the MuJoCo model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmeta.checks import at_least
from jmeta.envs.wrappers import clip_actions
from jmeta.types import Array, Continuous, Env, EnvSpec, Key, PyTree, Task, TaskFamily, TimeStep


def playground_family(
    name: str,
    env: Any,
    *,
    horizon: int,
    sample: Callable[[Key], Task],
    model: Callable[[Any, Task], Any],
) -> TaskFamily:
    """A MuJoCo Playground environment whose model depends on the task.

    Task: any pytree that `sample` draws. Reward and termination: the environment's.
    Observation: the environment's vector; of several, that called "state". Actions are clipped to [-1, 1].
    Splits: none, until `family._replace(sample_heldout=...)`.

    The environment's `reset` and `step` must read the model as Playground's own randomisation of domains
    expects, from `env.mjx_model`. A balanced pole with a mass of 0.1 to 1 kg, on any platform:

        env = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})

        def model(default, mass):
            factor = jnp.ones(3).at[2].set(mass / default.body_mass[2])  # of the world, the cart, the pole
            inertia = default.body_inertia * factor[:, None]
            return default.replace(body_mass=default.body_mass * factor, body_inertia=inertia)

        family = playground_family(
            "cart-pole-mass",
            env,
            horizon=1000,
            sample=lambda key: jax.random.uniform(key, minval=0.1, maxval=1.0),
            model=model,
        )

    If the environment draws a goal or a command in `reset`, which adaptation is to find out, make the key of
    `reset` a part of the task: `jmeta.envs.hold_reset(playground_family(...))`.

    Args:
      name: of the family.
      env: the environment; while one of its functions is traced, nothing else may use it.
      horizon: steps in an episode; reaching it does not terminate.
      sample: draws a task.
      model: `(default mjx.Model, task) -> mjx.Model`.

    Returns:
      The family.

    Raises:
      ValueError: if `env` is no Playground environment, its observation has no vector, or the horizon is not
        positive.
    """
    at_least(1, horizon=horizon)
    if not hasattr(env, "mjx_model"):
        raise ValueError(f"env must be a Playground environment, such as registry.load(...), got {env!r}")
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    vector = obs.get("state") if isinstance(obs, Mapping) else obs
    if vector is None or vector.ndim != 1:
        raise ValueError(f"the observation of env must be a vector, or have one called 'state', got {obs}")

    @contextlib.contextmanager
    def physics_of(task: Task) -> Iterator[None]:
        # On `env` itself: methods that its constructor has bound would not see the model of a copy.
        default = env.mjx_model
        env._mjx_model = model(default, task)
        try:
            yield
        finally:
            env._mjx_model = default

    def observe(obs: PyTree) -> Array:
        return obs["state"] if isinstance(obs, Mapping) else obs

    def reset(key: Key, task: Task) -> tuple[PyTree, TimeStep]:
        with physics_of(task):
            state = env.reset(key)
        return state, TimeStep(observe(state.obs), jnp.zeros(()), jnp.array(False))

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        del key  # the environment's state has one
        # Playground updates these two in place: each step gets dictionaries of its own.
        before = state.replace(metrics=dict(state.metrics), info=dict(state.info))
        with physics_of(task):
            after = env.step(before, action)
        return after, TimeStep(observe(after.obs), after.reward, jnp.asarray(after.done, bool))

    spec = EnvSpec(vector.shape[0], Continuous(env.action_size), horizon)
    return TaskFamily(name, clip_actions(Env(reset, step, spec)), sample, sample)
