"""Gymnax environments as families: its numbers, tasks in its physics, time limits told from ends."""

import importlib.util
import pathlib
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

# The development tools bring gymnax with the Python of the lock; on newer ones it would hold back jax.
if sys.version_info >= (3, 12) and importlib.util.find_spec("gymnax") is None:
    pytest.skip("gymnax is not installed", allow_module_level=True)

import gymnax
from gymnax.environments import spaces

from jmeta import algorithms, policies, rollouts, training
from jmeta.adapters import gymnax as adapter
from jmeta.adapters.gymnasium import TaskVectorEnv
from jmeta.adapters.gymnax import gymnax_family
from jmeta.conformance import conform
from jmeta.types import Adapted, Continuous, Discrete

KEYS = jax.random.split(jax.random.key(1), 4)
README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def cart_pole():
    """The README's example as written: its names."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "gymnax" in block)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    return names


def fixed(name, **changes):
    """A gymnax environment by name, the same for every task."""
    env, params = gymnax.make(name)
    return gymnax_family(
        name, env, sample=lambda key: jnp.zeros(()), params=lambda _: params.replace(**changes)
    )


# -- CartPole with poles of different lengths ---------------------------------------------------------


def test_cart_pole_has_the_size_of_gymnax(cart_pole):
    spec = cart_pole["family"].env.spec
    assert (spec.obs_size, spec.action, spec.horizon) == (4, Discrete(2), 500)
    lengths = jax.vmap(cart_pole["family"].sample)(jax.random.split(jax.random.key(0), 100))
    assert 0.25 <= lengths.min() < 0.3 and 0.95 < lengths.max() <= 1.0


@pytest.mark.parametrize("length", [0.25, 1.0])
def test_it_steps_as_gymnax_does_until_the_pole_falls(cart_pole, length):
    env, family, task = cart_pole["env"], cart_pole["family"], jnp.float32(length)
    params = cart_pole["default"].replace(length=length, polemass_length=0.1 * length)
    key_reset, key = jax.random.split(jax.random.key(0))
    expected, their_state = env.reset(key_reset, params)
    state, start = jax.jit(family.env.reset)(key_reset, task)
    np.testing.assert_allclose(start.obs, expected, rtol=1e-6)
    assert start.reward == 0 and not start.terminated
    step = jax.jit(family.env.step)
    terminated, count = False, 0
    while not terminated:
        key, now = jax.random.split(key)
        *_, reward, terminated, _, info = out = env.step(now, their_state, 1, params)
        their_state = out[1]
        state, timestep = step(jax.random.split(now)[0], state, jnp.int32(1), task)
        np.testing.assert_allclose(timestep.obs, info["final_observation"], rtol=1e-5, atol=1e-6)
        assert timestep.reward == reward == 1
        assert timestep.terminated == terminated
        count += 1
    assert 5 < count < 30


def test_the_length_is_in_the_physics(cart_pole):
    """From rest upright, the push F accelerates the pole by -F / M / (l (4/3 - m / M)); M = 1.1, m = 0.1."""
    family = cart_pole["family"]
    state, _ = family.env.reset(jax.random.key(0), jnp.float32(1.0))
    rest = jax.tree.map(jnp.zeros_like, state)
    for length in (0.25, 1.0):
        _, timestep = family.env.step(jax.random.key(0), rest, jnp.int32(1), jnp.float32(length))
        acceleration = -10 / 1.1 / (length * (4 / 3 - 0.1 / 1.1))
        # The mass of the pole times half its length, over M, moves the cart against it.
        cart = 10 / 1.1 - 0.1 * length * acceleration / 1.1
        np.testing.assert_allclose(timestep.obs, [0, 0.02 * cart, 0, 0.02 * acceleration], rtol=1e-5)


def test_episodes_pay_one_a_step_until_they_end(cart_pole):
    family = cart_pole["family"]
    policy = policies.mlp(family.env.spec, hidden=(4,))
    adapted = Adapted(policy.init(jax.random.key(0)), policy.initial_carry())
    rollout = jax.jit(lambda key: rollouts.batch(family.env, policy, adapted, jnp.float32(0.5), key, 8))(
        jax.random.key(1)
    )
    lengths = np.asarray(rollout.mask.sum(-1))
    assert rollout.mask.shape == (8, 500) and lengths.min() > 5 and lengths.max() < 300
    np.testing.assert_array_equal(rollouts.returns(rollout), lengths)
    np.testing.assert_array_equal(rollout.terminated.sum(-1), 1)


def test_gymnasium_sees_it_too(cart_pole):
    env = TaskVectorEnv(cart_pole["family"], jnp.array([0.25, 1.0]))
    env.reset(seed=0)
    ends = [env.step(np.ones(2, int))[2] for _ in range(15)]
    assert np.argmax([end[0] for end in ends]) < np.argmax(
        [end[1] for end in ends]
    )  # the shorter falls first


# -- other environments -------------------------------------------------------------------------------


def test_the_time_limit_does_not_terminate():
    family = fixed("CartPole-v1", max_steps_in_episode=3)
    assert family.env.spec.horizon == 3
    state, _ = family.env.reset(jax.random.key(0), 0.0)
    for action in (0, 1, 0, 1):
        state, timestep = family.env.step(jax.random.key(1), state, action, 0.0)
        assert not timestep.terminated
    assert state.time == 4


def test_continuous_actions_span_the_range_that_the_task_sets():
    env, default = gymnax.make("Pendulum-v1")
    family = gymnax_family(
        "pendulum",
        env,
        sample=lambda key: jax.random.uniform(key, minval=1.0, maxval=3.0),
        params=lambda torque: default.replace(max_torque=torque),
    )
    assert family.env.spec.action == Continuous(1)
    state, _ = family.env.reset(jax.random.key(0), 3.0)
    for action, torque in [(-1.0, -3.0), (-0.5, -1.5), (0.0, 0.0), (1.0, 3.0), (7.0, 3.0)]:
        params = default.replace(max_torque=3.0)
        expected, _, reward, *_ = env.step_env(jax.random.key(1), state, torque, params)
        _, timestep = family.env.step(jax.random.key(1), state, jnp.array([action]), 3.0)
        np.testing.assert_allclose(timestep.obs, expected, rtol=1e-6)
        np.testing.assert_allclose(timestep.reward, reward, rtol=1e-6)
        assert timestep.obs.shape == (3,) and timestep.reward.shape == ()


def test_observations_are_vectors_of_floats():
    _, lake = fixed("FrozenLake-misc").env.reset(jax.random.key(0), 0.0)
    np.testing.assert_array_equal(lake.obs, np.eye(16)[0])
    catch = fixed("Catch-bsuite")
    state, timestep = catch.env.reset(jax.random.key(0), 0.0)
    assert catch.env.spec.obs_size == 50
    expected = np.zeros((10, 5))
    expected[state.ball_y, state.ball_x] = expected[state.paddle_y, state.paddle_x] = 1
    np.testing.assert_array_equal(timestep.obs, expected.ravel())
    assert lake.obs.dtype == timestep.obs.dtype == np.float32


# -- mistakes -----------------------------------------------------------------------------------------


def test_what_is_no_environment_is_refused():
    with pytest.raises(ValueError, match=r"env must be a gymnax Environment, .* got \("):
        gymnax_family("x", gymnax.make("CartPole-v1"), sample=lambda key: key, params=lambda task: task)


def test_parameters_must_be_of_gymnax():
    env, _ = gymnax.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"params must map a task to gymnax EnvParams, got .*0\.5"):
        gymnax_family("x", env, sample=lambda key: jnp.float32(0.5), params=lambda task: task)


@pytest.mark.parametrize("space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Box(-jnp.inf, 1.0, (1,))])
def test_other_action_spaces_are_refused(space, monkeypatch):
    env, params = gymnax.make("CartPole-v1")
    monkeypatch.setattr(env, "action_space", lambda params: space)
    with pytest.raises(ValueError, match=r"must be Discrete or a bounded Box, got (Tuple|Box)"):
        gymnax_family("x", env, sample=lambda key: jnp.zeros(()), params=lambda _: params)


def test_without_gymnax_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gymnax.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=re.escape("pip install 'jmeta[gymnax]'")):
        runpy.run_path(adapter.__file__)


# -- environments that draw their task in `reset` -------------------------------------------------------


def test_a_task_that_is_drawn_in_reset_is_held_over_the_episodes():
    env, params = gymnax.make("PointRobot-misc")
    family = gymnax_family(
        "point-robot", env, params=lambda task: params.replace(max_steps_in_episode=4), hold_reset=True
    )
    family = conform(family)
    tasks = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 3))
    goals = jax.vmap(lambda task: jax.vmap(lambda key: family.env.reset(key, task)[0].goal)(KEYS))(tasks)
    assert (goals == goals[:, :1]).all() and len(np.unique(goals[:, 0], axis=0)) == 3
    other = gymnax_family("point-robot", env)  # every episode has a goal of its own
    assert len(np.unique(jax.vmap(lambda key: other.env.reset(key, ())[0].goal)(KEYS), axis=0)) == len(KEYS)

    policy = policies.mlp(family.env.spec, hidden=(4,))
    algorithm = algorithms.maml(family, policy, optimizer=optax.adam(0.1), num_episodes=2)
    records = []
    training.train(
        algorithm,
        family,
        iterations=2,
        num_tasks=2,
        callback=lambda progress: records.append(progress.metrics),
    )
    assert records[-1]["tasks_lost"] == 0 and records[-1]["skipped"] == 0
    assert all(np.isfinite(value) for value in records[-1].values())


@pytest.mark.parametrize("name", ["MetaMaze-misc", "BernoulliBandit-misc", "GaussianBandit-misc"])
def test_the_other_environments_that_draw_their_task_in_reset_are_families(name):
    family = conform(gymnax_family(name, gymnax.make(name)[0], hold_reset=True))
    tasks = jax.eval_shape(jax.vmap(family.sample), jax.random.split(jax.random.key(0), 2))
    assert jax.tree.leaves(tasks)[0].shape[0] == 2
