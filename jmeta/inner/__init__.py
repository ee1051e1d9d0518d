"""What is learned from while adapting: each factory gives a `Learner` for the one inner loop."""

from collections.abc import Callable

from jmeta.inner import policy_gradient, q_learning, supervised
from jmeta.inner.loop import Learner

REGISTRY: dict[str, Callable[..., Learner]] = {
    "policy-gradient": policy_gradient.learner,
    "q-learning": q_learning.learner,
    "supervised": supervised.learner,
}

__all__ = ["REGISTRY", "Learner"]
