"""Gymnasium's view of tasks: the same numbers, ends of episodes told apart, what its own tools ask for."""

import re
import runpy
import sys
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from jmeta import policies, rollouts, tasks
from jmeta.adapters import gymnasium as adapter
from jmeta.adapters.gymnasium import TaskEnv, TaskVectorEnv
from jmeta.types import Adapted
from tests import small

FAMILIES = {
    "point-goal": tasks.point_goal(horizon=5),
    "bandit": tasks.bandit(num_arms=3, num_pulls=4),
    "random-mdp": tasks.random_mdp(num_states=3, num_actions=2, horizon=4),
}
# Reached by the action (0.5, 0) in one step, in two, and never.
GOALS = jnp.array([[0.05, 0.0], [0.1, 0.0], [-0.5, 0.5]])
RIGHT = np.tile(np.float32([0.5, 0.0]), (3, 1))


def sampled(family, num=3):
    return jax.vmap(family.sample)(jax.random.split(jax.random.key(0), num))


def one(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def steps(env, num):
    """`num` steps with actions drawn from a seed: observations, rewards, ends."""
    env.action_space.seed(1)
    return [env.step(env.action_space.sample())[:4] for _ in range(num)]


def steps_right(env, num):
    return [env.step(RIGHT)[:4] for _ in range(num)]


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        for got, wanted in zip(a, e, strict=True):
            np.testing.assert_array_equal(got, wanted)


# -- the same numbers ---------------------------------------------------------------------------------


def test_it_steps_as_the_environment_does_with_the_documented_keys():
    """Sub-environment i draws from `jax.random.key(seed + i)`, over two episodes of random rewards."""
    family = FAMILIES["random-mdp"]
    batch = sampled(family)
    env = TaskVectorEnv(family, batch)
    start, _ = env.reset(seed=7)
    observations, rewards, *_ = zip(*steps(env, 9), strict=True)
    observations = [start, *observations]
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(9)]

    reset, step = jax.jit(family.env.reset), jax.jit(family.env.step)
    for i in range(3):
        task, key = one(batch, i), jax.random.key(7 + i)
        for t in range(10):
            key, now = jax.random.split(key)
            if t % 5 == 0:  # four steps, then the one that resets
                state, timestep = reset(now, task)
            else:
                state, timestep = step(now, state, jnp.int32(actions[t - 1][i]), task)
            np.testing.assert_array_equal(observations[t][i], timestep.obs)
            if t > 0:
                np.testing.assert_allclose(rewards[t - 1][i], timestep.reward, rtol=1e-6)


