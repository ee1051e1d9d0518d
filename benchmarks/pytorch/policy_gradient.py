"""The mathematics of one task in PyTorch: policy, surrogate, inner steps, divergence; and advantages.

Parameters are a flat tuple of tensors: kernels and biases of the layers in turn, then the log standard
deviation. The estimators are those of `jmeta`: likelihood-ratio surrogates divided by N T, generalised
advantages over a linear baseline fitted for every task and step again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Params = tuple[Tensor, ...]
MIN_LOG_STD = -3.0
REGULARIZATION, FOLDS = 1e-2, 5  # of the baseline


class Batch(NamedTuple):
    """Episodes of one task [N, T, ...], or of several [B, N, T, ...]."""

    obs: Tensor  # [N, T, D]
    action: Tensor  # [N, T, A]
    log_prob: Tensor  # [N, T] of the policy that sampled
    advantage: Tensor  # [N, T]
    mask: Tensor  # [N, T] 1 on steps that were taken


class TaskData(NamedTuple):
    """What one task's meta-gradient is computed from, or with a leading [B] that of several."""

    pre: Batch  # [K, N, T, ...] of the inner steps
    post: Batch  # [N, T, ...] of the adapted policy
    mean: Tensor  # [N, T, A] of the policy that collected `post`
    log_std: Tensor  # [A]


