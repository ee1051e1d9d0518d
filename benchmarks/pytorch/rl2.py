"""RL² in PyTorch: PPO over trials of bandits or random MDPs with a GRU, all trials side by side.

The estimators are those of `jmeta.algorithms.memory.rl2`: the critic compares a trial with the mean of all.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import common


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained, and how; the numbers are jmeta's."""

    family: str  # bandit or random-mdp
    trials: int
    episodes: int
    horizon: int
    num_actions: int
    num_states: int
    size: int
    epochs: int
    minibatches: int
    learning_rate: float
    decay_iterations: int | None  # iterations over which the learning rate falls to 0
    max_grad_norm: float
    clip: float
    entropy_weight: float
    value_weight: float
    discount: float
    gae_lambda: float


class Trials(NamedTuple):
    """Trials [B, L, ...], all that is learned from."""

    inputs: Tensor  # [B, L, D]
    action: Tensor  # [B, L]
    log_prob: Tensor  # [B, L]
    advantage: Tensor  # [B, L]
    target: Tensor  # [B, L]


class Policy(nn.Module):
    """A gated recurrent unit with a policy and a critic head."""

    def __init__(self, num_inputs: int, num_actions: int, size: int) -> None:
        super().__init__()
        self.core = nn.GRU(num_inputs, size, batch_first=True)
        self.cell = nn.GRUCell(num_inputs, size)  # the same weights, a step at a time
        self.policy, self.critic = nn.Linear(size, num_actions), nn.Linear(size, 1)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.cell, name, getattr(self.core, f"{name}_l0"))
        for kernel in (self.core.weight_ih_l0, self.core.weight_hh_l0, self.critic.weight):
            nn.init.orthogonal_(kernel)
        nn.init.orthogonal_(self.policy.weight, 0.01)

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[..., H] -> logits [..., A] and values [...]."""
        return self.policy(hidden), self.critic(hidden)[..., 0]


class Learner:
    """Samples trials and learns from them."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(common.cores())
        self.setting = setting
        num_obs = setting.num_states
        self.policy = Policy(num_obs + setting.num_actions + 3, setting.num_actions, setting.size)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=setting.learning_rate)
        decay = setting.decay_iterations or math.inf
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: max(0.0, 1 - n / decay))

    def _draw(self) -> None:
        """Fresh tasks."""
        setting = self.setting
        if setting.family == "bandit":
            self.probability = torch.rand(setting.trials, setting.num_actions)
            return
        shape = (setting.trials, setting.num_states, setting.num_actions)
        weights = torch.empty(*shape, setting.num_states).exponential_()
        self.transition = weights / weights.sum(-1, keepdim=True)
        self.mean_reward = 1 + torch.randn(shape)

    def _step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Next states and rewards [B]."""
        every = torch.arange(len(action))
        if self.setting.family == "bandit":
            return state, torch.bernoulli(self.probability[every, action])
        reward = self.mean_reward[every, state, action] + torch.randn(len(action))
        return torch.multinomial(self.transition[every, state, action], 1)[:, 0], reward

    @torch.no_grad()
    def sample(self) -> tuple[Tensor, ...]:
        """Inputs, actions, log-probabilities, rewards and values [B, L, ...] of trials on fresh tasks."""
        self._draw()
        setting = self.setting
        num, length = setting.trials, setting.episodes * setting.horizon
        state, hidden = torch.zeros(num, dtype=torch.long), torch.zeros(num, setting.size)
        last_action, last_reward = torch.zeros(num, setting.num_actions), torch.zeros(num)
        steps: list[tuple[Tensor, ...]] = []
        for t in range(length):
            start = t % setting.horizon == 0
            if start:
                state = torch.zeros_like(state)
            obs = nn.functional.one_hot(state, setting.num_states) * float(setting.family != "bandit")
            ended, first = torch.full((num, 1), float(start and t > 0)), torch.full((num, 1), float(start))
            inputs = torch.cat([obs, last_action, last_reward[:, None], ended, first], 1)
            hidden = self.policy.cell(inputs, hidden)
            logits, value = self.policy.heads(hidden)
            distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
            action = distribution.sample()
            state, reward = self._step(state, action)
            steps.append((inputs, action, distribution.log_prob(action), reward, value))
            last_action, last_reward = nn.functional.one_hot(action, setting.num_actions).float(), reward
        return tuple(torch.stack(x, 1) for x in zip(*steps, strict=True))

    def advantages(self, reward: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised advantages and the critic's targets [B, L]."""
        setting = self.setting

        def backward(x: Tensor, decay: float) -> Tensor:
            sums, later = torch.zeros_like(x), torch.zeros_like(x[:, 0])
            for t in range(x.shape[1] - 1, -1, -1):
                later = x[:, t] + decay * later
                sums[:, t] = later
            return sums

        to_go = backward(reward, setting.discount)
        mean = (to_go.sum(0) - to_go) / (len(to_go) - 1)  # of the other trials
        spread = ((to_go - mean) ** 2).mean().sqrt() + 1e-8
        value = mean + spread * value
        following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        delta = reward + setting.discount * following - value
        advantage = backward(delta, setting.discount * setting.gae_lambda)
        target = (advantage + value - mean) / spread
        return (advantage - advantage.mean()) / advantage.std(correction=0), target

    def loss(self, trials: Trials) -> Tensor:
        """PPO's, of whole trials."""
        setting = self.setting
        logits, value = self.policy.heads(self.policy.core(trials.inputs)[0])
        distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
        ratio = torch.exp(distribution.log_prob(trials.action) - trials.log_prob)
        clipped = ratio.clamp(1 - setting.clip, 1 + setting.clip)
        objective = torch.minimum(ratio * trials.advantage, clipped * trials.advantage).mean()
        error = ((value - trials.target) ** 2).mean()
        entropy = distribution.entropy().mean()
        return setting.value_weight * error - objective - setting.entropy_weight * entropy

    def iteration(self) -> dict[str, float]:
        """One iteration: its seconds of sampling and of the update, the return of a trial, steps."""
        setting = self.setting
        started = time.perf_counter()
        inputs, action, log_prob, reward, value = self.sample()
        sampled = time.perf_counter()
        trials = Trials(inputs, action, log_prob, *self.advantages(reward, value))
        for _ in range(setting.epochs):
            for chosen in torch.randperm(setting.trials).chunk(setting.minibatches):
                self.optimizer.zero_grad()
                self.loss(Trials(*(x[chosen] for x in trials))).backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), setting.max_grad_norm)
                self.optimizer.step()
        self.schedule.step()
        done = time.perf_counter()
        return {
            "sampling": sampled - started,
            "update": done - sampled,
            "return_trial": reward.sum(1).mean().item(),
            "env_steps": float(reward.numel()),
        }

    def memory(self) -> float:
        """Peak of this process, MiB."""
        return common.peak_memory()

    def forget_memory(self) -> None:
        """The peak is that from here on."""
        common.forget_peak_memory()
