import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.optimizers import skip_nonfinite

PARAMS = {"a": jnp.ones(2), "b": jnp.float32(3.0)}
GOOD = {"a": jnp.array([1.0, -2.0]), "b": jnp.float32(0.5)}


@pytest.fixture(scope="module")
def adam():
    optimizer = skip_nonfinite(optax.adam(0.1))
    return optimizer, jax.jit(optimizer.update)


def assert_trees_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_finite_updates_are_those_of_the_wrapped_optimizer(adam):
    optimizer, update = adam
    updates, state = update(GOOD, optimizer.init(PARAMS), PARAMS)
    plain = optax.adam(0.1)
    expected, expected_state = jax.jit(plain.update)(GOOD, plain.init(PARAMS), PARAMS)
    assert_trees_equal(updates, expected)
    assert_trees_equal(state.inner, expected_state)
    assert state.skipped == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_never_accepts_a_non_finite_gradient(adam, bad):
    optimizer, update = adam
    _, start = update(GOOD, optimizer.init(PARAMS), PARAMS)
    state = start
    for _ in range(50):
        updates, state = update(GOOD | {"b": jnp.array(bad)}, state, PARAMS)
        assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert state.skipped == 50
    assert_trees_equal(state.inner, start.inner)
    updates, state = update(GOOD, state, PARAMS)
    assert state.skipped == 50 and np.abs(updates["a"]).min() > 0


def test_skips_a_non_finite_update_of_finite_gradients():
    # 3e38 * 10 overflows float32.
    optimizer = skip_nonfinite(optax.scale(-10.0))
    updates, state = optimizer.update(GOOD | {"b": jnp.array(3e38)}, optimizer.init(PARAMS))
    assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert state.skipped == 1


def test_skips_an_update_whose_new_state_is_not_finite(adam):
    # The square of 1e25 overflows: with a second moment of infinity Adam would never move again.
    optimizer, update = adam
    _, start = update(GOOD, optimizer.init(PARAMS), PARAMS)
    updates, state = update(GOOD | {"b": jnp.array(1e25)}, start, PARAMS)
    assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_trees_equal(state.inner, start.inner)
    assert state.skipped == 1
    updates, state = update(GOOD, state, PARAMS)
    assert state.skipped == 1 and updates["b"] != 0


def test_a_state_may_be_infinite_from_the_start():
    optimizer = skip_nonfinite(optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau()))
    state = optimizer.init(PARAMS)
    assert any(jnp.isinf(leaf).any() for leaf in jax.tree.leaves(state.inner))
    updates, state = optimizer.update(GOOD, state, PARAMS, value=jnp.float32(1.0))
    assert state.skipped == 0 and updates["b"] != 0


def test_extra_arguments_reach_the_wrapped_optimizer_and_are_ignored_by_one_that_takes_none():
    def update(updates, state, params=None, *, factor, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda u: factor * u, updates), state

    taking = skip_nonfinite(optax.GradientTransformationExtraArgs(lambda params: (), update))
    updates, _ = taking.update(GOOD, taking.init(PARAMS), PARAMS, factor=2.0, other=None)
    assert_trees_equal(updates, jax.tree.map(lambda x: 2 * x, GOOD))
    ignoring = skip_nonfinite(optax.sgd(1.0))
    ignoring.update(GOOD, ignoring.init(PARAMS), PARAMS, factor=2.0)


def test_state_keeps_its_types(adam):
    optimizer, update = adam
    state = optimizer.init(PARAMS)
    assert jax.tree.map(jax.typeof, update(GOOD, state, PARAMS)[1]) == jax.tree.map(jax.typeof, state)
