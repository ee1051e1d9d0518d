"""MAML in PyTorch: sampling and derivatives of a share of the tasks, in one process or in one a core.

Three ways to take the derivatives, as users do: `eager`, a tape and a loop over the tasks (as learn2learn
and garage); `vmap`, `torch.func` over the tasks, a few at once; `compile`, one task's derivatives compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.pytorch import envs as environments
from benchmarks.pytorch import policy_gradient as pg
from benchmarks.pytorch.policy_gradient import Batch, Params, TaskData

STYLES = ("eager", "vmap", "compile")


# Tasks at once of `vmap`, for each thread: of 1 to 20 the fastest in a process a core. It bounds the memory.
CHUNK = 5


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained, and how; the numbers are jmeta's."""

    family: str
    tasks: int
    episodes: int
    horizon: int
    inner_steps: int
    inner_learning_rate: float
    discount: float
    gae_lambda: float
    normalize_advantages: bool
    epochs: int
    optimizer: dict[str, Any]  # "name", trpo or adam, and its arguments


def flatten(params: Params) -> Tensor:
    """One vector."""
    return torch.cat([p.reshape(-1) for p in params])


def unflatten(vector: Tensor, like: Params) -> Params:
    """The vector in the shapes of `like`."""
    parts = vector.split([p.numel() for p in like])
    return tuple(part.reshape(p.shape) for part, p in zip(parts, like, strict=True))


