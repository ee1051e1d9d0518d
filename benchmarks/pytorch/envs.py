"""Environments of several tasks at once, as a good user of PyTorch has them: vectorised NumPy and MuJoCo."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np

MAX_STEP = 0.1  # of the point, as in jmeta.envs.point_mass
SCALE_OF_VELOCITIES = 0.1  # in observations, as in jmeta's


class Envs(Protocol):
    """N episodes of each of B tasks, side by side."""

    obs_size: int
    action_size: int

    def reset(self) -> np.ndarray:
        """Starts every episode anew: observations [B, N, D]."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions [B, N, A] -> observations [B, N, D], rewards [B, N], terminated [B, N]."""
        ...


class PointGoal:
    """`jmeta.tasks.point_goal`: a point that is rewarded for being near an unseen goal."""

    obs_size, action_size = 2, 2

    def __init__(self, tasks: int, episodes: int, seed: int) -> None:
        self.goal = np.random.default_rng(seed).uniform(-0.5, 0.5, (tasks, 1, 2)).astype(np.float32)
        self.shape = (tasks, episodes, 2)

    def reset(self) -> np.ndarray:
        self.position = np.zeros(self.shape, np.float32)
        return self.position

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.position = self.position + MAX_STEP * np.clip(action, -1, 1)
        away = self.position - self.goal
        return self.position, -np.linalg.norm(away, axis=-1), (np.abs(away) < 0.01).all(-1)


class MujocoDirection:
    """Gymnasium's half-cheetah or ant, one direction a task, with jmeta's observations and rewards."""

    def __init__(self, name: str, tasks: int, episodes: int, seed: int) -> None:
        self.ant = name == "ant-direction"
        self.shape = (tasks, episodes)
        self.direction = np.random.default_rng(seed).choice([-1.0, 1.0], (tasks, 1)).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model file, on import
            import gymnasium
            from gymnasium.vector import AutoresetMode, SyncVectorEnv

            make = self._ant if self.ant else self._half_cheetah
            self.envs = SyncVectorEnv(
                [lambda: make(gymnasium)] * (tasks * episodes), autoreset_mode=AutoresetMode.DISABLED
            )
        self.obs_size = self.envs.single_observation_space.shape[0]
        self.action_size = self.envs.single_action_space.shape[0]
        self.velocities = self.envs.envs[0].unwrapped.model.nv
        self.seed: int | None = seed

    @staticmethod
    def _half_cheetah(gymnasium: Any) -> Any:
        return gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.1, disable_env_checker=True)

    @staticmethod
    def _ant(gymnasium: Any) -> Any:
        return gymnasium.make(
            "Ant-v5",
            include_cfrc_ext_in_observation=False,
            contact_cost_weight=0.0,
            ctrl_cost_weight=0.005,
            healthy_reward=0.05,
            disable_env_checker=True,
        )

    def _observations(self, obs: np.ndarray) -> np.ndarray:
        obs = obs.astype(np.float32)
        obs[:, -self.velocities :] *= SCALE_OF_VELOCITIES
        return obs.reshape(*self.shape, -1)

    def reset(self) -> np.ndarray:
        obs, _ = self.envs.reset(seed=self.seed)
        self.seed = None
        return self._observations(obs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        flat = np.clip(action, -1, 1).reshape(-1, self.action_size)
        obs, reward, terminated, _, info = self.envs.step(flat)
        # Gymnasium pays for running forward: turned round where the task is to run backward.
        forward = info["reward_forward" if self.ant else "reward_run"].reshape(self.shape)
        reward = reward.reshape(self.shape) + (self.direction - 1) * forward
        return self._observations(obs), reward.astype(np.float32), terminated.reshape(self.shape)


def make(family: str, tasks: int, episodes: int, seed: int) -> Envs:
    """The environments of a family's tasks."""
    if family == "point-goal":
        return PointGoal(tasks, episodes, seed)
    return MujocoDirection(family, tasks, episodes, seed)
