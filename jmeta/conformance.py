"""Checks a task family before anything is compiled, and casts what can be cast without loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jmeta import checks
from jmeta.compiled import once
from jmeta.types import Array, Continuous, Discrete, Env, EnvSpec, Key, PyTree, Task, TaskFamily, TimeStep


class FamilyError(ValueError):
    """A task family is not what `jmeta.types` says. The message names the family and the field."""


def conform(family: TaskFamily) -> TaskFamily:
    """Checks a family by tracing its functions, and returns it with casts where they are needed.

    The functions are traced on abstract values, so nothing is compiled and no environment is stepped. The
    following is cast, because no information is lost:

    - observations, rewards and measures of any real type, to the default float type; a measure may be a bool;
    - `terminated` of any real type, to bool: what is not 0 is a termination;
    - Python numbers and weakly typed arrays, to arrays of their type;
    - a part of the state whose type differs between `reset` and `step`, and a part of the task whose type
      differs between `sample` and `sample_heldout`, to the wider of the two types.

    A task without arrays, such as `()` where nothing varies, becomes one that holds a 0, so that tasks can be
    counted. The environment still sees the task that the family gave.

    Args:
      family: the family. One that has passed this check already is returned as it is.

    Raises:
      FamilyError: a field is not what `jmeta.types` says, a function fails, or a function computes another
        result when it is called again with the same arguments.
    """
    _expect(isinstance(family, TaskFamily), f"family must be a jmeta.types.TaskFamily, got {_kind(family)}")
    _check_fields(family)
    # The same functions for the same family, so that programs compiled for one call serve the next.
    return once(lambda: _conform(family), family.env.step, family, str(jnp.result_type(float)))


def _conform(family: TaskFamily) -> TaskFamily:
    key = jax.eval_shape(jax.random.key, 0)
    given_task, given_heldout = (
        _trace(family, name, getattr(family, name), key) for name in ("sample", "sample_heldout")
    )
    for name, task in (("sample", given_task), ("sample_heldout", given_heldout)):
        expected = "a pytree of arrays is expected, or () if nothing varies"
        _expect(task is not None, f"family {family.name!r}: {name} returned None; {expected}")
    task = _common(family, "a task", ("sample", given_task), ("sample_heldout", given_heldout))

    given_start = _trace(family, "reset", family.env.reset, key, task)
    _check_result(family, "reset", given_start)
    action = _action(family.env.spec)
    state = _strong(given_start[0])
    while True:  # types only get wider, so this ends
        given_next = _trace(family, "step", family.env.step, key, state, action, task)
        _check_result(family, "step", given_next)
        common = _common(family, "the state", ("reset", state), ("step", given_next[0]))
        if common == state:
            break
        state = common
    start, next_ = ((state, _cast_types(given[1])) for given in (given_start, given_next))

    if family.optimal_return is not None:
        optimal = _trace(family, "optimal_return", family.optimal_return, task)
        _expect_array(family, "optimal_return", "a value", optimal, ())
    if not given_task == given_heldout == task:
        family = _with_cast_tasks(family, task)
    if not (given_start == start and given_next == next_):
        family = _with_cast_steps(family, start, next_)
    return family if jax.tree.leaves(task) else _with_counted_tasks(family, task)


def _check_fields(family: TaskFamily) -> None:
    _expect(isinstance(family.name, str), f"name of a family must be a str, got {family.name!r}")
    where = f"family {family.name!r}:"
    _expect(isinstance(family.env, Env), f"{where} env must be a jmeta.types.Env, got {_kind(family.env)}")
    spec = family.env.spec
    _expect(isinstance(spec, EnvSpec), f"{where} env.spec must be a jmeta.types.EnvSpec, got {_kind(spec)}")
    action = spec.action
    known = isinstance(action, Continuous | Discrete)
    _expect(known, f"{where} env.spec.action must be Continuous or Discrete, got {_kind(action)}")
    functions = {
        "sample": family.sample,
        "sample_heldout": family.sample_heldout,
        "env.reset": family.env.reset,
        "env.step": family.env.step,
    }
    for name, function in functions.items():
        _expect(callable(function), f"{where} {name} must be a function, got {_kind(function)}")
    size = "size" if isinstance(action, Continuous) else "num"
    if isinstance(action, Continuous):
        bounds = f"low must be below high, got low={action.low}, high={action.high}"
        _expect(action.low < action.high, f"{where} env.spec.action: {bounds}")
    numbers = {
        "obs_size": spec.obs_size,
        f"action.{size}": getattr(action, size),
        "horizon": spec.horizon,
        "trial_episodes": spec.trial_episodes,
    }
    try:
        checks.at_least(1, **{f"env.spec.{name}": value for name, value in numbers.items()})
        checks.boolean(**{"env.spec.terminates": spec.terminates})
    except ValueError as error:
        raise FamilyError(f"{where} {error}") from None


def _trace(family: TaskFamily, name: str, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """The types of what `function` returns; what is no JAX array counts as weakly typed."""
    found: list[PyTree] = []

    def run(*args: PyTree) -> PyTree:
        result = function(*args)
        found.append(jax.tree.map_with_path(functools.partial(_type, family, name), result))
        return result

    try:
        # A function object for each: JAX would remember the program of the same one.
        programs = [jax.make_jaxpr(lambda *args: run(*args))(*args) for _ in range(2)]
    except FamilyError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        told = f" with an action of {_words(args[2])}" if name == "step" else ""
        raise FamilyError(f"family {family.name!r}: {name} failed{told}: {reason}") from error
    first, second = ([_identity(value) for value in _constants(program)] for program in programs)
    _expect(
        first == second,
        f"family {family.name!r}: {name} computes another result when it is called again with the same "
        "arguments; it must be a function of its arguments, and what is random must come from its key",
    )
    return found[0]


def _type(family: TaskFamily, name: str, path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
    try:
        aval = jax.typeof(leaf)
    except TypeError:
        field = jax.tree_util.keystr(path, simple=True, separator=".")
        problem = f"family {family.name!r}: {name} returned {leaf!r}{f' as {field}' if field else ''}"
        raise FamilyError(f"{problem}; an array is expected") from None
    weak = aval.weak_type or not isinstance(leaf, jax.Array)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def _constants(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """The numbers in a program and in those that it calls."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    for equation in program.eqns:
        yield from (variable.val for variable in equation.invars if isinstance(variable, Literal))
        for parameter in equation.params.values():
            for value in parameter if isinstance(parameter, tuple | list) else [parameter]:
                if isinstance(value, ClosedJaxpr | Jaxpr):
                    yield from _constants(value)
    yield from (variable.val for variable in program.outvars if isinstance(variable, Literal))


