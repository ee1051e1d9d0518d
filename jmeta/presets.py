"""Settings that learn, for every algorithm on every family: defaults, overridden by family, then by algorithm.

Only what differs from the factories' own defaults is listed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from jmeta.runs.config import RunConfig, factory, resolve

_DEFAULTS: dict[str, Any] = {
    "algorithm": {
        "num_inner_steps": 1,
        "inner_learning_rate": 0.2,
        "num_episodes": 10,
        "discount": 0.99,
        "gae_lambda": 1.0,
    },
    "policy": {"name": "mlp", "hidden": [64, 64]},
    "training": {"iterations": 150, "num_tasks": 20},
}
_FAMILIES: dict[str, Any] = {
    "ant-angle": {"training": {"iterations": 200}},
    "ant-direction": {"training": {"iterations": 200}},
    "half-cheetah-direction": {},
    "point-goal": {},
    "sparse-point-goal": {},
}
_META_TRAINED: dict[str, Any] = {
    "algorithm": {
        "optimizer": {"name": "adam", "learning_rate": 3e-3},
        "outer_surrogate": "ppo-clip",
        "outer_epochs": 5,
    },
}
_ALGORITHMS: dict[str, Any] = {
    "maml": _META_TRAINED,
    "pretrain": _META_TRAINED,
    "scratch": {"training": {"iterations": 10}},  # nothing is learned: enough to measure
}


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, later layers over earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            merged[name] = _merge(merged.get(name, {}), value) if isinstance(value, Mapping) else value
    return merged


PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    (algorithm, family): _merge(
        {"algorithm": {"name": algorithm}, "family": {"name": family}},
        _DEFAULTS,
        _FAMILIES[family],
        _ALGORITHMS[algorithm],
    )
    for algorithm, family in itertools.product(_ALGORITHMS, _FAMILIES)
}


def preset(algorithm: str, family: str) -> RunConfig:
    """The complete configuration with which an algorithm is trained on a family unless told otherwise.

    Raises:
      ValueError: if there is no such algorithm or family; it names the nearest.
    """
    factory("algorithm", algorithm)
    factory("family", family)
    return resolve(**PRESETS[algorithm, family])
