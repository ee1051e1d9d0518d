"""Mapping with the batch last gives what `jax.vmap` gives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jmeta.envs.batch_last import batch_last

INDICES = jnp.array([2, 0, 2])
MATRIX = jnp.arange(12.0).reshape(3, 4) / 7


def scanned(x):
    def body(carry, row):
        return carry + jnp.sin(row) * x[0, 0], (carry, row.sum(), jnp.ones(2))

    return jax.lax.scan(body, jnp.zeros(4), x), jax.lax.scan(body, x[1], MATRIX, reverse=True)


def index(x):
    """An index that depends on the example."""
    return jnp.argmax(x[:, 0])


# Of an array [3, 4], one example.
FUNCTIONS = {
    "elementwise": lambda x: jnp.where(x > 0.2, jnp.sin(x) * 2, -x) / (1 + x[0, 0]),
    "scalars": lambda x: jnp.clip(x[0, 0] * MATRIX, 0.1, x[1, 1] + 1),
    "broadcast": lambda x: x[:, None, 1:] * x[None, :, :3] + x.T[:3, :3],
    "reshape": lambda x: (x.reshape(2, 6), x.ravel()[::2], jnp.tile(x, (2, 1)), x[::-1]),
    "reshape of a transpose": lambda x: jax.lax.reshape(x, (2, 6), dimensions=(1, 0)),
    "stack": lambda x: (jnp.stack([x[0], x[1] * 2], axis=1), jnp.stack([x[0, 0], MATRIX[1, 1]])),
    "split": lambda x: jnp.split(x, [1, 3], axis=1),
    "concatenate": lambda x: jnp.concatenate([x, MATRIX, jnp.stack([x[0], x[1] * 2])], axis=0),
    "product": lambda x: (x @ MATRIX.T, MATRIX.T @ x, x @ x.T, x[0] @ x[1], x @ x[0]),
    "batched product": lambda x: jnp.einsum("ij,ikj,il->ikl", x, jnp.stack([x, MATRIX], 1), x),
    "long product": lambda x: jnp.tile(x, (1, 3)) @ jnp.tile(MATRIX, (1, 3)).T,
    "types of products": lambda x: (
        jnp.dot((x * 20).astype("int8"), MATRIX.T.astype("int8"), preferred_element_type="int32"),
        jnp.dot(x.astype("bfloat16"), MATRIX.T.astype("bfloat16"), preferred_element_type="float32"),
        jnp.dot(x.astype("bfloat16"), MATRIX.T.astype("bfloat16")),
        jnp.dot(x > 0, MATRIX.T > 1),
    ),
    "short and long sums": lambda x: (x.sum(), x.sum(0), x.sum(1), jnp.tile(x, (3, 3)).sum(0)),
    "reductions": lambda x: (x.max(0), x.min(1), x.prod(), (x > 0).any(1), (x > -9).all(), x.argmax(1)),
    "cumulative": lambda x: (jnp.cumsum(x, 0), jax.lax.cummax(x, 1)),
    "gather": lambda x: (x[INDICES], x[:, INDICES], x[INDICES, INDICES]),
    "scatter": lambda x: (
        x.at[INDICES].add(MATRIX),
        MATRIX.at[:, INDICES].add(x[:, :3]),
        x.at[1].set(x[0, 0]),
        x.at[:, 2:].multiply(x[:, :2]),
    ),
    "own index": lambda x: (
        x[index(x)],
        x.at[index(x)].add(1.0),
        jax.lax.dynamic_slice(x, (index(x), 0), (1, 2)),
    ),
    "loops": lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x),
    "branches": lambda x: jax.lax.cond(x.sum() > 0, lambda: x, lambda: -x),
    "scan": scanned,
    "own derivatives": lambda x: (jax.nn.relu(x), jax.nn.softmax(x), jnp.linalg.norm(x, axis=0)),
    "sort": lambda x: jnp.sort(x, axis=0),
    "constant": lambda x: (MATRIX, jnp.arange(3), 1.5 * x[0]),
    "integers": lambda x: (x > 0).astype(int) % 2 + 3,
    "nothing": lambda x: x[:, :0].sum(1),
}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_vmap(name):
    x = jax.random.normal(jax.random.key(0), (5, 3, 4))
    fn = FUNCTIONS[name]
    assert_same(jax.jit(jax.vmap(batch_last(fn)))(x), jax.vmap(fn)(x))


def test_nested_maps_with_an_argument_that_the_inner_one_shares():
    def fn(tree, scale):
        return {"y": tree["x"] @ MATRIX * scale, "n": tree["n"] + 1}

    def nested(fn):
        return jax.vmap(jax.vmap(fn, in_axes=(0, None)))

    tree = {"x": jax.random.normal(jax.random.key(0), (2, 5, 3)), "n": jnp.arange(10).reshape(2, 5)}
    scale = jnp.array([1.0, -3.0])
    assert_same(nested(batch_last(fn))(tree, scale), nested(fn)(tree, scale))
    one = jax.tree.map(lambda x: x[1, 2], tree)
    assert_same(batch_last(fn)(one, scale[0]), fn(one, scale[0]))
    within = jax.jit(
        lambda tree: jax.lax.map(lambda row: jax.vmap(batch_last(fn), (0, None))(row, 2.0), tree)
    )
    assert_same(within(tree), jax.vmap(jax.vmap(lambda row: fn(row, 2.0)))(tree))


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 0), (0, 2), (1, 1)])
def test_batches_of_none_and_of_one(shape):
    def fn(x):
        return jnp.sin(x @ MATRIX).sum()

    plain, mapped = fn, batch_last(fn)
    for _ in shape:
        plain, mapped = jax.vmap(plain), jax.vmap(mapped)
    x = jnp.arange(math.prod(shape) * 3.0).reshape(*shape, 3)
    assert_same(mapped(x), plain(x))


def test_a_number_of_no_type_stays_one():
    def fn(x, scale):
        return x.astype("bfloat16") * scale

    x = jnp.ones((5, 3))
    assert_same(jax.vmap(batch_last(fn), (0, None))(x, 2.0), jax.vmap(fn, (0, None))(x, 2.0))


def with_own_derivative(fn):
    fn = jax.custom_jvp(fn)
    fn.defjvp(lambda primals, tangents: (fn(*primals), 2 * tangents[0].sum()))
    return fn


def test_a_derivative_of_its_own_is_kept():
    @with_own_derivative
    def fn(x):
        return jnp.sin(x).sum()

    x = jnp.ones((5, 3))
    found = jax.grad(lambda x: jax.vmap(batch_last(fn))(x).sum())(x)
    np.testing.assert_array_equal(found, 2 * jnp.ones((5, 3)))


@pytest.mark.parametrize("wrap", [lambda fn: fn, with_own_derivative], ids=["plain", "own derivative"])
def test_the_batch_is_last_inside(wrap):
    @wrap
    def fn(x):
        return jnp.sin(jnp.concatenate([x @ MATRIX, x[INDICES] * 2])).sum()

    shapes = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "sin":
                shapes.append(equation.outvars[0].aval.shape)
            for inner in jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(jax.vmap(jax.vmap(batch_last(fn))))(jnp.ones((2, 5, 3))).jaxpr)
    assert shapes and shapes[-1] == (7, 10)


@pytest.mark.parametrize("inside", [False, True], ids=["around the map", "inside the map"])
def test_derivatives(inside):
    def fn(x, n):
        return jnp.sin(x[INDICES] @ MATRIX).sum() * n

    def total(fn):
        if inside:
            return lambda x, n: jax.vmap(jax.value_and_grad(fn), (0, None))(x, n)
        return jax.value_and_grad(lambda x, n: jax.vmap(fn, (0, None))(x, n).sum())

    x = jax.random.normal(jax.random.key(0), (5, 3))
    assert_same(total(batch_last(fn))(x, 3), total(fn)(x, 3))
    tangents = [
        jax.jvp(lambda x, fn=f: jax.vmap(fn, (0, None))(x, 3), (x,), (x * 2,)) for f in (batch_last(fn), fn)
    ]
    assert_same(*tangents)
