"""What is learned from while adapting: each factory gives a `Learner` for the one inner loop."""

import inspect
from collections.abc import Callable

from jmeta.inner import policy_gradient, q_learning, supervised
from jmeta.inner.loop import Learner

REGISTRY: dict[str, Callable[..., Learner]] = {
    "policy-gradient": policy_gradient.learner,
    "q-learning": q_learning.learner,
    "supervised": supervised.learner,
}


def used_by(inner: str) -> set[str]:
    """The hyperparameters that a learner uses, of those that learners have."""
    parameters = inspect.signature(REGISTRY[inner]).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def unused_by(inner: str) -> set[str]:
    """The hyperparameters of other learners, which have no effect on this one."""
    return set().union(*map(used_by, REGISTRY)) - used_by(inner)


__all__ = ["REGISTRY", "Learner", "unused_by", "used_by"]
