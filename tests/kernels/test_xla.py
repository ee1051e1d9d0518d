"""A scalar program as vectors of JAX: what accelerators get, checked on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.kernels import xla
from jmeta.kernels.program import Program
from tests.kernels.functions import FUNCTIONS


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_every_operation(double):
    def fn(x):
        return [f(x) for f in FUNCTIONS.values()]

    with jax.enable_x64(double):
        x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
        program = Program(jax.make_jaxpr(fn)(x[0, 0]))
        found = jax.jit(lambda x: xla.batched(program, 2, x))(x)
        expected = jax.tree.leaves(jax.jit(jax.vmap(jax.vmap(fn)))(x))
        tolerance = 1e-13 if double else 2e-5
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_a_loop_carries_one_array_for_each_type():
    def fn(x, n):
        return jax.lax.fori_loop(0, 5, lambda _, c: (c[0] * x[0], c[1] + c[0][0], c[2] + n), (x, x, n))

    program = Program(jax.make_jaxpr(fn)(jnp.ones(3), 1))
    traced = jax.make_jaxpr(lambda x, n: xla.batched(program, 1, x, n))(jnp.ones((7, 3)), jnp.ones(7, int))
    (loop,) = [equation for equation in traced.jaxpr.eqns if equation.primitive.name == "scan"]
    carried = [str(variable.aval) for variable in loop.outvars]
    assert [x for x in carried if "7" in x] == ["float32[6,7]", "int32[1,7]"]


def test_one_kernel_for_a_tpu_interpreted():
    """A ragged batch of two tiles, of numbers of every type that is kept in memory as another."""

    def fn(x, n, b):
        x, n = jax.lax.fori_loop(
            0, 5, lambda _, c: (jnp.where(b, jnp.sin(c[0]), -c[0] * 2), c[1] + 1), (x, n)
        )
        return x @ x, n, x > 0, n % 2 == 0, x

    x = jax.random.normal(jax.random.key(0), (10, 103, 3))
    n = jnp.arange(1030).reshape(10, 103)
    program = Program(jax.make_jaxpr(fn)(x[0, 0], n[0, 0], True))
    found = xla.in_one_tpu_kernel(program, 2, x, n, n % 3 == 0, interpret=True)
    expected = jax.vmap(jax.vmap(fn))(x, n, n % 3 == 0)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
