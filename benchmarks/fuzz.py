"""Trains random configurations: each must run with finite metrics, or be refused by name before compilation.

A configuration is a combination of an algorithm, a task family, a policy and an optimizer with random
arguments, all sizes tiny. In every second one, one or two arguments are wrong: of another type, out of range,
NaN, infinite or huge. It counts as

- ran: two meta-iterations, after which the parameters are finite, and so are metrics unless tasks were lost;
- refused: a ValueError, before anything is compiled, whose message names an argument;
- failed: everything else. Each of these is a bug, and the command ends with status 1.

The families that brax simulates are left out, because compiling them takes minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import pathlib
import random
import re
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

from benchmarks import common

FAMILIES = {
    "bandit": {"num_arms": (2, 3), "num_pulls": (1, 2)},
    "grid-goal": {"horizon": (1, 3)},
    "point-goal": {"horizon": (1, 3)},
    "random-mdp": {"num_states": (1, 2), "num_actions": (1, 2), "horizon": (1, 2)},
    "recommendation": {"num_items": (2, 3), "num_features": (1, 2), "horizon": (1, 2)},
    "sinusoid": {},
    "sparse-point-goal": {"horizon": (1, 3)},
}
# Arguments that are never left at their defaults, which would be too large to compile in a moment.
SIZES: dict[str, tuple[Any, ...]] = {
    "cg_iterations": (1, 2),
    "epochs": (1, 2),
    "head_layers": ((), (3,)),
    "hidden": ((), (3,), (3, 2)),
    "max_backtracks": (0, 2),
    "max_steps": (4, 30),
    "memory_span": (1, 5),
    "minibatches": (1, 2, 3),
    "num_episodes": (1, 2),
    "num_heads": (1, 2),
    "num_inner_steps": (0, 1, 2),
    "num_layers": (1, 2),
    "num_perturbations": (1, 2),
    "num_slots": (2, 3),
    "outer_epochs": (1, 2),
    "size": (2, 4),
    "slot_size": (2, 3),
    "tasks_per_block": (None, 1, 3),
    "unroll_length": (None, 1, 2),
}
NAMES: dict[str, tuple[str, ...]] = {
    "activation": ("tanh", "relu"),
    "baseline": ("linear", "value", "none"),
    "differentiation": ("mixed", "reverse", "rematerialized"),
    "inner": ("policy-gradient", "q-learning", "supervised"),
    "outer_surrogate": ("ratio", "ppo-clip", "dice", "loaded-dice", "low-variance-curvature", "reinforce"),
    "surrogate": ("ratio", "ppo-clip", "dice", "loaded-dice", "low-variance-curvature", "reinforce"),
    "transitions": ("dirichlet", "uniform"),
}
RIGHT: dict[Any, tuple[Any, ...]] = {
    bool: (True, False),
    float: (0.0, 0.01, 0.3, 1.0, 1),
    int: (0, 1, 2),
}
WRONG: dict[Any, tuple[Any, ...]] = {
    bool: ("yes", 1, None, 0.5),
    float: (float("nan"), float("inf"), -1.0, 1e30, 1e-30, 1e300, 10**400, "1", True, [0.1]),
    int: (0, -1, 2**31, 10**12, 1.5, float("nan"), "1", True, [1]),
    str: ("nonsense", "", 1, None, ["mlp"]),
    tuple: ((0,), (-1,), (1.5,), "44", 4, (True,), None, (2**31,)),
}
NUM_TASKS = (1, 2, 3, 4)
Outcome = Literal["ran", "refused", "failed"]


@dataclasses.dataclass
class Flags:
    configurations: int = 50
    seed: int = 0
    json: pathlib.Path | None = None


@dataclasses.dataclass
class Configuration:
    """Names of components and their arguments; an optimizer is {"name": ..., argument: value}."""

    algorithm: dict[str, Any]
    family: dict[str, Any]
    policy: dict[str, Any]
    num_tasks: int


def configuration(chance: random.Random) -> Configuration:
    """A random configuration."""
    from jmeta.runs.config import registry

    family = _component(chance, "family", chance.choice(sorted(FAMILIES)))
    algorithm = _component(chance, "algorithm", chance.choice(sorted(registry("algorithm"))))
    policy = _component(chance, "policy", chance.choice(["mlp", "mlp", *sorted(registry("policy"))]))
    whole = Configuration(algorithm, family, policy, chance.choice(NUM_TASKS))
    if chance.random() < 0.5:
        for _ in range(chance.choice((1, 1, 2))):
            _spoil(chance, whole)
    return whole


def attempt(chosen: Configuration, *, compiled: bool = True) -> tuple[Outcome, str]:
    """Builds a configuration and trains it; the outcome, and the error if there is one.

    With `compiled` false an iteration is only traced, which finds all refusals in a fraction of the time.
    """
    import jax

    from jmeta import parallel

    try:
        family, algorithm = _build(chosen)
        tasks = jax.eval_shape(lambda key: jax.vmap(family.sample)(key), _keys(chosen.num_tasks))
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        jax.eval_shape(algorithm.update, state, tasks, jax.random.key(0))
    except ValueError as error:
        named = _named(chosen, str(error))
        return ("refused" if named else "failed"), f"ValueError: {error}"
    except Exception:
        return "failed", traceback.format_exc(limit=-3)
    if not compiled:
        return "ran", ""

    def iterate(state: Any, key: Any) -> tuple[Any, Any]:
        key_tasks, key_update = jax.random.split(key)
        tasks = jax.vmap(family.sample)(parallel.task_keys(key_tasks, chosen.num_tasks))
        return algorithm.update(state, tasks, key_update)

    @jax.jit
    def train(key: Any) -> tuple[Any, Any]:
        key_init, key_run = jax.random.split(key)
        return jax.lax.scan(iterate, algorithm.init(key_init), jax.random.split(key_run, 2))

    try:
        state, metrics = jax.device_get(train(jax.random.key(0)))
    except Exception:
        return "failed", traceback.format_exc(limit=-3)
    wrong = _not_finite(state, metrics)
    return ("failed", "not finite: " + ", ".join(wrong)) if wrong else ("ran", "")


def main() -> None:
    flags = common.parse(Flags, __doc__)
    common.at_least(1, configurations=flags.configurations)
    # Compiling is nearly all of the time.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    import jax

    started, counts, failures = time.perf_counter(), dict.fromkeys(typing.get_args(Outcome), 0), []
    for index in range(flags.configurations):
        chosen = configuration(random.Random(f"{flags.seed} {index}"))
        outcome, error = attempt(chosen)
        counts[outcome] += 1
        if outcome == "failed":
            failures.append({"index": index, "configuration": repr(chosen), "error": error})
            print(f"{index}: {chosen}\n{error}\n", file=sys.stderr)
        if index % 25 == 24:
            jax.clear_caches()
            print(f"{index + 1} tried: {counts}", file=sys.stderr)
    record = {
        "settings": common.settings(flags),
        "tried": flags.configurations,
        **counts,
        "seconds": round(time.perf_counter() - started),
        "failures": failures,
    }
    common.write_json(flags.json, record)
    header = ["tried", *counts]
    print(common.markdown(header, [[str(flags.configurations), *map(str, counts.values())]]))
    sys.exit(1 if failures else 0)


def _keys(num: int) -> Any:
    import jax

    return jax.random.split(jax.random.key(0), num)


@functools.cache
def _arguments(kind: Any, name: str) -> dict[str, tuple[Any, Any]]:
    """Argument -> (annotation, default) of a factory."""
    from jmeta.runs.config import factory, hyperparameters

    return hyperparameters(factory(kind, name))


def _component(chance: random.Random, kind: Any, name: str) -> dict[str, Any]:
    """A component with right values for about a third of its arguments, and for all of its sizes."""
    from jmeta.runs import config

    chosen: dict[str, Any] = {"name": name}
    for argument, (annotation, _) in _arguments(kind, name).items():
        if config.is_optimizer(annotation):
            # Most often one that every algorithm can use.
            names = ["adam", "adam", "adam", *sorted(config.registry("optimizer"))]
            chosen[argument] = _component(chance, "optimizer", chance.choice(names))
            continue
        options = FAMILIES.get(name, {}).get(argument) if kind == "family" else SIZES.get(argument)
        if options is None and chance.random() < 0.65:
            continue
        if options is None and config.is_optimizer_factory(annotation):
            options = ("sgd", "adam", "rmsprop")
        chosen[argument] = chance.choice(options or NAMES.get(argument) or RIGHT[_plain(annotation)])
    return chosen


def _spoil(chance: random.Random, whole: Configuration) -> None:
    """Gives one argument of one component a wrong value."""
    from jmeta.runs import config

    kind, chosen = chance.choice(list(_components(whole)))
    arguments = _arguments(kind, chosen["name"])
    plain = {name: note for name, (note, _) in arguments.items() if not config.is_optimizer(note)}
    if not plain:
        return
    argument = chance.choice(sorted(plain))
    wrong = (1, None) if config.is_optimizer_factory(plain[argument]) else WRONG[_plain(plain[argument])]
    chosen[argument] = chance.choice(wrong)


def _components(whole: Configuration) -> Iterator[tuple[Any, dict[str, Any]]]:
    yield from (("algorithm", whole.algorithm), ("family", whole.family), ("policy", whole.policy))
    if "optimizer" in whole.algorithm:
        yield "optimizer", whole.algorithm["optimizer"]


def _plain(annotation: Any) -> Any:
    """bool, int, float, str or tuple, of an annotation such as `int | None`."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return tuple
    if origin is Literal:
        return str
    return next((kind for kind in inside if kind is not type(None)), annotation)