class Share:
    """A share of the tasks: collects data from them and differentiates on it. Parameters are flat vectors."""

    def __init__(self, setting: Setting, style: str, params: Params, tasks: int, seed: int, threads: int):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.setting, self.style, self.tasks, self.shapes = setting, style, tasks, params
        self.envs: environments.Envs | None = None
        self.seed = seed
        self.data: TaskData
        self.each: list[TaskData]
        self.params: Params  # where `curvature` is taken
        self.slope: Tensor  # of the divergence there; eager's graph of it is kept for all products
        rate = setting.inner_learning_rate
        loss = pg.surrogate if setting.optimizer["name"] == "trpo" else pg.clipped_surrogate
        gradient: pg.Gradient = pg.gradient_by_function
        plain_gradient: pg.Gradient = pg.gradient_by_function
        if style == "eager":
            gradient = pg.gradient_by_tape
            plain_gradient = functools.partial(pg.gradient_by_tape, again=False)

        def after(params: Params, data: TaskData) -> Tensor:
            return loss(pg.adapt(params, data.pre, rate, gradient), data.post)

        def kl(params: Params, data: TaskData) -> Tensor:
            return pg.divergence(pg.adapt(params, data.pre, rate, gradient), data)

        def curvature(params: Params, vector: Params, data: TaskData) -> Params:
            return pg.fisher_product(params, vector, data, rate)

        def loss_and_kl(params: Params, data: TaskData) -> tuple[Tensor, Tensor]:
            new = tuple(p.detach() for p in pg.adapt(params, data.pre, rate, plain_gradient))
            return loss(new, data.post), pg.divergence(new, data)

        self._after, self._kl = after, kl
        functions: dict[str, Callable[..., Any]] = {
            "gradient": torch.func.grad(after),
            "curvature": curvature,
            "loss_and_kl": loss_and_kl,
        }
        over = {"gradient": (None, 0), "curvature": (None, None, 0), "loss_and_kl": (None, 0)}
        if style == "vmap":
            functions = {
                name: torch.func.vmap(f, over[name], chunk_size=CHUNK * threads)
                for name, f in functions.items()
            }
        elif style == "compile":
            functions = {name: torch.compile(f) for name, f in functions.items()}
        self.functions = functions

    def _sample(self, params: Params) -> tuple[Batch, float, Tensor]:
        """Episodes of every task under its parameters [B, ...], the sum of their rewards, and their means."""
        setting = self.setting
        assert self.envs is not None
        obs, alive = torch.from_numpy(self.envs.reset()), torch.ones(self.tasks, setting.episodes)
        # A layer of every task is one batched product.
        layers = tuple(p if p.ndim == 3 else p[:, None] for p in params)
        steps: list[tuple[Tensor, ...]] = []
        for _ in range(setting.horizon):
            mean, log_std = pg.output(layers, obs)
            action = mean + log_std.exp() * torch.randn_like(mean)
            log_prob = pg.log_prob(mean, log_std, action)
            new_obs, reward, terminated = self.envs.step(action.numpy())
            steps.append((obs, action, log_prob, alive * torch.from_numpy(reward), alive, mean))
            alive = alive * torch.from_numpy(1 - terminated.astype(np.float32))
            obs = torch.from_numpy(new_obs)
        obs, action, log_prob, reward, mask, mean = (torch.stack(x, 2) for x in zip(*steps, strict=True))
        advantage = pg.advantages(
            obs,
            reward,
            mask,
            discount=setting.discount,
            gae_lambda=setting.gae_lambda,
            normalize=setting.normalize_advantages,
        )
        return Batch(obs, action, log_prob, advantage, mask), reward.sum().item(), mean

    @torch.no_grad()
    def collect(self, flat: Tensor) -> tuple[float, float, float]:
        """Takes data of fresh tasks: of every inner step, and of the adapted policies.

        Returns the sums of all rewards before and after, and the steps that were taken.
        """
        setting = self.setting
        if self.envs is None:
            self.envs = environments.make(setting.family, self.tasks, setting.episodes, self.seed)
        self.envs.draw()
        params = tuple(p.expand(self.tasks, *p.shape) for p in unflatten(flat, self.shapes))
        pre, rewards = [], []
        slopes = torch.func.vmap(torch.func.grad(pg.surrogate))
        for _ in range(setting.inner_steps):
            batch, total, _ = self._sample(params)
            pre.append(batch)
            rewards.append(total)
            rate = setting.inner_learning_rate
            params = tuple(p - rate * g for p, g in zip(params, slopes(params, batch), strict=True))
        post, after, mean = self._sample(params)
        stacked = Batch(*(torch.stack(x, 1) for x in zip(*pre, strict=True)))
        self._keep(TaskData(stacked, post, mean, params[-1].clamp(min=pg.MIN_LOG_STD)))
        return rewards[0], after, stacked.mask.sum().item() + post.mask.sum().item()

    def load(self, data: Any) -> None:
        """Takes data [B, ...] as nested tuples of arrays in place of collecting it."""
        pre, post, mean, log_std = data
        tensors = [Batch(*(torch.tensor(x) for x in part)) for part in (pre, post)]
        self._keep(TaskData(*tensors, torch.tensor(mean), torch.tensor(log_std)))

    def _keep(self, data: TaskData) -> None:
        """Takes data [B, ...]: all of it, and apart for each task."""
        pre, post, *rest = self.data = data
        self.each = [
            TaskData(
                Batch(*(x[task] for x in pre)), Batch(*(x[task] for x in post)), *(x[task] for x in rest)
            )
            for task in range(self.tasks)
        ]

    def _sum_like_params(self, name: str, *arguments: Any) -> Tensor:
        """Sum over the tasks of a function that gives something like the parameters."""
        function = self.functions[name]
        if self.style == "vmap":
            return flatten(tuple(x.sum(0) for x in function(*arguments, self.data)))
        return sum(flatten(function(*arguments, task)) for task in self.each)

    def gradient(self, flat: Tensor) -> Tensor:
        """Sum over the tasks of the meta-gradient."""
        params = unflatten(flat, self.shapes)
        if self.style != "eager":
            return self._sum_like_params("gradient", params)
        params = tuple(p.detach().requires_grad_() for p in params)
        for task in self.each:  # one task's graph at a time
            self._after(params, task).backward()
        return flatten(tuple(p.grad for p in params))

    def linearize(self, flat: Tensor) -> None:
        """Says where `curvature` is taken: at the parameters that collected the data."""
        self.params = unflatten(flat, self.shapes)
        if self.style == "eager":
            self.params = tuple(p.detach().requires_grad_() for p in self.params)
            slopes = (
                torch.autograd.grad(self._kl(self.params, task), self.params, create_graph=True)
                for task in self.each
            )
            self.slope = sum(flatten(slope) for slope in slopes)

    def curvature(self, vector: Tensor) -> Tensor:
        """Sum over the tasks of the divergence's Hessian times a vector."""
        if self.style != "eager":
            return self._sum_like_params("curvature", self.params, unflatten(vector, self.shapes))
        return flatten(torch.autograd.grad(self.slope @ vector, self.params, retain_graph=True))

    def loss_and_kl(self, flat: Tensor) -> Tensor:
        """Sums over the tasks [2] of the loss after adaptation and of the divergence."""
        params = unflatten(flat, self.shapes)
        if self.style == "vmap":
            return torch.stack([x.sum() for x in self.functions["loss_and_kl"](params, self.data)]).detach()
        if self.style == "eager":
            params = tuple(p.detach().requires_grad_() for p in params)
        each = [torch.stack(self.functions["loss_and_kl"](params, task)).detach() for task in self.each]
        return torch.stack(each).sum(0)

    def memory(self) -> float:
        """Peak of this process, MiB."""
        return common.peak_memory()

    def forget_memory(self) -> None:
        """The peak is that from here on."""
        common.forget_peak_memory()


def _serve(pipe: Connection, arguments: tuple[Any, ...]) -> None:
    """A worker process: answers calls on its share until the learner is gone."""
    share = Share(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            name, *values = pipe.recv()
            vectors = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)
            result = getattr(share, name)(*vectors)
            pipe.send(result.numpy() if isinstance(result, Tensor) else result)


