"""Imports only go down the layers, and some packages have one module that imports them."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jmeta"

# A unit is a module or a package directly under jmeta. One that is not listed fails.
LAYERS = {
    "types": 0,
    "checks": 1,
    "compiled": 1,
    "conformance": 1,
    "distributions": 1,
    "hyperparameters": 1,
    "kernels": 1,
    "estimators": 1,
    "optimizers": 1,
    "parallel": 1,
    "runtime": 1,
    "statistics": 1,
    "envs": 2,
    "policies": 2,
    "tasks": 3,
    "rollouts": 3,
    "adapters": 4,
    "inner": 4,
    "algorithms": 5,
    "evaluation": 6,
    "training": 7,
    "runs": 7,
    "__init__": 8,  # what `import jmeta` shows
    "launcher": 8,
    "presets": 8,
    "reporting": 8,
    "cli": 9,
    "__main__": 10,
}

ONLY_IMPORTER = {
    "brax": "jmeta.envs.brax",
    "gymnasium": "jmeta.adapters.gymnasium",
    "gymnax": "jmeta.adapters.gymnax",
    "llvmlite": "jmeta.kernels.cpu",
    "ray": "jmeta.launcher",
}


def imported_modules(source: str, module: str) -> set[str]:
    """Absolute names of every module that a source file imports, inside functions too."""
    package = module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # Of `from jmeta import x`, x is the module.
            names |= {f"jmeta.{alias.name}" for alias in node.names} if base == "jmeta" else {base}
    return names


def unit_of(module: str) -> str:
    """The unit of "jmeta.unit.anything"; of "jmeta" itself, the package's `__init__`."""
    return (module.split(".") + ["__init__"])[1]


def violations(sources: dict[str, str]) -> list[str]:
    """What is wrong with the imports of {module name: source}."""
    found = []
    same_layer: dict[str, set[str]] = {}
    for module, source in sources.items():
        unit = unit_of(module)
        if unit not in LAYERS:
            found.append(f"{module} is in no layer")
            continue
        for target in imported_modules(source, module):
            if module != ONLY_IMPORTER.get(target.split(".")[0], module):
                found.append(f"{module} imports {target}")
            if target.split(".")[0] != "jmeta" or unit_of(target) == unit:
                continue
            target_layer = LAYERS.get(unit_of(target))
            if target_layer is None:
                found.append(f"{module} imports {target}, which is in no layer")
            elif target_layer > LAYERS[unit]:
                found.append(f"{module} imports {target}, which is above it")
            elif target_layer == LAYERS[unit]:
                same_layer.setdefault(unit, set()).add(unit_of(target))
    try:
        graphlib.TopologicalSorter(same_layer).prepare()
    except graphlib.CycleError as error:
        found.append(f"import each other: {error.args[1]}")
    return found


def library() -> dict[str, str]:
    sources: dict[str, str] = {}
    for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.pyi")]:
        # A package's own code is "package.__init__", so that relative imports resolve alike.
        module = ".".join(["jmeta", *path.relative_to(ROOT).with_suffix("").parts])
        sources[module] = sources.get(module, "") + path.read_text()
    return sources


def test_imports_of_the_library_only_go_down():
    sources = library()
    assert "jmeta.types" in sources and "jmeta.policies.mlp" in sources
    assert "jmeta.training" in imported_modules(sources["jmeta.__init__"], "jmeta.__init__")
    assert violations(sources) == []


def test_adapters_are_imported_by_nobody_so_that_jmeta_does_without_their_packages():
    for module, source in library().items():
        if unit_of(module) != "adapters":
            assert "adapters" not in map(unit_of, imported_modules(source, module)), module


def test_types_import_nothing_from_the_library():
    names = imported_modules(library()["jmeta.types"], "jmeta.types")
    assert not any(name.split(".")[0] == "jmeta" for name in names)


@pytest.mark.parametrize(
    "module, source",
    [
        ("jmeta.types", "import jmeta.distributions"),
        ("jmeta.policies.mlp", "from jmeta import rollouts"),
        ("jmeta.policies.mlp", "from jmeta.inner.policy_gradient import adapt"),
        ("jmeta.policies.mlp", "def f():\n    from jmeta.training import train"),
        ("jmeta.policies.mlp", "from ..inner import policy_gradient"),
        ("jmeta.policies.__init__", "from .. import cli"),
        ("jmeta.training", "import jmeta"),
        ("jmeta.helpers", "import math"),
        ("jmeta.cli.train", "from jmeta.helpers import x"),
        ("jmeta.envs.wrappers", "import brax"),
        ("jmeta.tasks.ant", "from brax.envs import base"),
        ("jmeta.evaluation", "import gymnasium"),
        ("jmeta.cli.train", "import ray"),
    ],
)
def test_violations_are_found(module, source):
    assert violations({module: source})


def test_cycles_within_a_layer_are_found():
    assert violations({"jmeta.envs.a": "import jmeta.policies.b", "jmeta.policies.b": "import jmeta.envs.a"})


@pytest.mark.parametrize(
    "module, source",
    [
        ("jmeta.policies.mlp", "from jmeta import distributions\nfrom jmeta.types import Policy\nimport jax"),
        ("jmeta.policies.__init__", "from .mlp import mlp"),
        ("jmeta.training", "from jmeta import runs"),
        ("jmeta.envs.brax", "import brax"),
        ("jmeta.envs.wrappers", "from jmeta.envs import brax"),
    ],
)
def test_allowed_imports_pass(module, source):
    assert violations({module: source}) == []
