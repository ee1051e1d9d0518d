"""Environments of several tasks at once, as a good user of PyTorch has them: vectorised NumPy and MuJoCo.

Tasks, observations and rewards are those of jmeta's families of the same names.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np

MAX_STEP = 0.1  # of the point, as in jmeta.envs.point_mass
SCALE_OF_VELOCITIES = 0.1  # in observations, as in jmeta.envs.brax
ROBOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "half-cheetah-direction": ("HalfCheetah-v5", {}),
    "half-cheetah-velocity": ("HalfCheetah-v5", {}),
    "ant-direction": ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
}


class Envs(Protocol):
    """N episodes of each of B tasks, side by side."""

    obs_size: int
    action_size: int

    def draw(self) -> None:
        """Fresh tasks, before `reset`."""
        ...

    def reset(self) -> np.ndarray:
        """Starts every episode anew: observations [B, N, D]."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions [B, N, A] -> observations [B, N, D], rewards [B, N], whether it has ended [B, N]."""
        ...


class PointGoal:
    """A point that is rewarded for being near an unseen goal."""

    obs_size, action_size = 2, 2

    def __init__(self, tasks: int, episodes: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = (tasks, episodes, 2)

    def draw(self) -> None:
        cell = self.rng.integers(15, size=self.shape[0])  # of a 4 by 4 grid; the last is held out
        corner = np.stack([cell // 4, cell % 4], -1) / 4 - 0.5
        self.goal = (corner + self.rng.uniform(0, 0.25, corner.shape)).astype(np.float32)[:, None]

    def reset(self) -> np.ndarray:
        self.position = np.zeros(self.shape, np.float32)
        return self.position

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.position = self.position + MAX_STEP * np.clip(action, -1, 1)
        away = self.position - self.goal
        return self.position, -np.linalg.norm(away, axis=-1), (np.abs(away) < 0.01).all(-1)


class Mujoco:
    """Gymnasium's robots, one after the other, as its `SyncVectorEnv` but without its copies.

    An episode that has ended is not stepped on.
    """

    def __init__(self, family: str, tasks: int, episodes: int, seed: int) -> None:
        self.family, self.shape = family, (tasks, episodes)
        self.rng = np.random.default_rng(seed)
        name, arguments = ROBOTS[family]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model file, on import
            import gymnasium
            import mujoco

            mujoco.set_mju_user_warning(lambda message: None)  # nor a line a robot, here and in a file
            robots = [gymnasium.make(name, **arguments) for _ in range(tasks * episodes)]
        self.robots: list[Any] = [robot.unwrapped for robot in robots]
        for index, robot in enumerate(self.robots):
            robot.reset(seed=seed + index)
        self.obs_size = self.robots[0].observation_space.shape[0]
        self.action_size = self.robots[0].action_space.shape[0]
        self.velocities = self.robots[0].model.nv

    def draw(self) -> None:
        tasks = (self.shape[0], 1)
        if self.family == "half-cheetah-velocity":
            speed = self.rng.uniform(0, 1.75, tasks)
            self.task = np.where(speed < 1, speed, speed + 0.25)  # those from 1 to 1.25 m/s are held out
        else:
            self.task = self.rng.choice([-1.0, 1.0], tasks)

    def reset(self) -> np.ndarray:
        self.obs = np.stack([robot.reset()[0] for robot in self.robots])
        self.ended = np.zeros(len(self.robots), bool)
        return self._observations()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        clipped = np.clip(action, -1, 1)
        velocity = np.zeros(len(self.robots))
        for index, one in enumerate(clipped.reshape(len(self.robots), -1)):
            if not self.ended[index]:
                self.obs[index], _, self.ended[index], _, info = self.robots[index].step(one)
                velocity[index] = info["x_velocity"]
        reward = self._reward(velocity.reshape(self.shape), (clipped**2).sum(-1)).astype(np.float32)
        return self._observations(), reward, self.ended.reshape(self.shape).copy()

    def _reward(self, velocity: np.ndarray, effort: np.ndarray) -> np.ndarray:
        if self.family == "half-cheetah-velocity":
            return -np.abs(velocity - self.task) - 0.05 * effort
        if self.family == "half-cheetah-direction":
            return self.task * velocity - 0.1 * effort
        return self.task * velocity + 0.05 - 0.005 * effort

    def _observations(self) -> np.ndarray:
        obs = self.obs.astype(np.float32)
        obs[:, -self.velocities :] *= SCALE_OF_VELOCITIES
        return obs.reshape(*self.shape, -1)


def make(family: str, tasks: int, episodes: int, seed: int) -> Envs:
    """The environments of a family's tasks."""
    if family == "point-goal":
        return PointGoal(tasks, episodes, seed)
    return Mujoco(family, tasks, episodes, seed)
