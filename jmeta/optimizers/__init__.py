"""Outer optimizers: optax transformations, by name. Each factory declares its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jmeta.checks import at_least, boolean, in_interval, not_negative
from jmeta.optimizers.clip import clip_by_global_norm, global_norm
from jmeta.optimizers.promotion import lenient_promotion
from jmeta.optimizers.requirements import (
    Requirement,
    check_inner,
    check_no_divergence,
    differentiable_at_zero,
    requirement,
    update_arguments,
)
from jmeta.optimizers.skip_nonfinite import skip_nonfinite
from jmeta.optimizers.step_size import scale_by_step_size
from jmeta.optimizers.trpo import trpo
from jmeta.types import Metrics, Params, PyTree

# As an inner optimizer Adam is differentiated, and the root of a second moment of 0 has no derivative.
_EPS_ROOT = 1e-16


def sgd(
    *,
    learning_rate: float = 0.1,
    momentum: float = 0.0,
    decay: bool = False,
    num_iterations: int | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformation:
    """Gradient descent, with heavy-ball momentum where `momentum` > 0.

    Args:
      learning_rate: step size.
      momentum: decay of the momentum, in [0, 1).
      decay: whether the step size falls linearly to 0 over the run, from iteration 0 on.
      num_iterations: meta-iterations in the run, which `decay` needs. A run's configuration fills it in.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    in_interval("[0, 1)", momentum=momentum)
    without = isinstance(momentum, int | float) and momentum == 0
    trace = () if without else (optax.trace(momentum),)
    step_size = _step_size(learning_rate, decay, num_iterations)
    return _clipped(max_grad_norm, *trace, step_size)


def adam(
    *,
    learning_rate: float = 1e-3,
    decay: bool = False,
    num_iterations: int | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015).

    Args:
      learning_rate: step size.
      decay: whether the step size falls linearly to 0 over the run, from iteration 0 on.
      num_iterations: meta-iterations in the run, which `decay` needs. A run's configuration fills it in.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    step_size = _step_size(learning_rate, decay, num_iterations)
    return _clipped(max_grad_norm, optax.scale_by_adam(eps_root=_EPS_ROOT), step_size)


def adamw(
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    decay: bool = False,
    num_iterations: int | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), of matrices alone.

    Biases, log standard deviations and observation statistics do not decay.

    Args:
      learning_rate: step size.
      weight_decay: what is taken off a weight per update, as a fraction of `learning_rate` times it.
      decay: whether the step size falls linearly to 0 over the run, from iteration 0 on.
      num_iterations: meta-iterations in the run, which `decay` needs. A run's configuration fills it in.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    not_negative(weight_decay=weight_decay)

    def is_matrix(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    decay_weights = optax.add_decayed_weights(weight_decay, is_matrix)
    step_size = _step_size(learning_rate, decay, num_iterations)
    return _clipped(max_grad_norm, optax.scale_by_adam(eps_root=_EPS_ROOT), decay_weights, step_size)


def rmsprop(
    *,
    learning_rate: float = 1e-3,
    decay: bool = False,
    num_iterations: int | None = None,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformation:
    """RMSProp (Tieleman and Hinton 2012).

    Args:
      learning_rate: step size.
      decay: whether the step size falls linearly to 0 over the run, from iteration 0 on.
      num_iterations: meta-iterations in the run, which `decay` needs. A run's configuration fills it in.
      max_grad_norm: bound on the gradient's global norm; None for no bound.

    Raises:
      ValueError: an argument is out of its range.
    """
    step_size = _step_size(learning_rate, decay, num_iterations)
    return _clipped(max_grad_norm, optax.scale_by_rms(), step_size)


REGISTRY: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "trpo": trpo,
}

__all__ = [
    "REGISTRY",
    "Requirement",
    "adam",
    "adamw",
    "check_no_divergence",
    "clip_by_global_norm",
    "check_inner",
    "differentiable_at_zero",
    "global_norm",
    "lenient_promotion",
    "report",
    "requirement",
    "rmsprop",
    "scale_by_step_size",
    "sgd",
    "skip_nonfinite",
    "trpo",
    "update_arguments",
]


def report(opt_state: PyTree) -> Metrics:
    """What an optimizer's state says about its last update, as metrics.

    Args:
      opt_state: of any optax transformation.

    Returns:
      `outer_learning_rate`: the step size of the last update, where exactly one transformation keeps a
        `learning_rate` in its state: the optimizers of this module, `optax.inject_hyperparams` and line
        searches do, and optax's own Adam does not. `optax.contrib.reduce_on_plateau` scales it.
      `rejected`: the updates so far in which TRPO changed nothing, where the optimizer is TRPO.
    """
    metrics: Metrics = {}
    rates = _scalars(opt_state, "learning_rate")
    if len(rates) == 1:
        scales = _scalars(opt_state, "scale", of="ReduceLROnPlateauState")
        metrics["outer_learning_rate"] = jnp.prod(jnp.stack([*rates, *scales]))
    if rejected := _scalars(opt_state, "rejected", of="TrpoState"):
        metrics["rejected"] = jnp.asarray(sum(rejected))
    return metrics


def _scalars(opt_state: PyTree, field: str, of: str | None = None) -> list[jax.Array]:
    """The scalars of that name in an optimizer's state, of one kind of state only if `of` names it."""
    found = optax.tree.get_all_with_path(opt_state, field)
    return [
        jnp.asarray(value)
        for path, value in found
        if jnp.shape(value) == () and (of is None or getattr(path[-1], "tuple_name", None) == of)
    ]


def _step_size(
    learning_rate: float, decay: bool, num_iterations: int | None
) -> optax.GradientTransformationExtraArgs:
    boolean(decay=decay)
    if decay and num_iterations is None:
        raise ValueError("num_iterations must be given where decay is True, got None")
    if num_iterations is not None:
        at_least(0, num_iterations=num_iterations)
    return scale_by_step_size(learning_rate, num_iterations if decay else None)


def _clipped(
    max_grad_norm: float | None, *transformations: optax.GradientTransformation
) -> optax.GradientTransformation:
    clip = () if max_grad_norm is None else (clip_by_global_norm(max_grad_norm),)
    return optax.chain(*clip, *transformations)