def _identity(value: Any) -> bytes | int:
    if isinstance(value, jax.core.Tracer):
        return id(value)  # of an outer transformation, or left behind by the call before
    return np.asarray(jax.random.key_data(value) if _is_key(value) else value).tobytes()


def _check_result(family: TaskFamily, name: str, result: PyTree) -> None:
    """Raises unless a result of `reset` or `step` is a state and a `TimeStep` of the right shapes."""
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], TimeStep)
    expected = "a tuple (state, TimeStep) is expected"
    _expect(is_pair, f"family {family.name!r}: {name} returned {_kind(result)}; {expected}")
    shown = result[1]
    _expect_array(family, name, "obs", shown.obs, (family.env.spec.obs_size,))
    _expect_array(family, name, "reward", shown.reward, ())
    _expect_array(family, name, "terminated", shown.terminated, ())
    named = isinstance(shown.measures, dict) and all(isinstance(measure, str) for measure in shown.measures)
    expected = "a dict of scalars by name is expected"
    _expect(named, f"family {family.name!r}: {name} returned measures {shown.measures!r}; {expected}")
    for measure, value in shown.measures.items():
        _expect_array(family, name, f"the measure {measure!r}", value, ())


def _expect_array(family: TaskFamily, name: str, field: str, found: Any, shape: tuple[int, ...]) -> None:
    expected = f"an array of shape {shape} is expected" if shape else "a scalar is expected"
    problem = f"family {family.name!r}: {name} returned {field} of {_words(found)}"
    is_array = isinstance(found, jax.ShapeDtypeStruct)
    _expect(is_array and found.shape == shape, f"{problem}; {expected}")
    is_real = jnp.issubdtype(found.dtype, jnp.number) and not jnp.issubdtype(found.dtype, jnp.complexfloating)
    _expect(is_real or found.dtype == bool, f"{problem}; real numbers are expected")


