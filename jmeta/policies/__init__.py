"""Policies. A new one is one file and one line here."""

from collections.abc import Callable

from jmeta.policies.gru import gru
from jmeta.policies.lstm import lstm
from jmeta.policies.mann import mann
from jmeta.policies.mlp import mlp
from jmeta.policies.normalized import normalize_observations
from jmeta.policies.snail import snail
from jmeta.policies.tabular import tabular
from jmeta.policies.transformer import transformer
from jmeta.types import Policy

REGISTRY: dict[str, Callable[..., Policy]] = {
    "gru": gru,
    "lstm": lstm,
    "mann": mann,
    "mlp": mlp,
    "snail": snail,
    "tabular": tabular,
    "transformer": transformer,
}

__all__ = [
    "REGISTRY",
    "gru",
    "lstm",
    "mann",
    "mlp",
    "normalize_observations",
    "snail",
    "tabular",
    "transformer",
]
