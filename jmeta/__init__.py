"""jmeta: a functional meta-reinforcement-learning engine in JAX."""

from jmeta import (
    algorithms,
    evaluation,
    inner,
    optimizers,
    parallel,
    policies,
    rollouts,
    runtime,
    tasks,
    types,
)
from jmeta.evaluation import evaluate
from jmeta.training import train

__version__ = "0.1.0"

__all__ = [
    "algorithms",
    "evaluate",
    "evaluation",
    "inner",
    "optimizers",
    "parallel",
    "policies",
    "rollouts",
    "runtime",
    "tasks",
    "train",
    "types",
]