def _common(family: TaskFamily, what: str, one: tuple[str, PyTree], other: tuple[str, PyTree]) -> PyTree:
    """The types to which both trees can be cast exactly."""
    (name, x), (other_name, y) = one, other
    where = f"family {family.name!r}:"
    old, new = (str(jax.tree.structure(tree)) for tree in (x, y))
    _expect(old == new, f"{where} {other_name} returned {what} of structure {new}; {name} has {old}")

    def join(path: Any, x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        field = what + jax.tree_util.keystr(path)
        dtype = y.dtype if _widens(x.dtype, y.dtype) else x.dtype
        fits = x.shape == y.shape and _widens(x.dtype, dtype) and _widens(y.dtype, dtype)
        _expect(fits, f"{where} {other_name} returned {field} of {_words(y)}; {name} has {_words(x)}")
        return jax.ShapeDtypeStruct(x.shape, dtype)

    return jax.tree.map_with_path(join, x, y)


def _widens(dtype: Any, wide: Any) -> bool:
    """Whether numbers keep their value in another type; integers do in floats of 32 bits or more."""
    if dtype == wide or not (isinstance(dtype, np.dtype) and isinstance(wide, np.dtype)):
        return bool(dtype == wide)  # the type of a random key is no NumPy type
    if jnp.issubdtype(dtype, jnp.integer) and jnp.issubdtype(wide, jnp.floating):
        return jnp.finfo(wide).bits >= 32
    return np.can_cast(dtype, wide)


def _with_cast_tasks(family: TaskFamily, task: PyTree) -> TaskFamily:
    def cast(sample: Callable[[Key], Task]) -> Callable[[Key], Task]:
        return lambda key: _cast(sample(key), task)

    sample = cast(family.sample)
    no_split = family.sample_heldout is family.sample
    return family._replace(sample=sample, sample_heldout=sample if no_split else cast(family.sample_heldout))


def _cast_types(shown: PyTree) -> PyTree:
    """The types that a `TimeStep` must have."""

    def to(dtype: Any, x: jax.ShapeDtypeStruct) -> Any:
        return jax.ShapeDtypeStruct(x.shape, dtype)

    number = jnp.result_type(float)
    return TimeStep(
        to(number, shown.obs),
        to(number, shown.reward),
        to(bool, shown.terminated),
        {name: to(bool if x.dtype == bool else number, x) for name, x in shown.measures.items()},
    )


def _with_cast_steps(family: TaskFamily, start: PyTree, next_: PyTree) -> TaskFamily:
    env = family.env

    def reset(key: Key, task: Task) -> tuple[PyTree, TimeStep]:
        return _cast(env.reset(key, task), start)

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        return _cast(env.step(key, state, action, task), next_)

    return family._replace(env=env._replace(reset=reset, step=step))


def _with_counted_tasks(family: TaskFamily, nothing: PyTree) -> TaskFamily:
    """The family with a task of one number in place of one without arrays."""
    env, optimal_return = family.env, family.optimal_return

    def sample(key: Key) -> Task:
        del key
        return jnp.zeros(())

    def reset(key: Key, task: Task) -> tuple[PyTree, TimeStep]:
        del task
        return env.reset(key, nothing)

    def step(key: Key, state: PyTree, action: Array, task: Task) -> tuple[PyTree, TimeStep]:
        del task
        return env.step(key, state, action, nothing)

    return family._replace(
        env=env._replace(reset=reset, step=step),
        sample=sample,
        sample_heldout=sample,
        optimal_return=optimal_return and (lambda task: optimal_return(nothing)),
    )


def _cast(tree: PyTree, types: PyTree) -> PyTree:
    def one(x: Any, type_: jax.ShapeDtypeStruct) -> Array:
        return x if _is_key(x) else jnp.asarray(x, type_.dtype)

    return jax.tree.map(one, tree, types)


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _strong(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _action(spec: EnvSpec) -> jax.ShapeDtypeStruct:
    if isinstance(spec.action, Continuous):
        return jax.ShapeDtypeStruct((spec.action.size,), jnp.result_type(float))
    return jax.ShapeDtypeStruct((), jnp.int32)


def _words(found: Any) -> str:
    if isinstance(found, jax.ShapeDtypeStruct):
        return f"shape {found.shape} and dtype {found.dtype}"
    return f"type {type(found).__name__}"


def _kind(value: Any) -> str:
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return "an array"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise FamilyError(problem)
