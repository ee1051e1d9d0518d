"""The grid: moves, rewards, where goals are, and the best return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import tasks
from jmeta.envs.gridworld import gridworld

STAY, UP, RIGHT, DOWN, LEFT = range(5)


def walk(actions, goal):
    """Cells, rewards and the observation after each action."""
    env = gridworld(size=5, horizon=15)
    state, start = env.reset(jax.random.key(0), goal)
    cells, rewards = [np.asarray(state)], []
    for action in actions:
        state, timestep = env.step(jax.random.key(0), state, jnp.int32(action), goal)
        cells.append(np.asarray(state))
        rewards.append(float(timestep.reward))
    return np.array(cells), np.array(rewards), start


def test_moves_change_one_coordinate_and_stop_at_the_walls():
    cells, _, start = walk([UP, RIGHT, RIGHT, DOWN, LEFT, LEFT, LEFT, DOWN, STAY], jnp.array([4, 4]))
    expected = [[0, 0], [0, 1], [1, 1], [2, 1], [2, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    np.testing.assert_array_equal(cells, expected)
    np.testing.assert_array_equal(start.obs, [-1, -1])
    cells, _, _ = walk([UP] * 6, jnp.array([4, 4]))
    np.testing.assert_array_equal(cells[-1], [0, 4])


def test_being_on_the_goal_pays():
    _, rewards, _ = walk([RIGHT, RIGHT, STAY, LEFT], jnp.array([2, 0]))
    np.testing.assert_allclose(rewards, [-0.1, 1, 1, -0.1])


def test_goals_are_uniform_over_the_other_cells():
    family = tasks.grid_goal()
    goals = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 4200)))
    cells, counts = np.unique(goals, axis=0, return_counts=True)
    assert len(cells) == 21 and not (cells < 2).all(1).any()  # 25 less the four around the start
    # 200 each, to 14; five of them.
    assert np.abs(counts - 200).max() < 70


@pytest.mark.parametrize("goal", [(2, 0), (4, 4), (1, 3)])
def test_the_best_return_is_reached_by_walking_there(goal):
    family = tasks.grid_goal()
    actions = [RIGHT] * goal[0] + [UP] * goal[1]
    _, rewards, _ = walk(actions + [STAY] * (15 - len(actions)), jnp.array(goal))
    np.testing.assert_allclose(family.optimal_return(jnp.array(goal)), rewards.sum(), rtol=1e-5)


def test_a_goal_beyond_the_horizon_pays_nothing():
    np.testing.assert_allclose(tasks.grid_goal(horizon=3).optimal_return(jnp.array([4, 4])), -0.3, rtol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        tasks.grid_goal(horizon=0)
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        gridworld(size=1, horizon=3)