def test_it_repeats_a_rollout():
    """Whose actions, drawn from a policy, go beyond the space: the environment clips them here too."""
    family, task = FAMILIES["point-goal"], GOALS[2]
    policy = policies.mlp(family.env.spec, hidden=(4,), init_log_std=0.5)
    adapted = Adapted(policy.init(jax.random.key(0)), policy.initial_carry())
    _, rollout = jax.jit(lambda key: rollouts.episode(family.env, policy, adapted, task, key))(
        jax.random.key(1)
    )
    assert np.abs(rollout.action).max() > 1
    env = TaskEnv(family, task)
    seen, rewards = [env.reset(seed=0)[0]], []
    for action in np.asarray(rollout.action):
        obs, reward, _, truncated, _ = env.step(action)
        seen.append(obs)
        rewards.append(reward)
    assert truncated
    np.testing.assert_allclose(seen[:-1], rollout.inputs.obs, rtol=1e-6)
    np.testing.assert_allclose(rewards, rollout.reward, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_does_what_gymnasium_does_with_single_environments(name):
    """Seeds, ends and autoreset of its own vector of them; episodes of point-goal differ in length."""
    family = FAMILIES[name]
    batch = GOALS if name == "point-goal" else sampled(family)
    ours = TaskVectorEnv(family, batch)
    theirs = SyncVectorEnv([lambda i=i: TaskEnv(family, one(batch, i)) for i in range(3)])
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    for space in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    rng = np.random.default_rng(0)
    for _ in range(15):
        actions = RIGHT if name == "point-goal" else rng.integers(family.env.spec.action.num, size=3)
        *shown, info = ours.step(actions)
        *expected, their_info = theirs.step(actions)
        for got, wanted in zip(shown, expected, strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
        assert info == their_info == {}


# -- ends of episodes ---------------------------------------------------------------------------------


def test_ends_are_told_apart_and_the_next_step_resets():
    env = TaskVectorEnv(FAMILIES["point-goal"], GOALS)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset(seed=0)
    position, reward, terminated, truncated = (np.stack(x, 1) for x in zip(*steps_right(env, 6), strict=True))
    # The x coordinate: 0.05 a step, 0 where a step resets.
    np.testing.assert_allclose(position[0, :, 0], [0.05, 0, 0.05, 0, 0.05, 0], atol=1e-7)
    np.testing.assert_allclose(position[1, :, 0], [0.05, 0.1, 0, 0.05, 0.1, 0], atol=1e-7)
    np.testing.assert_allclose(position[2, :, 0], [0.05, 0.1, 0.15, 0.2, 0.25, 0], atol=1e-7)
    np.testing.assert_allclose(reward[0], 0, atol=1e-7)
    np.testing.assert_allclose(reward[1], [-0.05, 0, 0, -0.05, 0, 0], atol=1e-7)
    assert reward[2, 0] == pytest.approx(-np.hypot(0.55, 0.5))
    assert reward[2, 5] == 0
    np.testing.assert_array_equal(terminated, [[1, 0, 1, 0, 1, 0], [0, 1, 0, 0, 1, 0], [0] * 6])
    np.testing.assert_array_equal(truncated, [[0] * 6, [0] * 6, [0, 0, 0, 0, 1, 0]])


def test_a_terminal_state_at_the_horizon_is_no_time_limit():
    env = TaskEnv(tasks.point_goal(horizon=1), GOALS[0])
    env.reset(seed=0)
    assert env.step([0.5, 0.0])[2:4] == (True, False)
    env.reset()
    assert env.step([0.0, 0.0])[2:4] == (False, True)


def test_a_reset_starts_every_episode_anew():
    env = TaskVectorEnv(FAMILIES["point-goal"], GOALS)
    env.reset(seed=0)
    steps_right(env, 4)
    np.testing.assert_array_equal(env.reset()[0], np.zeros((3, 2)))
    assert [truncated[2] for *_, truncated in steps_right(env, 5)] == [False] * 4 + [True]


# -- seeds --------------------------------------------------------------------------------------------


def test_a_seed_determines_everything():
    family = FAMILIES["random-mdp"]
    batch = sampled(family)
    env, other = TaskVectorEnv(family, batch), TaskVectorEnv(family, batch)
    env.reset(seed=5)
    first = steps(env, 6)
    env.reset()  # goes on: other numbers, which the seed determines too
    second = steps(env, 6)
    other.reset(seed=5)
    assert_same(steps(other, 6), first)
    other.reset()
    assert_same(steps(other, 6), second)
    assert not np.array_equal(first[0][1], second[0][1])
    env.reset(seed=2**40 + 5)  # of any size
    env.reset(seed=6)
    assert not np.array_equal(steps(env, 1)[0][1], first[0][1])


def test_a_run_without_a_seed_can_be_repeated():
    family = FAMILIES["random-mdp"]
    env = TaskVectorEnv(family, sampled(family))
    env.reset()
    first = steps(env, 3)
    other = TaskVectorEnv(family, sampled(family))
    other.reset()
    assert not np.array_equal(steps(other, 3)[0][1], first[0][1])
    other.reset(seed=env.np_random_seed)
    assert_same(steps(other, 3), first)


# -- what Gymnasium asks for --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_gymnasiums_checker_passes(name):
    """With a specification, without which it leaves out half of its checks."""
    env_id = f"jmeta/{name}-v0"
    kwargs = {"family": FAMILIES[name], "task": one(sampled(FAMILIES[name]), 0)}
    gymnasium.register(env_id, entry_point=TaskEnv, kwargs=kwargs, max_episode_steps=100)
    try:
        env = gymnasium.make(env_id)
        with warnings.catch_warnings():
            # Advice that its own unbounded environments get too.
            warnings.filterwarnings("ignore", message=".*observation space (min|max)imum value is -?infinity")
            check_env(env.unwrapped)
        env.close()
    finally:
        del gymnasium.registry[env_id]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_it_returns_is_in_the_spaces_and_the_users_own(name):
    family = FAMILIES[name]
    env = TaskVectorEnv(family, sampled(family))
    assert env.single_observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (family.env.spec.obs_size,))
    if name == "point-goal":
        assert env.single_action_space == gymnasium.spaces.Box(-1, 1, (2,))
    else:
        assert env.single_action_space == gymnasium.spaces.Discrete(family.env.spec.action.num)
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    obs += 1
    for obs, reward, terminated, truncated in steps(env, 2):
        assert obs in env.observation_space
        assert reward.shape == terminated.shape == truncated.shape == (3,)
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
        obs += 1
        reward += 1


def test_its_wrappers_count_returns_and_lengths():
    family = FAMILIES["point-goal"]
    env = RecordEpisodeStatistics(TaskVectorEnv(family, GOALS))
    env.reset(seed=0)
    infos = [env.step(RIGHT)[4] for _ in range(5)]
    assert infos[1]["episode"]["l"][1] == 2
    assert infos[1]["episode"]["r"][1] == pytest.approx(-0.05)
    assert infos[4]["episode"]["l"][2] == 5


def test_new_tasks_do_not_compile():
    family = FAMILIES["bandit"]
    steps_of = TaskVectorEnv(family, sampled(family))
    steps_of.reset(seed=0)
    steps(steps_of, 6)
    other = TaskVectorEnv(family, 1 - sampled(family))
    with small.compilations() as compiled:
        other.reset(seed=1)
        steps(other, 6)
        other.reset()
    assert not any("reset" in program or "step" in program for program in compiled)


# -- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, batch, got",
    [
        ("point-goal", jnp.zeros(2), "('N', 2) with N > 0, got (2,)"),
        ("point-goal", jnp.zeros((0, 2)), "('N', 2) with N > 0, got (0, 2)"),
        ("point-goal", jnp.zeros((4, 3)), "('N', 2) with N > 0, got (4, 3)"),
        ("point-goal", {"goal": jnp.zeros((4, 2))}, "('N', 2) with N > 0, got {'goal': (4, 2)}"),
        ("point-goal", (), "('N', 2) with N > 0, got ()"),
        ("point-goal", 0.5, "('N', 2) with N > 0, got ()"),
    ],
)
def test_tasks_of_other_shapes_are_refused(name, batch, got):
    with pytest.raises(ValueError, match=re.escape(f"tasks of {name} must have the shapes {got}")):
        TaskVectorEnv(FAMILIES[name], batch)