def output(params: Params, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [..., A] and log standard deviation [A] of the actions: a perceptron with tanh."""
    *layers, log_std = params
    x = obs
    for kernel, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = torch.tanh(x @ kernel + bias)
    return x @ layers[-2] + layers[-1], log_std.clamp(min=MIN_LOG_STD)


def log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Log-density [...] of actions [..., A]."""
    standardized = (action - mean) * torch.exp(-log_std)
    return -(0.5 * standardized**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def surrogate(params: Params, batch: Batch) -> Tensor:
    """Minus the mean of likelihood ratio times advantage, over all N T steps."""
    ratio = torch.exp(batch.mask * (log_prob(*output(params, batch.obs), batch.action) - batch.log_prob))
    return -(batch.mask * ratio * batch.advantage).sum() / batch.mask.numel()


def clipped_surrogate(params: Params, batch: Batch, clip: float = 0.2) -> Tensor:
    """PPO's: as `surrogate`, pessimistic."""
    ratio = torch.exp(batch.mask * (log_prob(*output(params, batch.obs), batch.action) - batch.log_prob))
    clipped = ratio.clamp(1 - clip, 1 + clip)
    better = torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
    return -(batch.mask * better).sum() / batch.mask.numel()


Gradient = Callable[[Callable[[Params, Batch], Tensor], Params, Batch], Params]


def gradient_by_tape(
    loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch, again: bool = True
) -> Params:
    """Gradient by the tape, that can be differentiated again if so asked."""
    return torch.autograd.grad(loss(params, batch), params, create_graph=again)


def gradient_by_function(loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch) -> Params:
    """Gradient by `torch.func`, which can be vmapped and compiled."""
    return torch.func.grad(loss)(params, batch)


def adapt(params: Params, pre: Batch, learning_rate: float, gradient: Gradient) -> Params:
    """K inner steps on stored data [K, N, T, ...]."""
    for step in range(pre.mask.shape[0]):
        slope = gradient(surrogate, params, Batch(*(x[step] for x in pre)))
        params = tuple(p - learning_rate * g for p, g in zip(params, slope, strict=True))
    return params


def divergence(params: Params, data: TaskData) -> Tensor:
    """Mean KL(policy that collected || policy at `params`) over the steps after adaptation."""
    mean, log_std = output(params, data.post.obs)
    log_ratio = log_std - data.log_std
    squared = ((data.mean - mean) * torch.exp(-log_std)) ** 2
    kl = (log_ratio + 0.5 * (torch.exp(-2 * log_ratio) + squared - 1)).sum(-1)
    return (data.post.mask * kl).sum() / data.post.mask.sum()


def fisher_product(params: Params, vector: Params, data: TaskData, learning_rate: float) -> Params:
    """Hessian of the divergence times a vector at the policy that collected: J^T F J v, as in jmeta.

    J is the Jacobian of the adapted outputs, F their Fisher information.
    """

    def adapted(params: Params) -> tuple[Tensor, Tensor]:
        return output(adapt(params, data.pre, learning_rate, gradient_by_function), data.post.obs)

    (_, log_std), (mean_change, log_std_change) = torch.func.jvp(adapted, (params,), (vector,))
    weight = (data.post.mask / data.post.mask.sum())[..., None]
    _, pull = torch.func.vjp(adapted, params)
    return pull((weight * torch.exp(-2 * log_std) * mean_change, 2 * log_std_change))[0]


def advantages(
    obs: Tensor, reward: Tensor, mask: Tensor, *, discount: float, gae_lambda: float, normalize: bool
) -> Tensor:
    """Advantages [B, N, T] of episodes of B tasks, each with a linear baseline of its own."""
    horizon = reward.shape[-1]

    def backward(x: Tensor, decay: float) -> Tensor:
        sums, later = torch.empty_like(x), torch.zeros_like(x[..., 0])
        for t in range(horizon - 1, -1, -1):
            later = mask[..., t] * (x[..., t] + decay * later)
            sums[..., t] = later
        return sums

    returns = backward(reward, discount)
    value = torch.stack([linear_baseline(*task) for task in zip(obs, returns, mask, strict=True)])
    following = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)  # 0 where it has ended
    advantage = backward(reward + discount * following - value, discount * gae_lambda)
    if not normalize:
        return advantage
    steps = mask.sum((1, 2), keepdim=True)
    centered = mask * (advantage - advantage.sum((1, 2), keepdim=True) / steps)
    deviation = ((centered**2).sum((1, 2), keepdim=True) / steps).sqrt()
    return torch.where(deviation > 0, centered / deviation, 0)


def linear_baseline(obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """jmeta's baseline of one task's episodes [N, T], at least two: fitted to the folds of other episodes.

    Its projection of long observations and its guards against numbers out of range are left out.
    """
    num_episodes, horizon = mask.shape
    fold = torch.arange(num_episodes) % min(num_episodes, FOLDS)
    clipped = obs.clamp(-10, 10)
    features = torch.cat([clipped, clipped**2], -1)
    by_time, by_obs = torch.zeros_like(returns), torch.zeros_like(returns)
    for k in range(int(fold.max()) + 1):
        out, weight = fold == k, mask * (fold != k)[:, None]
        count = weight.sum(0)
        known = torch.where(count > 0, torch.arange(horizon), 0).cummax(0).values
        mean_x = torch.einsum("nt,ntf->tf", weight, features) / count.clamp(min=1)[:, None]
        mean_y = (weight * returns).sum(0) / count.clamp(min=1)
        mean_x, mean_y = mean_x[known], mean_y[known]
        x, y = features - mean_x, returns - mean_y
        gram = torch.einsum("nt,ntf,ntg->fg", weight, x, x)
        moment = torch.einsum("nt,ntf,nt->f", weight, x, y)
        square = gram.diagonal()
        varies = square > 1e-6 * square.max()
        scale = torch.where(varies, 1 / square.sqrt(), 0)
        scaled = gram * scale[:, None] * scale + REGULARIZATION * torch.eye(len(scale))
        coefficients = scale * torch.linalg.solve(scaled, scale * moment)
        by_time[out] = mean_y
        by_obs[out] = x[out] @ coefficients
    products = {
        (i, j): (mask * a * b).sum()
        for i, a in enumerate((by_time, by_obs, returns))
        for j, b in enumerate((by_time, by_obs, returns))
    }
    factors = [torch.zeros(()), torch.zeros(())]
    for _ in range(8):
        for i in (0, 1):
            aim = products[i, 2] - factors[1 - i] * products[0, 1]
            factors[i] = (aim / products[i, i]).clamp(0, 1) if products[i, i] > 0 else torch.zeros(())
    return mask * (factors[0] * by_time + factors[1] * by_obs)
