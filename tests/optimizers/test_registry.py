import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.optimizers import REGISTRY, adam, adamw, rmsprop, sgd

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
    with pytest.raises(ValueError, match="learning_rate is -1"):
        factory(learning_rate=-1)
    with pytest.raises(ValueError, match="max_grad_norm is 0"):
        factory(max_grad_norm=0)


def test_momentum_and_weight_decay_out_of_range_are_named():
    with pytest.raises(ValueError, match="momentum is 1.0"):
        sgd(momentum=1.0)
    with pytest.raises(ValueError, match="weight_decay is -0.1"):
        adamw(weight_decay=-0.1)


@pytest.mark.parametrize("factory", [sgd, adam, adamw, rmsprop])
def test_step_sizes_fall_linearly_to_zero(factory):
    constant, decayed = factory(learning_rate=0.1), factory(learning_rate=0.1, decay_updates=2)
    states = [optimizer.init(PARAMS) for optimizer in (constant, decayed)]
    shares = []
    for _ in range(4):
        whole, states[0] = constant.update(GRADS, states[0], PARAMS)
        part, states[1] = decayed.update(GRADS, states[1], PARAMS)
        shares.append(part["bias"] / whole["bias"])
    np.testing.assert_allclose(np.array(shares)[:, 0], [1, 0.5, 0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="decay_updates is 0"):
        factory(decay_updates=0)
