"""Policies. A new one is one file and one line here."""

from collections.abc import Callable

from jmeta.policies.mlp import mlp
from jmeta.policies.normalized import normalize_observations
from jmeta.policies.tabular import tabular
from jmeta.types import Policy

REGISTRY: dict[str, Callable[..., Policy]] = {"mlp": mlp, "tabular": tabular}

__all__ = ["REGISTRY", "mlp", "normalize_observations", "tabular"]
