"""Meta-learning algorithms: each factory gives a `MetaAlgorithm`, whatever its family."""

from collections.abc import Callable

from jmeta.algorithms.gradient.maml import maml
from jmeta.algorithms.gradient.pretrain import pretrain
from jmeta.algorithms.gradient.scratch import scratch
from jmeta.types import MetaAlgorithm

REGISTRY: dict[str, Callable[..., MetaAlgorithm]] = {
    "maml": maml,
    "pretrain": pretrain,
    "scratch": scratch,
}

__all__ = ["REGISTRY", "maml", "pretrain", "scratch"]