class Learner:
    """The outer update over all shares, in this process or in one a core with one thread each."""

    def __init__(self, setting: Setting, style: str, params: list[np.ndarray], processes: int, seed: int = 0):
        shapes = tuple(torch.tensor(p) for p in params)
        self.setting, self.processes = setting, processes
        self.flat = flatten(shapes)
        if setting.optimizer["name"] == "adam":
            self.adam = torch.optim.Adam([self.flat], lr=setting.optimizer["learning_rate"])
        if processes == 1:
            self.share = Share(setting, style, shapes, setting.tasks, seed, common.cores())
            return
        context = multiprocessing.get_context("spawn")
        os.environ["OMP_NUM_THREADS"] = "1"
        self.pipes = []
        bounds = np.linspace(0, setting.tasks, processes + 1).astype(int)
        self.parts = [slice(*pair) for pair in itertools.pairwise(bounds)]  # of the tasks, a share each
        for index, part in enumerate(self.parts):
            here, there = context.Pipe()
            arguments = (setting, style, shapes, int(part.stop - part.start), seed + index, 1)
            context.Process(target=_serve, args=(there, arguments), daemon=True).start()
            self.pipes.append(here)

    def call(self, name: str, *vectors: Tensor) -> list[Any]:
        """The results of all shares."""
        if self.processes == 1:
            return [getattr(self.share, name)(*vectors)]
        for pipe in self.pipes:
            pipe.send((name, *(v.numpy() for v in vectors)))
        results = [pipe.recv() for pipe in self.pipes]
        return [torch.from_numpy(r) if isinstance(r, np.ndarray) else r for r in results]

    def load(self, data: Any) -> None:
        """Gives every share its part of stored data [B, ...], nested tuples of arrays."""

        def of(part: slice, x: Any) -> Any:
            return x[part] if isinstance(x, np.ndarray) else tuple(of(part, y) for y in x)

        if self.processes == 1:
            self.share.load(data)
            return
        for part, pipe in zip(self.parts, self.pipes, strict=True):
            pipe.send(("load", of(part, data)))
        for pipe in self.pipes:
            pipe.recv()

    def mean(self, name: str, *vectors: Tensor) -> Tensor:
        """Mean over the tasks of what the shares sum up."""
        return sum(self.call(name, *vectors)) / self.setting.tasks

    def iteration(self) -> dict[str, float]:
        """One meta-iteration: its seconds of sampling and of the update, returns, steps."""
        started = time.perf_counter()
        found = self.call("collect", self.flat)
        sampled = time.perf_counter()
        if self.setting.optimizer["name"] == "trpo":
            self._trpo()
        else:
            for _ in range(self.setting.epochs):
                self.flat.grad = self.mean("gradient", self.flat)
                self.adam.step()
        done = time.perf_counter()
        before, after, steps = np.sum(found, 0)
        episodes = self.setting.tasks * self.setting.episodes
        return {
            "sampling": sampled - started,
            "update": done - sampled,
            "return_before": before / episodes,
            "return_after": after / episodes,
            "env_steps": steps,
        }

    def _trpo(self) -> None:
        optimizer, gradient = self.setting.optimizer, self.mean("gradient", self.flat)
        self.call("linearize", self.flat)

        def damped(vector: Tensor) -> Tensor:
            return self.mean("curvature", vector) + optimizer["cg_damping"] * vector

        direction, curvature = conjugate_gradient(damped, gradient, optimizer["cg_iterations"])
        full_step = -direction * torch.sqrt(2 * optimizer["max_kl"] / curvature)
        loss_before, _ = self.mean("loss_and_kl", self.flat)
        for tried in range(optimizer["max_backtracks"] + 1):
            candidate = self.flat + optimizer["backtrack_ratio"] ** tried * full_step
            loss, kl = self.mean("loss_and_kl", candidate)
            if loss < loss_before and kl <= optimizer["max_kl"]:
                self.flat = candidate
                return

    def memory(self) -> float:
        """Peak of all processes, MiB."""
        return common.peak_memory() + (sum(self.call("memory")) if self.processes > 1 else 0.0)

    def forget_memory(self) -> None:
        """The peak is that from here on."""
        common.forget_peak_memory()
        self.call("forget_memory")


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Solves A x = b, from x = 0, and gives x^T A x; ends early where jmeta does."""
    x, residual, search = torch.zeros_like(b), b.clone(), b.clone()
    square = residual @ residual
    smallest = 1e-10 * square
    for _ in range(iterations):
        image = product(search)
        step = square / (search @ image)
        x = x + step * search
        residual = residual - step * image
        new_square = residual @ residual
        search = residual + new_square / square * search
        square = new_square
        if square <= smallest:
            break
    return x, x @ (b - residual)
