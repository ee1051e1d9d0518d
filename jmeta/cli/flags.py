"""Flags from signatures: the keyword-only arguments of the factories that the user chose."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import docstring_parser
import tyro

from jmeta.cli.errors import UserError

if typing.TYPE_CHECKING:
    from jmeta.runs.config import Kind

Field = tuple[str, Any, Any]  # of a dataclass of flags: name, annotation, dataclasses.field


def first_line(make: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (make.__doc__ or "").strip().split("\n")[0]


def field(name: str, annotation: Any, default: Any, text: str | None = None) -> Field:
    """A field of a dataclass of flags; without a default, the flag is required."""
    annotated = Annotated[annotation, tyro.conf.arg(help=text)]
    default = tuple(default) if isinstance(default, list) else default
    return (
        name,
        annotated,
        dataclasses.field(default=dataclasses.MISSING if default is inspect.Parameter.empty else default),
    )


def flags_class(name: str, fields: list[Field], base: type = object) -> type:
    """A dataclass of flags, and of those of `base`."""
    return dataclasses.make_dataclass(name, fields, bases=(base,), kw_only=True, frozen=True)


def nested_field(name: str, fields: list[Field]) -> Field:
    """A group of flags `--name.field`."""
    return name, flags_class(name, fields), dataclasses.field()


def component_field(kind: Kind, name: str, default: Mapping[str, Any], argv: list[str]) -> Field:
    """Flags of a component: its `--name.name`, and the hyperparameters of the one that `argv` names."""
    from jmeta.runs.config import registry

    chosen = value_of(f"--{name}.name", argv) or default["name"]
    component = default if chosen == default["name"] else {"name": chosen}
    names = Literal[tuple(registry(kind))]  # type: ignore[valid-type]
    own = hyperparameter_fields(kind, component, argv)
    return nested_field(name, [field("name", names, chosen, f"which {kind}"), *own])


def hyperparameter_fields(kind: Kind, component: Mapping[str, Any], argv: list[str]) -> list[Field]:
    """One field for each keyword of a component's factory; defaults are the component's values."""
    from jmeta.runs import config

    make = config.factory(kind, component["name"])
    texts = {p.arg_name: p.description for p in docstring_parser.parse(make.__doc__ or "").params}
    fields = []
    for name, (annotation, default) in config.hyperparameters(make).items():
        value = component.get(name, default)
        if config.is_optimizer(annotation):
            fields.append(component_field("optimizer", name, value, argv))
            continue
        if config.is_optimizer_factory(annotation):
            annotation = Literal[tuple(config.learning_rate_optimizers())]
        fields.append(field(name, annotation, value, texts.get(name)))
    return fields


# -- words --------------------------------------------------------------------------------------------


def positionals(argv: list[str]) -> list[str]:
    """Up to two leading words that are not flags."""
    return list(itertools.takewhile(lambda word: not word.startswith("-"), argv[:2]))


def value_of(flag: str, argv: list[str]) -> str | None:
    """The last value given to a flag, as `--flag value` or `--flag=value`."""
    value = None
    for index, word in enumerate(argv):
        if word == flag:
            value = argv[index + 1] if index + 1 < len(argv) else None
        elif word.startswith(flag + "="):
            value = word.removeprefix(flag + "=")
    return value


def parse(flags: type, argv: list[str], prog: str, description: str) -> Any:
    """Parses words into a dataclass; raises UserError with one line where tyro prints a box."""
    known = _flag_names(flags)
    for word in argv:
        name = word.split("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            from jmeta.runs.config import unknown

            raise UserError(unknown("flag", name, known))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(flags, args=argv, prog=prog, description=description)
    except SystemExit as stop:
        if stop.code:
            raise UserError(_unboxed(errors.getvalue())) from None
        raise


def _unboxed(text: str) -> str:
    """What Tyro's box says between its title and its next rule, as one line."""

    def is_rule(line: str) -> bool:
        return not line.strip("─-")

    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    _, *lines = (line.strip(" │╭╮╰╯") for line in text.splitlines())
    body = itertools.dropwhile(is_rule, lines)  # without UTF-8 the title has a rule under it
    return " ".join(itertools.takewhile(lambda line: not is_rule(line), body))


def _flag_names(flags: Any, prefix: str = "") -> list[str]:
    """Every flag that a dataclass of flags has."""
    names = ["--help"] if not prefix else []
    for name, annotation in typing.get_type_hints(flags).items():
        flag = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(annotation):
            names += _flag_names(annotation, f"{flag}.")
        else:
            names += [f"--{flag}"]
            if annotation is bool:
                *group, last = flag.split(".")
                names += ["--" + ".".join([*group, f"no-{last}"])]
    return names
