import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.optimizers import REGISTRY, adam, adamw, global_norm, report, rmsprop, sgd, trpo

PARAMS = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
GRADS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, -4.0)}
FIRST_ORDER = ["adam", "adamw", "rmsprop", "sgd"]


def first_update(optimizer, grads=GRADS):
    return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]


def test_names():
    assert sorted(REGISTRY) == [*FIRST_ORDER, "trpo"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_hyperparameter_is_keyword_only_with_a_default(name):
    for parameter in inspect.signature(REGISTRY[name]).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
        assert parameter.annotation is not parameter.empty


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_defaults_go_downhill(name):
    updates = first_update(REGISTRY[name]())
    assert (updates["kernel"] < 0).all() and (updates["bias"] > 0).all()


def test_sgd_by_hand():
    np.testing.assert_allclose(first_update(sgd(learning_rate=0.5))["bias"], 2.0)
    optimizer = sgd(learning_rate=0.5, momentum=0.9)
    _, state = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    # 0.5 * (4 + 0.9 * 4)
    np.testing.assert_allclose(optimizer.update(GRADS, state, PARAMS)[0]["bias"], 3.8, rtol=1e-6)


def test_adamw_decays_matrices_alone():
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    updates = first_update(adamw(learning_rate=0.1, weight_decay=0.5), zero)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_gradient_norm_is_bounded():
    # The norm is sqrt(4 * 9 + 2 * 16) = sqrt(68).
    updates = first_update(sgd(learning_rate=1.0, max_grad_norm=1.0))
    np.testing.assert_allclose(updates["kernel"], -3 / np.sqrt(68), rtol=1e-6)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-6)
    unbounded = first_update(sgd(learning_rate=1.0, max_grad_norm=100.0))
    np.testing.assert_allclose(unbounded["kernel"], -3.0, rtol=1e-6)


@pytest.mark.parametrize("factory", [sgd, adam, adamw, rmsprop])
def test_values_out_of_range_are_named(factory):
    with pytest.raises(ValueError, match="learning_rate must be finite and not negative, got -1"):
        factory(learning_rate=-1)
    with pytest.raises(ValueError, match="max_grad_norm must be positive and finite, got 0"):
        factory(max_grad_norm=0)


def test_momentum_and_weight_decay_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.0"):
        sgd(momentum=1.0)
    with pytest.raises(ValueError, match="weight_decay must be finite and not negative, got -0.1"):
        adamw(weight_decay=-0.1)


@pytest.mark.parametrize("factory", [sgd, adam, adamw, rmsprop])
def test_step_sizes_fall_linearly_to_zero_over_the_iterations(factory):
    constant, decayed = factory(learning_rate=0.1), factory(learning_rate=0.1, decay=True, num_iterations=2)
    states = [optimizer.init(PARAMS) for optimizer in (constant, decayed)]
    shares = []
    for iteration in (0, 0, 1, 2, 3):  # two updates in the first iteration
        whole, states[0] = constant.update(GRADS, states[0], PARAMS)
        part, states[1] = decayed.update(GRADS, states[1], PARAMS, iteration=iteration)
        shares.append(part["bias"] / whole["bias"])
        np.testing.assert_allclose(report(states[1])["outer_learning_rate"], 0.1 * shares[-1][0], atol=1e-7)
    np.testing.assert_allclose(np.array(shares)[:, 0], [1, 1, 0.5, 0, 0], atol=1e-6)


def test_a_decay_needs_to_know_the_run():
    with pytest.raises(ValueError, match="num_iterations must be given where decay is True, got None"):
        adam(decay=True)
    with pytest.raises(ValueError, match="num_iterations must be at least 0, got -1"):
        adam(decay=True, num_iterations=-1)
    optimizer = adam(decay=True, num_iterations=2)
    with pytest.raises(ValueError, match="iteration must be given"):
        optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_a_norm_is_exact_whatever_its_size(size):
    grads = jax.tree.map(lambda leaf: size * leaf, GRADS)
    np.testing.assert_allclose(global_norm(grads), size * np.sqrt(68), rtol=1e-6)
    clipped = first_update(sgd(learning_rate=1.0, max_grad_norm=size), grads)
    np.testing.assert_allclose(global_norm(clipped), size, rtol=1e-6)


def test_a_norm_of_zero_has_a_derivative():
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    assert global_norm(zeros) == 0
    slopes = jax.grad(global_norm)(zeros)
    np.testing.assert_array_equal(slopes["kernel"], 0)
    tangent = jax.jvp(lambda grads: first_update(sgd(max_grad_norm=1.0), grads), (zeros,), (GRADS,))[1]
    np.testing.assert_allclose(tangent["bias"], 0.4, rtol=1e-6)  # as without a bound


def test_the_report_finds_the_step_size_of_optax_too():
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=0.3)
    np.testing.assert_allclose(report(injected.init(PARAMS))["outer_learning_rate"], 0.3)
    assert report(optax.adam(0.3).init(PARAMS)) == {}
    assert report(trpo().init(PARAMS)) == {"rejected": 0}
    by_plateau = optax.chain(sgd(learning_rate=0.4), optax.contrib.reduce_on_plateau(factor=0.5))
    state = by_plateau.init(PARAMS)
    for value in range(12):  # it never falls
        _, state = by_plateau.update(GRADS, state, PARAMS, value=jnp.float32(value))
    np.testing.assert_allclose(report(state)["outer_learning_rate"], 0.2)
