"""Brax behind jmeta's interface: silence, validation, actions and observations."""

import io
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmeta
from jmeta.envs import batch_last, brax

SILENT = """
import sys
import jmeta.tasks, jmeta.envs.brax
assert len(jmeta.tasks.REGISTRY) > 0
assert not [name for name in sys.modules if name.split(".")[0] in ("brax", "mujoco")], "brax was imported"
import jax
env = jmeta.tasks.half_cheetah_direction().env
key = jax.random.key(0)
jax.eval_shape(lambda: env.step(key, env.reset(key, 1.0)[0], jax.numpy.zeros(6), 1.0))
"""


@pytest.mark.parametrize("flags", [["-W", "error"], ["-W", "default"]])
def test_brax_is_imported_late_and_in_silence(flags, tmp_path):
    """Neither a line on either stream, nor a warning, nor MuJoCo's log file in the working directory."""
    run = subprocess.run(
        [sys.executable, *flags, "-c", SILENT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(jmeta.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_only_the_lines_about_warp_are_dropped():
    stream = io.StringIO()
    lines = brax._WithoutWarpLines(stream)
    print("Failed to import warp:", "No module named 'warp'", file=lines)
    print("something else", file=lines)
    print("Failed to import mujoco_warp:", "No module named 'warp'", file=lines)
    print("Failed to import anything", file=lines)
    print("the last", end="", file=lines)
    lines.finish()
    assert stream.getvalue() == "something else\nFailed to import anything\nthe last"


def test_other_mujoco_warnings_come_through():
    mujoco = pytest.importorskip("mujoco")
    before = mujoco.get_mju_user_warning()
    with brax._quiet_mujoco():
        handler = mujoco.get_mju_user_warning()
        handler("compiler attribute 'settotalmass' is deprecated and will be removed")
        with pytest.warns(UserWarning, match="Nan in QACC"):
            handler("Nan in QACC")
    assert mujoco.get_mju_user_warning() is before


def test_other_python_warnings_come_through():
    with brax._quiet(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "warp"}, "backend must be one of spring, generalized, positional, mjx, got 'warp'"),
        ({"name": "cat"}, "name must be one of halfcheetah, .*, got 'cat'"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
    ],
)
def test_validation(arguments, message):
    defaults = {"name": "ant", "backend": "spring", "horizon": 5, "reward": lambda state, action, task: 0.0}
    with pytest.raises(ValueError, match=message):
        brax.make(**defaults | arguments)


@pytest.fixture(scope="module")
def cheetah():
    """The environment, one jitted step and a first state; the reward is the action's sum."""
    env = brax.make(
        "halfcheetah", backend="spring", horizon=7, reward=lambda state, action, task: jnp.sum(action)
    )
    state, first = jax.jit(env.reset)(jax.random.key(0), None)
    return env, jax.jit(env.step), state, first


def test_velocities_are_scaled(cheetah):
    env, step, state, first = cheetah
    assert env.spec.obs_size == 17 and env.spec.action.size == 6 and env.spec.horizon == 7
    for pipeline_state, time_step in [
        (state, first),
        step(jax.random.key(0), state, jnp.linspace(-1.0, 1.0, 6), None),
    ]:
        expected = np.concatenate([pipeline_state.q[1:], 0.1 * pipeline_state.qd])
        np.testing.assert_allclose(time_step.obs, expected, rtol=1e-6)


def test_actions_are_clipped_before_physics_and_reward(cheetah):
    _, step, state, _ = cheetah
    wild = step(jax.random.key(0), state, jnp.array([9.0, -9.0, 0.5, 1.0, 1.0, 1.0]), None)
    clipped = step(jax.random.key(0), state, jnp.array([1.0, -1.0, 0.5, 1.0, 1.0, 1.0]), None)
    jax.tree.map(np.testing.assert_array_equal, wild, clipped)
    assert wild[1].reward == 3.5  # 1 - 1 + 0.5 + 1 + 1 + 1


def test_a_step_leaves_its_argument_alone_and_does_not_recompile(cheetah):
    _, step, state, _ = cheetah
    before = jax.tree.map(np.array, state)
    after, _ = step(jax.random.key(0), state, jnp.ones(6), None)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, state))
    step(jax.random.key(0), after, jnp.ones(6), None)
    assert step._cache_size() == 1