def _build(chosen: Configuration) -> tuple[Any, Any]:
    """The family and the algorithm, made by the factories as a Python user calls them."""
    from jmeta.runs import config

    def make(kind: Any, component: dict[str, Any], *positional: Any) -> Any:
        arguments = {name: value for name, value in component.items() if name != "name"}
        for name, (annotation, _) in _arguments(kind, component["name"]).items():
            if config.is_optimizer(annotation):
                arguments[name] = make("optimizer", arguments[name])
            elif config.is_optimizer_factory(annotation) and isinstance(arguments.get(name), str):
                arguments[name] = functools.partial(_of_rate, config.factory("optimizer", arguments[name]))
        factory = config.factory(kind, component["name"])
        if "num_iterations" in inspect.signature(factory).parameters:
            arguments["num_iterations"] = 2
        return factory(*positional, **arguments)

    family = make("family", chosen.family)
    policy = make("policy", chosen.policy, family.env.spec)
    return family, make("algorithm", chosen.algorithm, family, policy)


def _of_rate(make: Callable[..., Any], rate: float) -> Any:
    return make(learning_rate=rate)


def _named(chosen: Configuration, message: str) -> bool:
    """Whether a message names an argument of one of the factories, or one that they all have."""
    names = {"tasks", "policy", "optimizer", "inner", "critic", "actions"}
    for kind, component in _components(chosen):
        names |= set(_arguments(kind, component["name"]))
    return any(re.search(rf"\b{name}\b", message) for name in names)


def _not_finite(state: Any, metrics: Any) -> list[str]:
    """What is not finite although it must be: parameters, and metrics of iterations that lost no task."""
    import jax
    import numpy as np

    wrong = ["params"] if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)) else []
    whole = metrics["tasks_lost"] == 0
    return wrong + [name for name, values in metrics.items() if not np.isfinite(values[whole]).all()]


if __name__ == "__main__":
    main()
