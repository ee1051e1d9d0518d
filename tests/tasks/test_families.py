"""Every family of continuous control: its tasks matter, its splits are disjoint, its episodes stay finite.

One program a family runs a block of tasks from the same first state with the same actions, so that two lanes
differ only if their tasks do. The other families have files of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmeta
from jmeta import tasks
from jmeta.types import TaskFamily

LANES = 28  # the base task twice, its perturbations (at most 20, of the walker), and further samples
STEPS = 100

OTHERS = (
    "bandit",
    "goal-and-pit",
    "grid-goal",
    "random-mdp",
    "recommendation",
    "sinusoid",
)  # each in a file of its own
CONTROL = [name for name in tasks.REGISTRY if name not in OTHERS]

slow = pytest.mark.slow
CASES = [
    *((name, None) for name in CONTROL if name not in ("humanoid-direction", "walker2d-parameters")),
    pytest.param(("humanoid-direction", None), marks=slow),
    pytest.param(("walker2d-parameters", None), marks=slow),
    *(  # a robot that moves freely, and one in the plane whose task is in the physics
        pytest.param((name, backend), marks=(slow, pytest.mark.unmeasured))
        for name in ("ant-direction", "hopper-parameters")
        for backend in ("generalized", "positional", "mjx")
    ),
]


class Run(NamedTuple):
    family: TaskFamily
    changed: list[str]  # names of the task elements perturbed, in lanes 2, 3, ...
    tasks: object  # [LANES, ...]
    actions: np.ndarray  # [T, A], beyond the range [-1, 1]
    obs: np.ndarray  # [LANES, T+1, D]
    reward: np.ndarray  # [LANES, T]
    terminated: np.ndarray  # [LANES, T]
    position: np.ndarray  # [LANES, T+1, 3] of the torso; or [LANES, T+1, 2] of the point


def perturbations(task):
    """Names and tasks: the task once for each of its numbers, with 0.25 added to that number."""
    leaves, treedef = jax.tree.flatten(task)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(task)]
    for index, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        for element in np.ndindex(leaf.shape):
            changed = leaf.at[element].add(0.25)
            yield (
                f"{path}{list(element)}",
                treedef.unflatten([*leaves[:index], changed, *leaves[index + 1 :]]),
            )


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(filter(None, case)))
def run(request) -> Run:
    name, backend = request.param
    family = tasks.REGISTRY[name](**({} if backend is None else {"backend": backend}))
    key_base, key_rest, key_actions = jax.random.split(jax.random.key(0), 3)
    base = family.sample(key_base)
    changed, lanes = zip(*perturbations(base), strict=True)
    rest = [family.sample(key) for key in jax.random.split(key_rest, LANES - 2 - len(lanes))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), base, base, *lanes, *rest)

    actions = jax.random.uniform(key_actions, (STEPS, family.env.spec.action.size), minval=-1.5, maxval=1.5)
    if name == "sparse-point-goal":
        actions = jnp.tile(base, (STEPS, 1))  # straight to the goal: elsewhere there is no reward

    def position(state):
        return state.x.pos[0] if hasattr(state, "x") else state

    def episode(task):
        state, first = family.env.reset(jax.random.key(1), task)

        def body(state, action):
            state, time_step = family.env.step(jax.random.key(2), state, action, task)
            return state, (time_step, position(state))

        _, (time_steps, positions) = jax.lax.scan(body, state, actions)
        obs = jnp.concatenate([first.obs[None], time_steps.obs])
        positions = jnp.concatenate([position(state)[None], positions])
        return obs, time_steps.reward, time_steps.terminated, positions

    results = jax.tree.map(np.asarray, jax.jit(jax.vmap(episode))(stacked))
    return Run(family, list(changed), stacked, np.asarray(actions), *results)


def test_every_number_of_a_task_changes_a_transition_or_a_reward(run):
    signal = np.concatenate([run.obs[:, 1:], run.reward[..., None]], axis=-1)[:, :50]  # [LANES, 50, D+1]
    difference = np.abs(signal - signal[0]).max(axis=(1, 2))
    assert difference[1] == 0  # the same task twice: any difference below is the task's
    ignored = [name for name, value in zip(run.changed, difference[2:], strict=False) if value < 1e-4]
    assert not ignored


def test_episodes_are_finite_and_typed(run):
    spec = run.family.env.spec
    assert run.obs.shape == (LANES, STEPS + 1, spec.obs_size)
    assert run.obs.dtype == run.reward.dtype == np.float32 and run.terminated.dtype == bool
    assert np.isfinite(run.obs).all() and np.isfinite(run.reward).all()


def test_termination_is_what_the_family_says(run):
    name = run.family.name
    position = run.position[:, 1:]
    if name in ("ant-direction", "ant-angle"):
        expected = (position[..., 2] < 0.2) | (position[..., 2] > 1.0)
    elif name == "humanoid-direction":
        expected = (position[..., 2] < 1.0) | (position[..., 2] > 2.0)
    elif name == "point-goal":
        expected = (np.abs(position - np.asarray(run.tasks)[:, None]) < 0.01).all(axis=-1)
    elif name.endswith("-parameters"):
        # The lean is the second position observed, after the height.
        low, high, lean = (0.7, np.inf, 0.2) if name == "hopper-parameters" else (0.8, 2.0, 1.0)
        height, angle = position[..., 2], np.abs(run.obs[:, 1:, 1])
        expected = (height <= low) | (height >= high) | (angle >= lean)
    else:
        expected = np.zeros((LANES, STEPS), bool)
    np.testing.assert_array_equal(run.terminated, expected)
    assert run.family.env.spec.terminates or not expected.any()


def test_reward_is_the_documented_one(run):
    """From positions, tasks and actions alone. A step of the cheetah and of the ant lasts 0.05 s."""
    name = run.family.name
    actions = np.clip(run.actions, -1.0, 1.0)
    effort = (actions**2).sum(axis=-1)  # [T]
    velocity = np.diff(run.position, axis=1) / 0.05  # [LANES, T, 3]
    task = run.tasks if name.endswith("-parameters") else np.asarray(run.tasks)
    if name == "half-cheetah-direction":
        expected = task[:, None] * velocity[..., 0] - 0.1 * effort
    elif name == "half-cheetah-velocity":
        expected = -np.abs(velocity[..., 0] - task[:, None]) - 0.05 * effort
    elif name in ("ant-direction", "ant-angle"):
        expected = (velocity[..., :2] * task[:, None]).sum(axis=-1) + 0.05 - 0.005 * effort
    elif name == "ant-goal":
        expected = -np.abs(run.position[:, 1:, :2] - task[:, None]).sum(axis=-1) - 0.1 * effort
    elif name.endswith("-parameters"):
        dt = 0.008  # 4 frames of 0.002 s
        expected = np.diff(run.position[..., 0], axis=1) / dt + 1 - 0.001 * effort
    elif name == "point-goal":
        expected = -np.linalg.norm(run.position[:, 1:] - task[:, None], axis=-1)
    elif name == "sparse-point-goal":
        distance = np.linalg.norm(run.position[:, 1:] - task[:, None], axis=-1)
        expected = np.where(distance <= 0.2, 1 - distance, 0.0)
        assert (expected > 0).any()
    else:
        # The humanoid's velocity v is that of its centre of mass, which the positions do not tell. But every
        # lane has the same v: the rewards must be linear in the directions, with one v that fits them all,
        # and v must carry the centre of mass along with the torso.
        unexplained = run.reward - (5 - 0.1 * 0.4**2 * effort)  # 1.25 v . direction, [LANES, T]
        velocity, *_ = np.linalg.lstsq(1.25 * task, unexplained, rcond=None)  # [2, T]
        torso = run.position[0, -1, :2] - run.position[0, 0, :2]
        assert np.linalg.norm(velocity.sum(axis=1) * 0.015 - torso) < 0.5  # ten frames of 0.0015 s
        expected = 1.25 * task @ velocity + 5 - 0.1 * 0.4**2 * effort
    np.testing.assert_allclose(run.reward, expected, rtol=1e-4, atol=2e-3)


def angle(task):
    return np.arctan2(task[:, 1], task[:, 0]) % (2 * np.pi)


def in_first_eighth(task):
    return angle(task) < np.pi / 4


HELDOUT = {
    "ant-angle": in_first_eighth,
    "ant-goal": in_first_eighth,
    "humanoid-direction": in_first_eighth,
    "half-cheetah-velocity": lambda task: (task >= 1.0) & (task < 1.25),
    "point-goal": lambda task: (task >= 0.25).all(axis=-1),
    "sparse-point-goal": lambda task: (angle(task) >= np.pi / 4) & (angle(task) < np.pi / 2),
    "hopper-parameters": lambda task: (task.mass[:, 0] >= 1.5) & (task.mass[:, 0] < 1.5**2),
    "walker2d-parameters": lambda task: (task.mass[:, 0] >= 1.5) & (task.mass[:, 0] < 1.5**2),
}
SPAN = {  # the documented range of each number of a training task
    "ant-angle": (-1, 1),
    "ant-goal": (-3, 3),
    "humanoid-direction": (-1, 1),
    "half-cheetah-velocity": (0, 2),
    "point-goal": (-0.5, 0.5),
}


def sampled(sample, num=4000):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(5), num)))


@pytest.mark.parametrize("name", CONTROL)
def test_training_and_heldout_tasks(name):
    family = tasks.REGISTRY[name]()
    assert family.name == name
    if name.endswith("-direction") and name != "humanoid-direction":
        # Two tasks in all, each about half of the time: standard error sqrt(1/4 / 4000) = 0.008.
        assert family.sample_heldout is family.sample
        values, counts = np.unique(sampled(family.sample).reshape(4000, -1), axis=0, return_counts=True)
        assert values[:, 0].tolist() == [-1.0, 1.0] and not values[:, 1:].any()
        assert abs(counts[0] / 4000 - 0.5) < 0.032
        return
    train, heldout = sampled(family.sample), sampled(family.sample_heldout)
    assert not HELDOUT[name](train).any()
    assert HELDOUT[name](heldout).mean() > 0.999  # rounding may put a sample on the border
    if name in SPAN:
        low, high = SPAN[name]
        for column in train.reshape(4000, -1).T:
            assert (
                low <= column.min() < low + 0.1 * (high - low)
                and high - 0.1 * (high - low) < column.max() <= high
            )


def test_headings_are_uniform():
    train, heldout = sampled(tasks.ant_angle().sample), sampled(tasks.ant_angle().sample_heldout)
    np.testing.assert_allclose(np.linalg.norm(train, axis=1), 1, rtol=1e-5)
    # Uniform on [pi/4, 2 pi): mean 9/8 pi, standard deviation 7/4 pi / sqrt(12) = 1.59, error 0.025 for 4000.
    np.testing.assert_allclose(angle(train).mean(), 9 / 8 * np.pi, atol=0.1)
    np.testing.assert_allclose(angle(heldout).mean(), np.pi / 8, atol=0.015)


def test_goals_are_uniform_in_the_disc():
    radius = np.linalg.norm(sampled(tasks.ant_goal().sample), axis=1)
    # Uniform in area on a disc of radius 3: mean radius 2, deviation 3 / sqrt(18) = 0.71, error 0.011.
    assert radius.max() <= 3
    np.testing.assert_allclose(radius.mean(), 2.0, atol=0.045)


def test_parameter_ranges():
    train = sampled(tasks.walker2d_parameters(log_scale_limit=2.0).sample)
    for factors, base in zip(train, (1.5, 1.3, 1.5, 1.3), strict=True):
        exponents = np.log(factors) / np.log(base)
        assert -2.001 <= exponents.min() < -1.9 and 1.9 < exponents.max() <= 2.001
    assert [leaf.shape[1:] for leaf in train] == [(7,), (6,), (), (6,)]


def test_optimal_return_of_a_point():
    family = tasks.point_goal(horizon=4)
    # Goal (0.25, 0): distances 0.15, 0.05, 0, 0 after the steps. Goal (0.3, 0.4): (0.2, 0.3), (0.1, 0.2),
    # (0, 0.1), (0, 0), that is sqrt(0.13) + sqrt(0.05) + 0.1.
    np.testing.assert_allclose(family.optimal_return(jnp.array([0.25, 0.0])), -0.2, rtol=1e-5)
    expected = -(0.13**0.5 + 0.05**0.5 + 0.1)
    np.testing.assert_allclose(family.optimal_return(jnp.array([-0.3, 0.4])), expected, rtol=1e-5)


def test_optimal_return_is_reached_and_never_exceeded():
    family = tasks.point_goal(horizon=10)

    def returns(task, noise, key):
        def body(carry, key):
            state, alive = carry
            action = 10 * (task - state) + noise * jax.random.normal(key, (2,))
            state, time_step = family.env.step(key, state, action, task)
            return (state, alive * ~time_step.terminated), alive * time_step.reward

        carry = family.env.reset(key, task)[0], jnp.ones(())
        return jax.lax.scan(body, carry, jax.random.split(key, 10))[1].sum()

    goals = jnp.asarray(sampled(family.sample, 200))
    keys = jax.random.split(jax.random.key(1), 200)
    best = jax.vmap(family.optimal_return)(goals)
    for noise in (0.0, 0.1, 1.0):
        found = jax.vmap(returns, in_axes=(0, None, 0))(goals, noise, keys)
        assert (found <= best + 1e-4).all()
        if noise == 0:
            np.testing.assert_allclose(found, best, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CONTROL if "point" not in name])
def test_unknown_backend_is_named(name):
    with pytest.raises(ValueError, match="one of spring, generalized, positional, mjx, got 'bullet'"):
        tasks.REGISTRY[name](backend="bullet")


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="max_velocity must be positive and finite, got 0"):
        tasks.half_cheetah_velocity(max_velocity=0)
    with pytest.raises(ValueError, match="log_scale_limit must be positive and finite, got -1"):
        tasks.hopper_parameters(log_scale_limit=-1)


def test_registry_names_are_the_exported_functions():
    for name, factory in tasks.REGISTRY.items():
        assert getattr(jmeta.tasks, name.replace("-", "_")) is factory
        assert factory.__name__ in tasks.__all__
