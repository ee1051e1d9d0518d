"""Brax's robots in one kernel are what they are under `jax.vmap`, also where they explode."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmeta
from jmeta.envs import brax
from jmeta.kernels import cpu

pytestmark = [
    pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not())),
    pytest.mark.unmeasured,
]
ROBOTS = ["halfcheetah", "ant", "hopper", "walker2d", "humanoid"]


def plain(monkeypatch):
    """Makes families without kernels, as `jax.vmap` maps them."""
    monkeypatch.setattr(brax, "one_kernel", lambda fn, otherwise=jax.jit: jax.jit(fn))


def with_and_without(make, monkeypatch):
    """The same environment with kernels and without."""
    with monkeypatch.context() as context:
        plain(context)
        without = make()
    return make(), without


def make(robot, backend="spring"):
    return lambda: brax.make(
        robot, backend=backend, horizon=100, reward=lambda state, action, task: task * state.reward
    )


def steps(env, tasks, episodes, num_steps):
    """All that `num_steps` steps return, of `episodes` episodes of each task."""

    def play(key, task):
        state, first = env.reset(key, task)
        actions = jax.random.uniform(key, (num_steps, env.spec.action.size), minval=-1.3, maxval=1.3)
        return first, jax.lax.scan(lambda state, action: env.step(None, state, action, task), state, actions)

    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    keys = jax.random.split(jax.random.key(0), (num_tasks, episodes))
    return jax.jit(jax.vmap(jax.vmap(play, (0, None))))(keys, tasks)


def assert_equal(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_same_steps(env, without, tasks, episodes):
    """Each of ten steps; tighter for the first, since small differences grow."""
    found, expected = steps(env, tasks, episodes, 10), steps(without, tasks, episodes, 10)
    assert_equal(found, expected, 1e-9)
    first = [jax.tree.map(lambda x: x[:, :, 0], result[1][1]) for result in (found, expected)]
    assert_equal(*first, 1e-11)


@pytest.mark.parametrize(
    ("robot", "backend"), [*((robot, "spring") for robot in ROBOTS), ("hopper", "positional")]
)
def test_robots_in_float64(robot, backend, monkeypatch):
    """Two tasks, nine episodes each, so that a vector's lanes are filled and one block is ragged."""
    with jax.enable_x64(True):
        env, without = with_and_without(make(robot, backend), monkeypatch)
        assert_same_steps(env, without, jnp.array([1.0, -0.5]), 9)


def test_tasks_that_change_the_system(monkeypatch):
    with jax.enable_x64(True):
        family = jmeta.tasks.hopper_parameters
        env, without = with_and_without(lambda: family().env, monkeypatch)
        tasks = jax.vmap(family().sample)(jax.random.split(jax.random.key(1), 3))
        assert_same_steps(env, without, tasks, 3)


def test_the_log_says_which_path_is_taken(caplog):
    with caplog.at_level(logging.INFO, "jmeta.kernels"):
        env = make("hopper")()
        jax.jit(jax.vmap(lambda key: env.reset(key, 1.0))).lower(jax.random.split(jax.random.key(0), 3))
    assert "one kernel of" in caplog.text
    with caplog.at_level(logging.INFO, "jmeta.kernels"):
        env = brax.make(
            "hopper", backend="spring", horizon=5, reward=lambda state, action, task: jnp.sort(action)[0]
        )
        one = jax.eval_shape(env.reset, jax.random.key(0), 1.0)[0]
        three = jax.tree.map(lambda x: jnp.zeros((3, *x.shape), x.dtype), one)
        jax.jit(jax.vmap(lambda s, a: env.step(None, s, a, 1.0))).lower(three, jnp.zeros((3, 3)))
    assert "no kernel for this function, which has the operation sort" in caplog.text


def test_what_is_not_finite_in_a_state_is_not_hidden(monkeypatch):
    """One robot for every number of the state and action, each with that number not finite."""
    env, without = with_and_without(make("hopper"), monkeypatch)
    state, _ = jax.jit(env.reset)(jax.random.key(0), 1.0)
    action = jnp.full(env.spec.action.size, 0.3)
    one = jax.jit(env.step)
    for _ in range(8):
        state, _ = one(None, state, action, 1.0)
    leaves, tree = jax.tree.flatten((state, action))
    total = sum(leaf.size for leaf in leaves)
    for bad in (np.nan, np.inf):
        spoiled, start = [], 0
        for leaf in leaves:
            rows = np.tile(np.ravel(leaf), (total, 1))
            if rows.dtype.kind == "f":
                rows[start + np.arange(leaf.size), np.arange(leaf.size)] = bad
            start += leaf.size
            spoiled.append(rows.reshape(total, *leaf.shape))
        states, actions = jax.tree.unflatten(tree, spoiled)
        found, expected = (
            jax.jit(jax.vmap(lambda s, a, e=e: e.step(None, s, a, 1.0)))(states, actions)
            for e in (env, without)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert not (np.isfinite(a) & ~np.isfinite(b)).any()
        some = np.any(
            [np.isfinite(np.asarray(leaf)).reshape(total, -1).all(1) for leaf in jax.tree.leaves(found)], 0
        )
        assert some.any()  # lanes beside a spoiled one are as they were


def test_a_robot_that_explodes_is_seen_to_explode():
    """Of a kind that brax itself lets explode: velocities beyond all reason."""
    env = make("hopper")()
    state, _ = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(jax.random.key(0), 20), 1.0)
    state = jax.tree.map(lambda x: x.at[7].multiply(1e30) if x.dtype.kind == "f" else x, state)
    advance = jax.jit(jax.vmap(lambda s, a: env.step(None, s, a, 1.0)))
    for _ in range(5):
        state, seen = advance(state, jnp.zeros((20, 3)))
    finite = np.isfinite(seen.obs).all(1) & np.isfinite(seen.reward)
    assert not finite[7] and finite[np.arange(20) != 7].all()
