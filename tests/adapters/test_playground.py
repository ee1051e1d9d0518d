"""Playground environments as families: its interface with a stand-in; its numbers where it is installed."""

import importlib.util
import re
import textwrap
import warnings

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.adapters.playground import playground_family
from jmeta.types import Continuous


@flax.struct.dataclass
class State:
    data: jax.Array
    obs: object
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class Slider:
    """An object of mass `mjx_model` pushed from rest for 1 s at a time; ends beyond 10 m."""

    action_size = 1

    def __init__(self, observe=lambda x: x):
        self._mjx_model = jnp.float32(1.0)
        self._observe = observe
        self._acceleration = self.acceleration  # bound to this very object, as Playground's rewards are

    @property
    def mjx_model(self):
        return self._mjx_model

    def acceleration(self, action):
        return action / self.mjx_model

    def reset(self, key):
        x = jnp.stack([jax.random.uniform(key), 0.0])
        return State(x, self._observe(x), jnp.zeros(()), jnp.zeros(()), {"far": jnp.zeros(())}, {"n": 0})

    def step(self, state, action):
        speed = state.data[1] + self._acceleration(action[0])
        x = jnp.stack([state.data[0] + speed, speed])
        far = (x[0] > 10).astype(float)
        state.metrics["far"] = far
        state.info["n"] += 1
        return state.replace(data=x, obs=self._observe(x), reward=-x[0], done=far)


def family_of(env, **changes):
    arguments = {
        "horizon": 7,
        "sample": lambda key: jax.random.uniform(key, minval=0.5, maxval=4.0),
        "model": lambda default, mass: default * mass,
    }
    return playground_family("slider", env, **arguments | changes)


def test_the_task_is_in_the_physics_and_leaves_the_environment_as_it_was():
    env = Slider()
    family = family_of(env)
    spec = family.env.spec
    assert (spec.obs_size, spec.action, spec.horizon) == (2, Continuous(1), 7)
    masses = jnp.array([0.5, 4.0])
    keys = jax.random.split(jax.random.key(0))
    state, start = jax.vmap(family.env.reset)(keys, masses)
    np.testing.assert_array_equal(start.obs[:, 0], jax.vmap(jax.random.uniform)(keys))
    np.testing.assert_array_equal(start.reward, 0)
    push = jnp.array([[3.0], [0.5]])  # the first is clipped to 1
    after, timestep = jax.vmap(family.env.step)(keys, state, push, masses)
    speed = np.array([1 / 0.5, 0.5 / 4.0])
    np.testing.assert_allclose(timestep.obs[:, 1], speed)
    np.testing.assert_allclose(timestep.reward, -(start.obs[:, 0] + speed), rtol=1e-6)
    np.testing.assert_array_equal(after.info["n"], 1)
    np.testing.assert_array_equal(state.info["n"], 0)
    assert env.mjx_model == 1


def test_its_end_terminates_and_its_argument_is_left_alone():
    env = family_of(Slider()).env
    state, _ = env.reset(jax.random.key(0), 0.5)
    ends, states = [], []
    for _ in range(4):
        states.append(state)
        state, timestep = env.step(jax.random.key(1), state, jnp.ones(1), 0.5)
        ends.append(bool(timestep.terminated))
    # x is below 1 at first, then 2, 6, 12 and 20 further.
    assert ends == [False, False, True, True] and timestep.terminated.dtype == bool
    assert [s.info["n"] for s in states] == [0, 1, 2, 3]
    assert states[2].metrics["far"] == 0 and states[3].metrics["far"] == 1


def test_of_several_observations_it_takes_the_state():
    family = family_of(Slider(lambda x: {"state": x[:1], "privileged_state": x}))
    assert family.env.spec.obs_size == 1
    _, start = family.env.reset(jax.random.key(0), 1.0)
    assert start.obs.shape == (1,)


def test_an_error_of_the_environment_leaves_its_model():
    env = Slider()
    family = family_of(env)
    state, _ = family.env.reset(jax.random.key(0), 1.0)
    with pytest.raises(TypeError):
        family.env.step(jax.random.key(0), state.replace(data=None), jnp.ones(1), 2.0)
    assert env.mjx_model == 1


@pytest.mark.parametrize(
    "env, changes, message",
    [
        (object(), {}, r"env must be a Playground environment, .* got <object"),
        (Slider(), {"horizon": 0}, r"horizon must be at least 1, got 0"),
        (Slider(lambda x: {"pixels": x}), {}, r"a vector, or have one called 'state', got {'pixels'"),
        (Slider(lambda x: x[None]), {}, r"a vector, or have one called 'state', got .*\(1, 2\)"),
    ],
)
def test_mistakes_are_refused(env, changes, message):
    with pytest.raises(ValueError, match=message):
        family_of(env, **changes)


# Playground is no development tool, since it brings half a gigabyte: pip install '.[playground]'.
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mujoco_playground") is None, reason="needs Playground")
def test_the_example_of_the_documentation_is_playgrounds_own_with_another_mass():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies', on import
        from mujoco_playground import registry
    from mujoco import mjx

    (example,) = re.findall(r"on any platform:\n\n(.*?)\n\n    Args:", playground_family.__doc__, re.DOTALL)
    names = {"registry": registry, "jnp": jnp, "jax": jax, "playground_family": playground_family}
    exec(textwrap.dedent(example), names)
    family = names["family"]

    reference = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    heavy = reference.mj_model.body("pole_1")
    heavy.inertia *= 0.7 / heavy.mass
    heavy.mass = 0.7
    reference._mjx_model = mjx.put_model(reference.mj_model, impl="jax")
    reset, step = jax.jit(reference.reset), jax.jit(reference.step)

    batch = jnp.array([0.1, 0.7])
    our_reset = jax.jit(jax.vmap(family.env.reset, (None, 0)))
    our_step = jax.jit(jax.vmap(family.env.step, (None, 0, None, 0)))
    expected = reset(jax.random.key(0))
    state, start = our_reset(jax.random.key(0), batch)
    np.testing.assert_allclose(start.obs[1], expected.obs, rtol=1e-6)
    for _ in range(20):
        expected = step(expected, jnp.array([0.8]))
        state, timestep = our_step(jax.random.key(1), state, jnp.array([0.8]), batch)
    np.testing.assert_allclose(timestep.obs[1], expected.obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(timestep.reward[1], expected.reward, rtol=1e-4)
    assert np.abs(timestep.obs[0] - timestep.obs[1]).max() > 0.01
    assert not timestep.terminated.any()
    assert our_step._cache_size() == 1
