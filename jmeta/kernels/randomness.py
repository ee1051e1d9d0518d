"""Takes a program apart: what draws random numbers, and what is computed from them."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxprs_in_params


def split_off_randomness(program: ClosedJaxpr) -> tuple[ClosedJaxpr, ClosedJaxpr]:
    """Programs `first` and `rest` that do together what `program` does.

    `first` takes the arguments of `program` and returns those that are no keys of `jax.random`, and behind
    them the random numbers that are drawn. `rest` takes what `first` returns, and draws nothing.
    """
    jaxpr = program.jaxpr
    drawing: list[Any] = []
    wanted: set[Any] = set()
    for equation in reversed(jaxpr.eqns):
        if _draws(equation) or any(variable in wanted for variable in equation.outvars):
            drawing.append(equation)
            wanted.update(variable for variable in equation.invars if not isinstance(variable, Literal))
    drawing.reverse()
    drawn = {variable for equation in drawing for variable in equation.outvars}
    rest = [equation for equation in jaxpr.eqns if not drawn.intersection(equation.outvars)]
    read = {
        variable for equation in rest for variable in equation.invars if not isinstance(variable, Literal)
    }
    read.update(variable for variable in jaxpr.outvars if not isinstance(variable, Literal))
    passed = [variable for variable in jaxpr.invars if not _is_key(variable)]
    passed += [variable for equation in drawing for variable in equation.outvars if variable in read]
    names = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return (
        ClosedJaxpr(jaxpr.replace(outvars=passed, eqns=drawing, debug_info=names), program.consts),
        ClosedJaxpr(jaxpr.replace(invars=passed, eqns=rest, debug_info=names), program.consts),
    )


def _is_key(variable: Any) -> bool:
    return jax.dtypes.issubdtype(variable.aval.dtype, jax.dtypes.prng_key)


def _draws(equation: Any) -> bool:
    name = equation.primitive.name
    if name.startswith(("random_", "threefry")) or any(map(_is_key, equation.outvars)):
        return True
    return any(_draws(inside) for jaxpr in jaxprs_in_params(equation.params) for inside in jaxpr.eqns)