@pytest.fixture
def no_kernels(monkeypatch):
    """Brax as on a CPU for which there is no kernel."""
    monkeypatch.setattr(brax, "one_kernel", lambda fn, otherwise=jax.jit: otherwise(fn))


def test_mapped_steps_are_single_ones_with_the_batch_last(no_kernels):
    """In float64, so that nothing but rounding separates them."""
    with jax.enable_x64(True):
        env = brax.make("halfcheetah", backend="spring", horizon=10, reward=lambda state, action, task: task)
        tasks, key = jnp.array([1.0, -1.0]), jax.random.key(0)
        state, _ = jax.jit(env.reset)(key, tasks[0])
        states = jax.tree.map(lambda x: jnp.stack([x, x * 1.001]), state)
        states = jax.tree.map(lambda x: jnp.stack([x, x * 1.002]), states)  # two tasks, two episodes each
        actions = jax.random.uniform(jax.random.key(1), (2, 2, 6), minval=-1.0)
        of_one = jax.jit(env.step)
        of_all = jax.jit(jax.vmap(jax.vmap(env.step, (None, 0, 0, None)), (None, 0, 0, 0)))
        found = of_all(key, states, actions, tasks)
        for i, j in np.ndindex(2, 2):
            one = of_one(key, jax.tree.map(lambda x, i=i, j=j: x[i, j], states), actions[i, j], tasks[i])
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
                np.testing.assert_allclose(a[i, j], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("robot", ["ant", "halfcheetah", "hopper", "humanoid", "walker2d"])
def test_no_operation_of_a_robot_is_left_to_vmap(robot, no_kernels, monkeypatch):
    monkeypatch.delattr(batch_last, "_as_vmap")
    env = brax.make(robot, backend="spring", horizon=10, reward=lambda state, action, task: state.reward)

    def step(key):
        state, _ = env.reset(key, None)
        return env.step(key, state, jnp.zeros(env.spec.action.size), None)

    jax.eval_shape(jax.vmap(step), jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize(
    ("backend", "steps", "expected"),
    [("spring", 2, [batch_last.batch_last]), ("positional", 2, []), ("generalized", 0, []), ("mjx", 0, [])],
)
def test_which_physics_is_one_kernel_and_what_is_mapped_otherwise(backend, steps, expected, monkeypatch):
    made = []
    monkeypatch.setattr(brax, "one_kernel", lambda fn, **arguments: made.append(arguments) or fn)
    brax.make("halfcheetah", backend=backend, horizon=10, reward=lambda state, action, task: state.reward)
    assert len(made) == steps
    assert [arguments["otherwise"] for arguments in made if "otherwise" in arguments] == expected


@pytest.mark.parametrize("backend", ["spring", "positional"])
def test_factors_of_one_leave_the_masses_that_the_spring_backends_use(backend):
    envs = brax._import_brax_envs()
    with brax._quiet(), brax._quiet_mujoco():
        system = envs.get_environment("hopper", backend=backend).sys
    ones = jnp.ones(3)

    def used(system):  # as in brax's spring/pipeline.py and com.py
        inertia = jax.vmap(jnp.diagonal)(system.link.inertia.i)
        return system.link.inertia.mass ** (1 - system.spring_mass_scale), inertia ** (
            1 - system.spring_inertia_scale
        )

    same = brax.scale_physics(
        system, backend=backend, mass=jnp.ones(4), damping=ones, friction=jnp.ones(()), gear=ones
    )
    jax.tree.map(np.testing.assert_array_equal, used(same), used(system))
    double = brax.scale_physics(
        system, backend=backend, mass=jnp.full(4, 2.0), damping=ones, friction=jnp.ones(()), gear=ones
    )
    for scaled, unscaled in zip(used(double), used(system), strict=True):
        np.testing.assert_allclose(scaled, 2 * unscaled, rtol=1e-6)
