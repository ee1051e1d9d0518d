"""The configuration of a run: complete, checked, and derived from the signatures of the factories.

Hyperparameters are declared once, as keyword-only arguments of the factories in the four registries.
`resolve` fills a partial choice up to every last argument; `build` turns the result into objects.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jmeta.runs import files

if typing.TYPE_CHECKING:
    from jmeta.types import MetaAlgorithm, Policy, TaskFamily

Kind = Literal["algorithm", "family", "policy", "optimizer"]
_MODULES: dict[str, str] = {
    "algorithm": "jmeta.algorithms",
    "family": "jmeta.tasks",
    "policy": "jmeta.policies",
    "optimizer": "jmeta.optimizers",
}
# Keyword arguments that are no hyperparameters: `build` takes them from the rest of the configuration.
_OF_THE_RUN = ("num_iterations",)
_REPLACED = {"decay_updates": "it was replaced by decay, true or false: over the whole run, however long"}
REQUIRED = inspect.Parameter.empty  # the default of a hyperparameter that has none
SEED_LIMIT = 2**31  # every integer is below it, seeds too


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, on how much, and how often to write.

    Attributes:
      iterations: meta-iterations in all; 0 leaves the initial policy.
      num_tasks: B, tasks in a meta-batch.
      seed: of everything random in the run, below 2**31.
      log_every: meta-iterations in one compiled chunk, after which metrics are written.
      checkpoint_every: meta-iterations between checkpoints, a multiple of `log_every`.
      evaluate_every: meta-iterations between evaluations, a multiple of `log_every`; None evaluates nothing.
    """

    iterations: int
    num_tasks: int
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 50
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        """Checks types and ranges; raises ValueError."""
        for name, value in dataclasses.asdict(self).items():
            to_json_value(value, int | None if name == "evaluate_every" else int, name)
        for name, least in (("iterations", 0), ("num_tasks", 1), ("seed", 0), ("log_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("checkpoint_every", "evaluate_every"):
            every = getattr(self, name)
            if every is not None and (every < 1 or every % self.log_every):
                raise ValueError(f"{name} must be a multiple of log_every={self.log_every}, got {every}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Enough to rebuild a run. The first three are {"name": ..., argument: JSON value, ...}."""

    algorithm: Mapping[str, Any]
    family: Mapping[str, Any]
    policy: Mapping[str, Any]
    training: Training

    def to_json(self) -> str:
        """The configuration as JSON text, which `from_json` reads back to an equal one."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Reads what `to_json` wrote.

        Raises:
          ValueError: the text is not JSON or has not the shape of a configuration. Its values are checked
            by `build`.
        """
        data = files.parse_json(text)
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(data, dict) or sorted(data) != sorted(names):
            raise ValueError(f"a configuration has exactly the keys {', '.join(names)}")
        for name in names:
            if not isinstance(data[name], dict):
                raise ValueError(f"{name} must be an object")
        for name in ("algorithm", "family", "policy"):
            if not isinstance(data[name].get("name"), str):
                raise ValueError(f"{name} has no name")
        return cls(**{**data, "training": _training(data["training"])})


def resolve(
    *,
    algorithm: Mapping[str, Any],
    family: Mapping[str, Any],
    policy: Mapping[str, Any],
    training: Mapping[str, Any],
) -> RunConfig:
    """Fills every argument that is not given with its factory's default.

    Args:
      algorithm: {"name": ..., and any of the factory's hyperparameters}; likewise `family` and `policy`.
      policy: see `algorithm`.
      family: see `algorithm`.
      training: arguments of `Training`.

    Raises:
      ValueError: for an unknown name or argument (naming the nearest known one), a value of a wrong type,
        a missing argument, or a number out of its range.
    """
    return RunConfig(
        algorithm=_complete("algorithm", algorithm),
        family=_complete("family", family),
        policy=_complete("policy", policy),
        training=_training(training),
    )


def build(config: RunConfig, family: TaskFamily | None = None) -> tuple[TaskFamily, Policy, MetaAlgorithm]:
    """Builds the task family, the policy and the algorithm of a configuration.

    Args:
      config: the configuration.
      family: used instead of the family of the configuration, for instance that family within a wrapper.

    Raises:
      ValueError: as `resolve` does, and from the factories, for a value that they do not allow.
    """
    family = _make("family", config.family) if family is None else family
    policy = _make("policy", config.policy, family.env.spec)
    return (
        family,
        policy,
        _make("algorithm", config.algorithm, family, policy, num_iterations=config.training.iterations),
    )


# -- registries ---------------------------------------------------------------------------------------


def registry(kind: Kind) -> dict[str, Callable[..., Any]]:
    """The factories of one kind by their names."""
    return importlib.import_module(_MODULES[kind]).REGISTRY


def factory(kind: Kind, name: Any) -> Callable[..., Any]:
    """The factory of that name; ValueError with the nearest name if there is none."""
    known = registry(kind)
    if not isinstance(name, str) or name not in known:
        raise ValueError(unknown(kind, name, known))
    return known[name]


def unknown(what: str, name: Any, known: Iterable[str]) -> str:
    """One line that says a name is unknown and offers the nearest known one, or all of them."""
    known = sorted(known)
    name = str(name)
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown {what} {_shown(name)}; " + (
        f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
    )


# -- hyperparameters, as the signatures declare them --------------------------------------------------


def hyperparameters(make: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The keyword-only arguments that users choose: name -> (annotation, default or `REQUIRED`)."""
    hints = typing.get_type_hints(make)
    return {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in _OF_THE_RUN
    }


def is_optimizer(annotation: Any) -> bool:
    """Whether a hyperparameter is an optimizer, configured as {"name": ..., argument: value}."""
    import optax

    return annotation in (optax.GradientTransformation, optax.GradientTransformationExtraArgs)


def is_optimizer_factory(annotation: Any) -> bool:
    """Whether a hyperparameter is a function that makes an optimizer, configured by its name."""
    arguments = typing.get_args(annotation)
    return typing.get_origin(annotation) is collections.abc.Callable and is_optimizer(arguments[-1])


def learning_rate_optimizers() -> list[str]:
    """The optimizers that a learning rate alone determines."""
    return [name for name, make in registry("optimizer").items() if "learning_rate" in hyperparameters(make)]


def to_json_value(value: Any, annotation: Any, where: str) -> Any:
    """Checks a value against an annotation and returns it as JSON has it: lists, not tuples.

    Raises:
      ValueError: if the value is not of that type; it names `where`, the value and what is allowed.
      TypeError: if no configuration can hold a hyperparameter of that annotation.
    """
    if is_optimizer(annotation):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object with a name and arguments, not {_shown(value)}")
        return _complete("optimizer", value)
    if is_optimizer_factory(annotation):
        name = getattr(value, "__name__", value)  # a default such as `optax.sgd` goes by its own name
        if name not in (known := learning_rate_optimizers()):
            raise ValueError(unknown(where, name, known))
        return name
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if not any(type(value) is type(known) and value == known for known in arguments):
            raise ValueError(unknown(f"value of {where}", value, map(str, arguments)))
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        rest = [argument for argument in arguments if argument is not types.NoneType]
        if len(rest) == 1:
            return to_json_value(value, rest[0], where)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, not {_shown(value)}")
        return [to_json_value(item, arguments[0], f"every item of {where}") for item in value]
    if type(value) is int and abs(value) >= SEED_LIMIT:
        raise ValueError(f"{where} must be below {SEED_LIMIT}, got {_shown(value)}")
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in (bool, int, float, str):
        if type(value) is not annotation:
            raise ValueError(f"{where} must be of type {annotation.__name__}, not {_shown(value)}")
        if annotation is float and not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value}")
        return value
    raise TypeError(f"{where}: a configuration cannot hold a value of type {annotation}")


def _shown(value: Any) -> str:
    """A value as a message shows it: in one short line."""
    return shown if len(shown := repr(value)) <= 80 else f"{shown[:76]} ..."


def _complete(kind: Kind, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """{"name": ..., every argument: its value} of a component."""
    given = dict(chosen)
    name = given.pop("name", None)
    if name is None:
        raise ValueError(f"{kind} has no name")
    known = hyperparameters(factory(kind, name))
    complete: dict[str, Any] = {"name": name}
    for argument in given:
        if argument in _REPLACED and argument not in known:
            raise ValueError(f"argument of {kind} {name!r} must not be {argument!r}: {_REPLACED[argument]}")
        if argument not in known:
            raise ValueError(unknown(f"argument of {kind} {name!r}:", argument, known))
    for argument, (annotation, default) in known.items():
        value = given.get(argument, default)
        if value is REQUIRED:
            raise ValueError(f"{kind} {name!r} needs {argument}")
        complete[argument] = to_json_value(value, annotation, argument)
    return complete


def _make(kind: Kind, component: Mapping[str, Any], *positional: Any, **of_the_run: Any) -> Any:
    """Calls the factory of a component with its arguments, and with those of the run that it takes."""
    make = factory(kind, component.get("name"))
    known = hyperparameters(make)
    arguments = _complete(kind, component)
    del arguments["name"]
    for argument, value in arguments.items():
        annotation, _ = known[argument]
        if is_optimizer(annotation):
            arguments[argument] = _make("optimizer", value, **of_the_run)
        elif is_optimizer_factory(annotation):
            arguments[argument] = _of_learning_rate(factory("optimizer", value))
        elif isinstance(value, list):
            arguments[argument] = tuple(value)
    taken = inspect.signature(make).parameters
    arguments |= {name: value for name, value in of_the_run.items() if name in taken}
    return make(*positional, **arguments)


def _of_learning_rate(make: Callable[..., Any]) -> Callable[[float], Any]:
    """An optimizer's factory as a function of its learning rate, which need not be a keyword."""
    return lambda learning_rate: make(learning_rate=learning_rate)


def _training(given: Mapping[str, Any]) -> Training:
    known = [field.name for field in dataclasses.fields(Training)]
    for name in given:
        if name not in known:
            raise ValueError(unknown("argument of training:", name, known))
    for name in ("iterations", "num_tasks"):
        if name not in given:
            raise ValueError(f"training needs {name}")
    return Training(**given)
