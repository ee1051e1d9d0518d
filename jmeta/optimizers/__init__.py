"""Outer optimisers: optax transformations, by name. Each factory declares its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from jmeta.optimizers.skip_nonfinite import skip_nonfinite
from jmeta.optimizers.trpo import trpo
from jmeta.types import Params, Policy

# As an inner optimiser Adam is differentiated, and the root of a second moment of 0 has no derivative.
_EPS_ROOT = 1e-16


def sgd(
    *,
    learning_rate: float = 0.1,
    momentum: float = 0.0,
    decay_updates: int | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformation:
    """Gradient descent, with heavy-ball momentum where `momentum` > 0.

    Args:
      learning_rate: step size.
      momentum: decay of the momentum, in [0, 1).
      decay_updates: the optimiser's steps over which the step size falls linearly to 0; None keeps it. An
        iteration has as many as epochs times minibatches.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; must be at least 0 and below 1.")
    return _clipped(optax.sgd(_step_size(learning_rate, decay_updates), momentum or None), max_grad_norm)


def adam(
    *, learning_rate: float = 1e-3, decay_updates: int | None = None, max_grad_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015).

    Args:
      learning_rate: step size.
      decay_updates: the optimiser's steps over which the step size falls linearly to 0; None keeps it. An
        iteration has as many as epochs times minibatches.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    return _clipped(optax.adam(_step_size(learning_rate, decay_updates), eps_root=_EPS_ROOT), max_grad_norm)


def adamw(
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    decay_updates: int | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), of matrices alone.

    Biases, log standard deviations and observation statistics do not decay.

    Args:
      learning_rate: step size.
      weight_decay: what is taken off a weight per update, as a fraction of `learning_rate` times it.
      decay_updates: the optimiser's steps over which the step size falls linearly to 0; None keeps it. An
        iteration has as many as epochs times minibatches.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay}; must not be negative.")

    def is_matrix(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    optimizer = optax.adamw(
        _step_size(learning_rate, decay_updates),
        eps_root=_EPS_ROOT,
        weight_decay=weight_decay,
        mask=is_matrix,
    )
    return _clipped(optimizer, max_grad_norm)


def rmsprop(
    *, learning_rate: float = 1e-3, decay_updates: int | None = None, max_grad_norm: float | None = None
) -> optax.GradientTransformation:
    """RMSProp (Tieleman and Hinton 2012).

    Args:
      learning_rate: step size.
      decay_updates: the optimiser's steps over which the step size falls linearly to 0; None keeps it. An
        iteration has as many as epochs times minibatches.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    return _clipped(optax.rmsprop(_step_size(learning_rate, decay_updates)), max_grad_norm)


REGISTRY: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "trpo": trpo,
}

__all__ = [
    "REGISTRY",
    "adam",
    "adamw",
    "check_gradients_suffice",
    "rmsprop",
    "sgd",
    "skip_nonfinite",
    "trpo",
]


def check_gradients_suffice(algorithm: str, optimizer: optax.GradientTransformation, policy: Policy) -> None:
    """Raises ValueError for an optimiser that asks an algorithm for more than gradients, as TRPO does."""
    like = jax.eval_shape(policy.init, jax.random.key(0))
    try:
        jax.eval_shape(lambda params: optimizer.update(params, optimizer.init(params), params), like)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer of {algorithm} must do with gradients alone, as trpo does not: {error}"
        ) from error


def _step_size(learning_rate: float, decay_updates: int | None) -> optax.ScalarOrSchedule:
    if not learning_rate >= 0:
        raise ValueError(f"learning_rate is {learning_rate}; must not be negative.")
    if decay_updates is None:
        return learning_rate
    if decay_updates < 1:
        raise ValueError(f"decay_updates is {decay_updates}; must be at least 1, or None for no decay.")
    return optax.linear_schedule(learning_rate, 0.0, decay_updates)


def _clipped(
    optimizer: optax.GradientTransformation, max_grad_norm: float | None
) -> optax.GradientTransformation:
    if max_grad_norm is None:
        return optimizer
    if not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm is {max_grad_norm}; must be positive, or None for no bound.")
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optimizer)
