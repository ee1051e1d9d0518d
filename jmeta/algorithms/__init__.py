"""Meta-learning algorithms: each factory gives a `MetaAlgorithm`, whatever its family."""

from collections.abc import Callable

from jmeta.algorithms.gradient.anil import anil
from jmeta.algorithms.gradient.cavia import cavia
from jmeta.algorithms.gradient.e_maml import e_maml
from jmeta.algorithms.gradient.es_maml import es_maml
from jmeta.algorithms.gradient.fomaml import fomaml
from jmeta.algorithms.gradient.imaml import imaml
from jmeta.algorithms.gradient.maml import maml
from jmeta.algorithms.gradient.meta_gradient import meta_gradient
from jmeta.algorithms.gradient.meta_sgd import meta_sgd
from jmeta.algorithms.gradient.oracle import oracle
from jmeta.algorithms.gradient.pretrain import pretrain
from jmeta.algorithms.gradient.promp import promp
from jmeta.algorithms.gradient.reptile import reptile
from jmeta.algorithms.gradient.scratch import scratch
from jmeta.algorithms.memory.rl2 import rl2
from jmeta.types import MetaAlgorithm

REGISTRY: dict[str, Callable[..., MetaAlgorithm]] = {
    "anil": anil,
    "cavia": cavia,
    "e-maml": e_maml,
    "es-maml": es_maml,
    "fomaml": fomaml,
    "imaml": imaml,
    "maml": maml,
    "meta-gradient": meta_gradient,
    "meta-sgd": meta_sgd,
    "oracle": oracle,
    "pretrain": pretrain,
    "promp": promp,
    "reptile": reptile,
    "rl2": rl2,
    "scratch": scratch,
}

__all__ = [
    "REGISTRY",
    "anil",
    "cavia",
    "e_maml",
    "es_maml",
    "fomaml",
    "imaml",
    "maml",
    "meta_gradient",
    "meta_sgd",
    "oracle",
    "pretrain",
    "promp",
    "reptile",
    "rl2",
    "scratch",
]
