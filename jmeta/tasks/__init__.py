"""Task families: distributions over tasks of one environment, by name in `REGISTRY`."""

from collections.abc import Callable

from jmeta.tasks.ant_direction import ant_angle, ant_direction
from jmeta.tasks.ant_goal import ant_goal
from jmeta.tasks.bandit import bandit
from jmeta.tasks.goal_and_pit import goal_and_pit
from jmeta.tasks.grid_goal import grid_goal
from jmeta.tasks.half_cheetah_direction import half_cheetah_direction
from jmeta.tasks.half_cheetah_velocity import half_cheetah_velocity
from jmeta.tasks.humanoid_direction import humanoid_direction
from jmeta.tasks.physical_parameters import hopper_parameters, walker2d_parameters
from jmeta.tasks.point_goal import point_goal, sparse_point_goal
from jmeta.tasks.random_mdp import random_mdp
from jmeta.tasks.recommendation import recommendation
from jmeta.tasks.sinusoid import sinusoid
from jmeta.types import TaskFamily

REGISTRY: dict[str, Callable[..., TaskFamily]] = {
    "ant-angle": ant_angle,
    "ant-direction": ant_direction,
    "ant-goal": ant_goal,
    "bandit": bandit,
    "goal-and-pit": goal_and_pit,
    "grid-goal": grid_goal,
    "half-cheetah-direction": half_cheetah_direction,
    "half-cheetah-velocity": half_cheetah_velocity,
    "hopper-parameters": hopper_parameters,
    "humanoid-direction": humanoid_direction,
    "point-goal": point_goal,
    "random-mdp": random_mdp,
    "recommendation": recommendation,
    "sinusoid": sinusoid,
    "sparse-point-goal": sparse_point_goal,
    "walker2d-parameters": walker2d_parameters,
}

__all__ = [
    "REGISTRY",
    "ant_angle",
    "ant_direction",
    "ant_goal",
    "bandit",
    "goal_and_pit",
    "grid_goal",
    "half_cheetah_direction",
    "half_cheetah_velocity",
    "hopper_parameters",
    "humanoid_direction",
    "point_goal",
    "random_mdp",
    "recommendation",
    "sinusoid",
    "sparse_point_goal",
    "walker2d_parameters",
]
