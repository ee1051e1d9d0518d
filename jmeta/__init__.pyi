from . import (
    algorithms,
    distributions,
    envs,
    estimators,
    evaluation,
    inner,
    optimizers,
    parallel,
    policies,
    rollouts,
    runtime,
    tasks,
    training,
    types,
)
from .evaluation import evaluate
from .training import train

__version__: str

__all__ = [
    "algorithms",
    "distributions",
    "envs",
    "estimators",
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
    "training",
    "types",
]