def test_leaves_must_agree_on_the_number_of_tasks():
    batch = sampled(FAMILIES["random-mdp"])
    with pytest.raises(ValueError, match=r"reward=\('N', 3, 2\).* got .*reward=\(2, 3, 2\)"):
        TaskVectorEnv(FAMILIES["random-mdp"], batch._replace(reward=batch.reward[:2]))


@pytest.mark.parametrize(
    "name, actions, message",
    [
        ("point-goal", np.zeros(2), r"shape \(3, 2\), got \(2,\)"),
        ("bandit", np.zeros((3, 1), int), r"shape \(3,\), got \(3, 1\)"),
        ("bandit", np.array([0, 1, 3]), r"in Discrete\(3\), got \[0 1 3\]"),
        ("bandit", np.array([0, -1, 1]), r"in Discrete\(3\), got \[ 0 -1  1\]"),
        ("bandit", np.array([0.0, 1.0, 1.5]), r"in Discrete\(3\), got \[0\. +1\. +1\.5\]"),
    ],
)
def test_wrong_actions_are_refused(name, actions, message):
    env = TaskVectorEnv(FAMILIES[name], sampled(FAMILIES[name]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"actions must (be|have) {message}"):
        env.step(actions)


def test_a_step_needs_a_reset():
    env = TaskEnv(FAMILIES["bandit"], jnp.zeros(3))
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(0)


def test_there_are_no_options():
    env = TaskVectorEnv(FAMILIES["point-goal"], GOALS)
    env.reset(options={})
    with pytest.raises(ValueError, match=r"options must be None or empty, got {'reset_mask': \[True\]}"):
        env.reset(options={"reset_mask": [True]})


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'jmeta[gymnasium]'")):
        runpy.run_path(adapter.__file__)


def test_actions_have_the_bounds_of_the_environment():
    family = tasks.sinusoid()
    task = family.sample(jax.random.key(0))
    env = TaskEnv(family, task)
    assert env.action_space == gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    x, _ = env.reset(seed=0)
    best = np.float32([task.amplitude * np.sin(x[0] - task.phase)])
    assert best in env.action_space
    np.testing.assert_allclose(env.step(best)[1], 0.0, atol=1e-5)
