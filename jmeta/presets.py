"""Settings for every pair: defaults, overridden by the task family, then by the algorithm.

Only what differs from the factories' own defaults is listed here. Tuned, and measured over seeds in
`benchmarks/results`: half-cheetah-direction, ant-direction, point-goal. The other families start from the
settings of their nearest relative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jmeta.runs.config import RunConfig, factory, resolve

_DEFAULTS: dict[str, Any] = {
    "algorithm": {"inner_learning_rate": 0.5, "gae_lambda": 0.95},
    "policy": {"name": "mlp", "hidden": [64, 64]},
    "training": {"iterations": 150, "num_tasks": 20},
}
_META_TRAINED: dict[str, Any] = {
    "algorithm": {
        "optimizer": {"name": "adam", "learning_rate": 3e-3},
        "outer_surrogate": "ppo-clip",
        "outer_epochs": 15,
    },
}
# Advantages that shrink as the goal comes near: normalised ones make later steps overshoot.
_NAVIGATION: dict[str, Any] = {
    "algorithm": {"inner_learning_rate": 0.1, "normalize_advantages": False},
    "training": {"iterations": 60},
}

FAMILIES: dict[str, dict[str, Any]] = {
    "ant-direction": {"training": {"iterations": 100}},
    "half-cheetah-direction": {"training": {"iterations": 120}},
    "point-goal": _NAVIGATION,
    "sparse-point-goal": _NAVIGATION,
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "maml": _META_TRAINED,
    "pretrain": _META_TRAINED,
    "scratch": {"training": {"iterations": 10}},  # nothing is learned: enough to measure
}


def preset(algorithm: str, family: str) -> RunConfig:
    """The complete configuration with which an algorithm is trained on a family unless told otherwise.

    Args:
      algorithm: its name.
      family: its name.

    Raises:
      ValueError: if there is no such algorithm or family; it names the nearest.
    """
    factory("algorithm", algorithm)
    factory("family", family)
    names = {"algorithm": {"name": algorithm}, "family": {"name": family}}
    return resolve(**_merge(_DEFAULTS, FAMILIES.get(family, {}), ALGORITHMS.get(algorithm, {}), names))


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, later layers over earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            merged[name] = _merge(merged.get(name, {}), value) if isinstance(value, Mapping) else value
    return merged
