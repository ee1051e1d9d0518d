"""Scalar programs against what JAX computes, evaluated here by NumPy; what is folded; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.kernels.graph import NUMPY, Graph, Unsupported
from jmeta.kernels.program import Program
from tests.kernels.functions import FUNCTIONS

REFUSED = {
    "an index that is computed": lambda x: x[(x[0, 0] > 0).astype(int)],
    "operation while": lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x),
    "a branch that is computed": lambda x: jax.lax.cond(x.sum() > 0, lambda: x, lambda: -x),
    "operation sort": lambda x: jnp.sort(x, axis=0),
    "bfloat16": lambda x: x.astype("bfloat16") * 2,
    "int8": lambda x: x.astype("int8"),
}


def program_of(fn, *args):
    return Program(jax.make_jaxpr(fn)(*args))


def evaluate(program, *leaves):
    """The entries of the results."""
    graph = program.graph
    values = dict(graph.values)
    values.update(zip(program.inputs, np.concatenate([np.ravel(x) for x in leaves]), strict=True))

    def run(scope):
        for value in program.order[scope]:
            op, dtype = graph.ops[value], graph.dtypes[value]
            if op == "loop":
                loop = graph.loops[value]
                carry = [values.get(x) for x in loop.initial]
                for _ in range(loop.length):
                    values.update(zip(loop.carried, carry, strict=True))
                    run(loop.scope)
                    carry = [values.get(x) for x in loop.updated]
                values.update(zip(loop.results, carry, strict=True))
            elif op not in ("input", "constant", "carry", "result"):
                with np.errstate(all="ignore"):
                    found = NUMPY[op](*[values[arg] for arg in graph.args[value]])
                values[value] = np.asarray(found).astype(dtype)[()]

    run(0)
    return [values[x] for x in program.outputs]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_what_jax_computes(name):
    fn, x = FUNCTIONS[name], jax.random.normal(jax.random.key(0), (3, 4))
    expected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.jit(fn)(x))])
    np.testing.assert_allclose(evaluate(program_of(fn, x), x), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_is_named(what):
    with pytest.raises(Unsupported, match=what):
        program_of(REFUSED[what], jnp.ones((3, 4)))


@pytest.mark.parametrize(
    ("fn", "operations"),
    [
        (lambda x: x + 0 - 0, 0),
        (lambda x: x * 1 / 1, 0),
        (lambda x: jnp.negative(-x), 0),
        (lambda x: x * -1, 1),
        (lambda x: (-x) * (-x), 1),
        (lambda x: x + (-jnp.sin(x)), 2),
        (lambda x: -(x - jnp.sin(x)), 2),
        (lambda x: jnp.maximum(x, x), 0),
        (lambda x: jnp.where(x > 0, x, x), 0),
        (lambda x: jnp.sin(x) + jnp.sin(x), 2),
        (lambda x: jnp.sin(x) * (2 * 3.0 - 5), 1),
        (lambda x: x * jnp.sin(x) + jnp.sin(x) * x, 3),
        (lambda x: (x > 0) & True, 1),
        (lambda x: x - x, 1),  # NaN where x is
    ],
)
def test_what_is_folded(fn, operations):
    assert program_of(fn, 1.0).count() == operations


def test_what_a_loop_does_not_change_is_computed_once_before_it():
    def fn(x):
        return jax.lax.fori_loop(0, 10, lambda _, y: y * jnp.exp(jnp.sin(x) + 1), x)

    assert program_of(fn, 1.0).count() == 3 + 10


def test_a_carried_number_is_part_of_the_loop_only_if_it_changes_and_is_read():
    def fn(x):
        return jax.lax.fori_loop(0, 10, lambda _, c: (c[0] + c[1], c[1], c[0], c[2] + 1), (x, 2 * x, x, x))[
            :2
        ]

    program = program_of(fn, 1.0)
    (loop,) = {id(loop): loop for loop in program.graph.loops.values()}.values()
    assert len(loop.carried) == 4  # the counter and all but the second, which does not change
    assert len(program.read_inside(loop)) == 1 and len(program.read_after(loop)) == 1


def test_zero_times_what_is_not_finite_is_not_hidden():
    def fn(x, y):
        return 0 * x + y, y * 2, x

    found = evaluate(program_of(fn, 1.0, 1.0), np.float32(np.inf), np.float32(3))
    assert np.isnan(found[1]) and found[2] == np.inf
    assert evaluate(program_of(fn, 1.0, 1.0), np.float32(5), np.float32(3)) == [3, 6, 5]


def test_a_number_that_nothing_reads_is_no_reason():
    def fn(x, y):
        return y * 2

    assert evaluate(program_of(fn, 1.0, 1.0), np.float32(np.nan), np.float32(3)) == [6]


def test_division_by_a_power_of_two_is_exact_and_by_others_a_division():
    graph = Graph()
    x = graph.new("input", (), np.dtype("float32"), 0)
    assert graph.ops[graph.apply("div", x, graph.constant(4, "float32"))] == "mul"
    for divisor in (3, 2.0**-149):  # the inverse of the latter is infinite
        assert graph.ops[graph.apply("div", x, graph.constant(divisor, "float32"))] == "div"


def test_constants_are_of_the_type_of_the_operation():
    program = program_of(lambda x: x + jnp.float32(1e-9) + jnp.float32(1), jnp.float32(0))
    assert evaluate(program, np.float32(0)) == [np.float32(1)]
    assert program.graph.dtypes[program.outputs[0]] == np.float32
