"""Tasks of any family as Gymnasium environments: a batch of them, or one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.conformance import conform
from jmeta.types import Array, Continuous, Env, Key, PyTree, Task, TaskFamily

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ModuleNotFoundError as error:
    raise ImportError("this adapter needs Gymnasium: pip install 'jmeta[gymnasium]'") from error


class TaskVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of tasks of one family, each a sub-environment, stepped together in one compiled call.

    Observations are unbounded float32 [N, D], rewards float64 [N]. Continuous actions have the bounds
    that the environment's specification states; the environment itself clips what is beyond them, if it
    does. An episode is truncated at the horizon unless it terminates there. The step after its end starts
    the next one (`AutoresetMode.NEXT_STEP`): the action is ignored, the reward is 0.

    `reset(seed=s)` gives sub-environment i the key `jax.random.key(s + i)`, from which everything that is
    random follows; without a seed, `reset` goes on with the keys that there are. It takes no options.
    Batches of equal size share compiled programs: new tasks do not recompile.

    Args:
      family: the family.
      tasks: its tasks, leading axis [N].

    Raises:
      ValueError: if the tasks are not of the family's shapes, or have no leading axis.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, family: TaskFamily, tasks: Task) -> None:
        family = conform(family)
        self.num_envs = _num_tasks(family, tasks)
        spec = family.env.spec
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (spec.obs_size,), np.float32)
        self.single_action_space = (
            spaces.Box(spec.action.low, spec.action.high, (spec.action.size,), np.float32)
            if isinstance(spec.action, Continuous)
            else spaces.Discrete(spec.action.num)
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._env, self._tasks = family.env, tasks
        self._states: _State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in every sub-environment.

        Returns:
          Observations [N, D] and an empty `info`.

        Raises:
          ValueError: if there are options.
        """
        if options:
            raise ValueError(f"options must be None or empty, got {options}")
        super().reset(seed=seed)
        if seed is None and self._states is None:
            seed = self.np_random_seed  # Gymnasium's choice, with which a user could repeat the run
        if seed is not None:
            seeds = [(seed + i) % 2**32 for i in range(self.num_envs)]
            keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
        elif self._states is not None:
            keys = self._states.key
        self._states, shown = _reset_all(self._env, keys, self._tasks)
        return np.array(shown.obs, np.float32), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every sub-environment, or resets it if its episode is over.

        Args:
          actions: [N, A] float, or [N] integers.

        Returns:
          Observations [N, D], rewards [N], terminated [N], truncated [N] and an empty `info`.

        Raises:
          ResetNeeded: before the first `reset`.
          ValueError: if the actions have another shape, or discrete ones are not in the space.
        """
        if self._states is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        discrete = isinstance(self.single_action_space, spaces.Discrete)
        integers = np.issubdtype(actions.dtype, np.integer)
        if discrete and not (integers and self.action_space.contains(actions)):
            raise ValueError(f"actions must be in {self.single_action_space}, got {actions}")
        actions = actions.astype(np.int32 if discrete else np.float32)
        self._states, shown = _step_all(self._env, self._states, actions, self._tasks)
        # Copies: what JAX shows cannot be written to.
        return (
            np.array(shown.obs, np.float32),
            np.array(shown.reward, np.float64),
            np.array(shown.terminated),
            np.array(shown.truncated),
            {},
        )


class TaskEnv(gymnasium.Env[np.ndarray, Any]):
    """One task as an environment: a `TaskVectorEnv` of it alone, without its axis.

    Args:
      family: the family.
      task: one task.

    Raises:
      ValueError: if the task is not of the family's shapes.
    """

    metadata = {"render_modes": []}

    def __init__(self, family: TaskFamily, task: Task) -> None:
        self._batch = TaskVectorEnv(family, jax.tree.map(lambda x: jnp.asarray(x)[None], task))
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; the arguments are those of `TaskVectorEnv.reset`."""
        super().reset(seed=seed)
        obs, info = self._batch.reset(seed=seed, options=options)
        return obs[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Steps with an action [A] or an integer; the errors are those of `TaskVectorEnv.step`."""
        obs, reward, terminated, truncated, info = self._batch.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


class _State(NamedTuple):
    """A sub-environment between two calls."""

    key: Key  # of what is to come
    env: PyTree
    time: Array  # [] int32 steps taken in this episode
    done: Array  # [] bool: it is over


class _Shown(NamedTuple):
    """What a call shows of a sub-environment."""

    obs: Array  # [D]
    reward: Array  # []
    terminated: Array  # [] bool
    truncated: Array  # [] bool


def _reset(env: Env, key: Key, task: Task) -> tuple[_State, _Shown]:
    key, key_reset = jax.random.split(key)
    env_state, start = env.reset(key_reset, task)
    false = jnp.array(False)
    state = _State(key, env_state, jnp.zeros((), jnp.int32), false)
    return state, _Shown(start.obs, jnp.zeros_like(start.reward), false, false)


def _step(env: Env, state: _State, action: Array, task: Task) -> tuple[_State, _Shown]:
    key, key_step = jax.random.split(state.key)
    env_state, timestep = env.step(key_step, state.env, action, task)
    time = state.time + 1
    terminated = timestep.terminated & env.spec.terminates
    truncated = ~terminated & (time == env.spec.horizon)
    shown = _Shown(timestep.obs, timestep.reward, terminated, truncated)
    return _State(key, env_state, time, terminated | truncated), shown


@functools.partial(jax.jit, static_argnums=0)
def _reset_all(env: Env, keys: Key, tasks: Task) -> tuple[_State, _Shown]:
    return jax.vmap(functools.partial(_reset, env))(keys, tasks)


@functools.partial(jax.jit, static_argnums=0)
def _step_all(env: Env, states: _State, actions: Array, tasks: Task) -> tuple[_State, _Shown]:
    def choose(done: Array, fresh: PyTree, stepped: PyTree) -> PyTree:
        return jax.tree.map(lambda f, s: jnp.where(done, f, s), fresh, stepped)

    stepped = jax.vmap(functools.partial(_step, env))(states, actions, tasks)
    # Outside the vmap, so that a reset costs nothing while every episode goes on.
    return jax.lax.cond(
        states.done.any(),
        lambda: jax.vmap(choose)(states.done, _reset_all(env, states.key, tasks), stepped),
        lambda: stepped,
    )


def _num_tasks(family: TaskFamily, tasks: Task) -> int:
    """N, of tasks [N]."""
    task = jax.eval_shape(family.sample, jax.random.key(0))
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tasks)]
    num = shapes[0][0] if shapes and shapes[0] else 0
    expected = [(num, *leaf.shape) for leaf in jax.tree.leaves(task)]
    structure: Any = jax.tree.structure(tasks)
    if num == 0 or structure != jax.tree.structure(task) or shapes != expected:
        allowed = jax.tree.map(lambda leaf: ("N", *leaf.shape), task)
        got = jax.tree.map(np.shape, tasks)
        raise ValueError(f"tasks of {family.name} must have the shapes {allowed} with N > 0, got {got}")
    return num
