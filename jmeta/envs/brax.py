"""Brax robots as environments whose task is an argument. The only module that imports brax.

Brax is imported when an environment is made, not when this module is.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.checks import at_least, one_of
from jmeta.envs.batch_last import batch_last
from jmeta.envs.wrappers import clip_actions
from jmeta.kernels import one_kernel
from jmeta.types import Array, Continuous, Env, EnvSpec, Key, PyTree, Task, TimeStep

BACKENDS = ("spring", "generalized", "positional", "mjx")

# Coordinates that brax leaves out of the observation: the position along the ground.
_GROUND_COORDINATES = {"halfcheetah": 1, "hopper": 1, "walker2d": 1, "ant": 2, "humanoid": 2}


def make(
    name: str,
    *,
    backend: str,
    horizon: int,
    reward: Callable[[Any, Array, Task], Array],
    apply_task: Callable[[Any, Task], Any] | None = None,
    observe_position: bool = False,
    velocity_scale: float = 0.1,
    **options: Any,
) -> Env:
    """Makes a brax robot with a task-dependent reward and, if asked, task-dependent physics.

    Actions are clipped to [-1, 1] before the physics and the reward see them. The observation is brax's own
    with the joint velocities multiplied by `velocity_scale`, since they are some ten times larger than the
    angles. An episode never resets itself. The environment's state is brax's pipeline state. `reward` and
    `apply_task` close over no array that is traced: whatever varies is in the task.

    Args:
      name: a robot: halfcheetah, hopper, walker2d, ant or humanoid.
      backend: the physics: spring, generalized, positional or mjx.
      horizon: steps in an episode; reaching it does not terminate.
      reward: `(state, action [A], task) -> []`, where `state` is the `brax.envs.State` after the step; its
        `metrics` and `reward` are brax's own, for instance `metrics["x_velocity"]` in m/s.
      apply_task: `(system, task) -> system` writes the task into the brax `System`; None leaves it alone.
      observe_position: whether the observation begins with the position along the ground (m).
      velocity_scale: factor of the joint velocities in the observation.
      **options: further arguments of the brax environment.

    Returns:
      The environment; `terminated` is brax's `done`.

    Raises:
      ValueError: if the name, backend or horizon is not one of those allowed.
    """
    one_of(_GROUND_COORDINATES, name=name)
    one_of(BACKENDS, backend=backend)
    at_least(1, horizon=horizon)

    envs = _import_brax_envs()
    with _quiet(), _quiet_mujoco():
        base = envs.get_environment(
            name, backend=backend, exclude_current_positions_from_observation=not observe_position, **options
        )
    num_positions = base.sys.q_size() - (0 if observe_position else _GROUND_COORDINATES[name])
    velocities = slice(num_positions, num_positions + base.sys.qd_size())

    def for_task(task: Task) -> Any:
        if apply_task is None:
            return base
        env = copy.copy(base)
        env.sys = apply_task(base.sys, task)
        return env

    def observe(obs: Array) -> Array:
        factors = np.ones(obs.shape, obs.dtype)
        factors[velocities] = velocity_scale
        return obs * factors

    def reset(key: Key, task: Task) -> tuple[PyTree, TimeStep]:
        with _quiet():
            state = for_task(task).reset(key)
        return state.pipeline_state, TimeStep(observe(state.obs), jnp.zeros(()), jnp.array(False))

    def advance(state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        # Brax updates `metrics` in place: each step gets a dictionary of its own.
        before = envs.State(state, obs=None, reward=jnp.zeros(()), done=jnp.zeros(()), metrics={})
        with _quiet():
            after = for_task(task).step(before, action)
        terminated = jnp.asarray(after.done, bool)
        return after.pipeline_state, TimeStep(observe(after.obs), reward(after, action, task), terminated)

    if backend in ("spring", "positional"):
        # Without a kernel, the steps of spring's physics are up to three times as fast with the batch last,
        # but those of the positional one are slower.
        how = {"otherwise": batch_last} if backend == "spring" else {}
        advance, reset = one_kernel(advance, **how), one_kernel(reset)
    else:  # loops over matrices, too much to write out
        advance, reset = jax.jit(advance), jax.jit(reset)

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        del key  # the physics is deterministic
        return advance(state, action, task)

    # Abstract evaluation: brax's `observation_size` would run a whole reset, operation by operation.
    with _quiet():
        obs = jax.eval_shape(base.reset, jax.random.key(0)).obs
    terminates = name != "halfcheetah"  # brax lets it run on, however it lies
    spec = EnvSpec(obs.shape[0], Continuous(base.action_size), horizon, terminates=terminates)
    return clip_actions(Env(reset, step, spec))


def scale_physics(
    system: Any, *, backend: str, mass: Array, damping: Array, friction: Array, gear: Array
) -> Any:
    """Multiplies the physical parameters of a planar robot where its backend reads them.

    Meant for a robot of L links, the first of which moves freely in the plane; every other link has one hinge
    with a motor (hopper, walker2d). Inertia follows mass, as it does when the density changes. `spring` and
    `positional` have no damping of hinges but `link.constraint_ang_damping`, which is scaled instead. The
    constants that MuJoCo derives from the masses (`invweight`) only soften constraints and are kept.

    Args:
      system: the brax `System`.
      backend: the physics that will read it.
      mass: factors of the links' masses and inertias [L].
      damping: factors of the hinges' damping [L-1].
      friction: factor of the friction of every surface [].
      gear: factors of the motors' strength [L-1].

    Returns:
      The changed `System`.
    """
    hinges = slice(system.qd_size() - damping.shape[0], None)
    if backend == "mjx":
        body_mass = jnp.concatenate([jnp.ones(1), mass])  # body 0 is the world
        return system.tree_replace(
            {
                "body_mass": system.body_mass * body_mass,
                "body_inertia": system.body_inertia * body_mass[:, None],
                "dof_damping": system.dof_damping.at[hinges].multiply(damping),
                "geom_friction": system.geom_friction * friction,
                "actuator_gear": system.actuator_gear * gear[:, None],
            }
        )
    link, dof = system.link, system.dof
    if backend in ("spring", "positional"):
        # These use mass**(1 - scale), a constant where the scale is 1: put the result in the mass itself.
        inertia = jnp.diagonal(link.inertia.i, axis1=1, axis2=2) ** (1 - system.spring_inertia_scale)
        changes = {
            "spring_mass_scale": 0.0,
            "spring_inertia_scale": 0.0,
            "link.inertia.mass": link.inertia.mass ** (1 - system.spring_mass_scale) * mass,
            "link.inertia.i": jax.vmap(jnp.diag)(inertia) * mass[:, None, None],
            "link.constraint_ang_damping": link.constraint_ang_damping.at[1:].multiply(damping),
        }
    else:
        changes = {
            "link.inertia.mass": link.inertia.mass * mass,
            "link.inertia.i": link.inertia.i * mass[:, None, None],
            "dof.damping": dof.damping.at[hinges].multiply(damping),
        }
    changes["geom_friction"] = system.geom_friction * friction
    changes["actuator.gear"] = system.actuator.gear * gear
    return system.tree_replace(changes)


def _import_brax_envs() -> ModuleType:
    lines = _WithoutWarpLines(sys.stdout)
    with contextlib.redirect_stdout(lines), _quiet():
        _import_mujoco()
        from brax import envs
    lines.finish()
    return envs


def _import_mujoco() -> None:
    """Imports mujoco, without what renders if that cannot be imported: nothing is rendered here.

    `MUJOCO_GL` names the library that mujoco imports for rendering, at once. It may be missing, or unknown to
    this version.
    """
    before = dict(os.environ)
    try:
        import mujoco
    except Exception:
        if "MUJOCO_GL" not in before:
            raise
        os.environ["MUJOCO_GL"] = "disable"
        try:
            import mujoco
        finally:
            os.environ.pop("PYOPENGL_PLATFORM", None)  # mujoco sets it
            os.environ.update(before)
        # Modules that the first attempt imported are known, but not as attributes of the second's `mujoco`.
        for name, module in list(sys.modules.items()):
            if name.startswith("mujoco.") and name.count(".") == 1:
                vars(mujoco).setdefault(name.partition(".")[2], module)


class _WithoutWarpLines(io.TextIOBase):
    """Passes text on to a stream, except the lines in which mujoco reports that warp is not installed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if not line.startswith(("Failed to import warp:", "Failed to import mujoco_warp:")):
                self._stream.write(line + "\n")
        return len(text)

    def finish(self) -> None:
        if self._line:
            self._stream.write(self._line)


_NOTICES = (
    "JAXopt is no longer maintained",
    "Brax System, piplines and environments are not actively being maintained",
    "Accessing `[a-z_]+` directly from `(Data|Model)` is deprecated",  # brax reads mjx by its old names
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While brax is imported, loaded and traced, silences its notices and lets it promote types and ranks."""
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", message=notice)
        yield


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """Silences mujoco's notice that `settotalmass`, which brax's models use, is deprecated."""
    import mujoco

    previous = mujoco.get_mju_user_warning()

    def on_warning(message: str) -> None:
        if message.startswith("compiler attribute 'settotalmass' is deprecated"):
            return
        if previous is not None:
            previous(message)
        else:
            warnings.warn(message, stacklevel=2)

    mujoco.set_mju_user_warning(on_warning)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)
