import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.estimators.advantages import (
    discounted_returns,
    gae,
    has_signal,
    normalize,
    root_mean_square,
)

REWARD = jnp.array([1.0, 2.0, 3.0])
ONES, NEVER = jnp.ones(3), jnp.zeros(3, bool)


def test_returns_by_hand():
    # 3; 2 + 0.5 * 3 = 3.5; 1 + 0.5 * 3.5 = 2.75
    np.testing.assert_allclose(discounted_returns(REWARD, ONES, discount=0.5), [2.75, 3.5, 3.0])
    # 3 + 0.5 * 4 = 5; 2 + 2.5 = 4.5; 1 + 2.25 = 3.25
    returns = discounted_returns(REWARD, ONES, discount=0.5, bootstrap_value=4.0)
    np.testing.assert_allclose(returns, [3.25, 4.5, 5.0])


def test_returns_do_not_cross_the_mask():
    # The rewards after the mask, and the bootstrap, are not the episode's: 2; 1 + 0.5 * 2 = 2.
    mask = jnp.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(
        discounted_returns(REWARD, mask, discount=0.5, bootstrap_value=100.0), [2.0, 2.0, 0.0]
    )


def test_gae_by_hand_at_the_time_limit():
    advantage, target = gae(
        REWARD, jnp.array([1.0, 0.0, 2.0]), jnp.array(4.0), NEVER, ONES, discount=0.5, gae_lambda=0.5
    )
    # delta: 1 + 0.5 * 0 - 1 = 0; 2 + 0.5 * 2 - 0 = 3; 3 + 0.5 * 4 - 2 = 3
    # advantage: 3; 3 + 0.25 * 3 = 3.75; 0 + 0.25 * 3.75 = 0.9375
    np.testing.assert_allclose(advantage, [0.9375, 3.75, 3.0])
    np.testing.assert_allclose(target, [1.9375, 3.75, 5.0])


def test_gae_by_hand_at_a_terminal_last_step():
    terminated = jnp.array([False, False, True])
    advantage, _ = gae(
        REWARD, jnp.array([1.0, 0.0, 2.0]), jnp.array(4.0), terminated, ONES, discount=0.5, gae_lambda=0.5
    )
    # delta: 0; 3; 3 - 2 = 1.  advantage: 1; 3 + 0.25 = 3.25; 0.25 * 3.25 = 0.8125
    np.testing.assert_allclose(advantage, [0.8125, 3.25, 1.0])


def test_gae_ends_at_a_terminal_step_and_its_mask():
    terminated = jnp.array([False, True, False])
    mask = jnp.array([1.0, 1.0, 0.0])
    # The third step's reward and value, and the last value, are garbage.
    arguments = (jnp.array([1.0, 2.0, 77.0]), jnp.array([1.0, 0.5, 88.0]), jnp.array(99.0), terminated, mask)
    advantage, target = gae(*arguments, discount=0.5, gae_lambda=1.0)
    # delta: 1 + 0.5 * 0.5 - 1 = 0.25; 2 - 0.5 = 1.5.  advantage: 0.25 + 0.5 * 1.5 = 1
    np.testing.assert_allclose(advantage, [1.0, 1.5, 0.0])
    np.testing.assert_allclose(target, [2.0, 2.0, 0.0])


def test_nothing_flows_back_over_a_terminal_step_even_where_the_mask_goes_on():
    terminated = jnp.array([False, True, False])
    value = jnp.array([1.0, 0.5, 8.0])
    advantage, _ = gae(REWARD, value, jnp.array(2.0), terminated, ONES, discount=0.5, gae_lambda=1.0)
    # delta: 1 + 0.25 - 1 = 0.25; 2 - 0.5 = 1.5; 3 + 1 - 8 = -4.  advantage: 0.25 + 0.5 * 1.5 = 1
    np.testing.assert_allclose(advantage, [1.0, 1.5, -4.0])


def test_gae_at_lambda_one_is_return_minus_value_and_at_zero_the_temporal_difference():
    value, last_value = jnp.array([0.3, -0.2, 0.7]), jnp.array(1.1)
    one, _ = gae(REWARD, value, last_value, NEVER, ONES, discount=0.9, gae_lambda=1.0)
    returns = discounted_returns(REWARD, ONES, discount=0.9, bootstrap_value=last_value)
    np.testing.assert_allclose(one, returns - value, rtol=1e-6)
    zero, _ = gae(REWARD, value, last_value, NEVER, ONES, discount=0.9, gae_lambda=0.0)
    np.testing.assert_allclose(zero, REWARD + 0.9 * jnp.array([-0.2, 0.7, 1.1]) - value, rtol=1e-6)


def test_normalize_uses_the_masked_standard_deviation():
    # Of 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5.
    advantage = jnp.array([[1.0, 3.0, 1000.0], [5.0, 7.0, -1000.0]])
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    expected = np.array([[-3, -1, 0], [1, 3, 0]]) / np.sqrt(5)
    np.testing.assert_allclose(normalize(advantage, mask, scale=5.0), expected, atol=1e-5)


def test_normalize_weighs_by_the_mask():
    weighted = normalize(jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0]), scale=1.0)
    repeated = normalize(jnp.array([1.0, 1.0, 1.0, 5.0]), jnp.ones(4), scale=1.0)
    np.testing.assert_allclose(weighted, repeated[-2:], rtol=1e-5)


@pytest.mark.parametrize("advantage", [jnp.zeros(4), jnp.full(4, 3.3)])
def test_equal_advantages_become_zero_and_have_finite_derivatives(advantage):
    np.testing.assert_array_equal(normalize(advantage, jnp.ones(4), scale=0.0), 0)
    np.testing.assert_array_equal(normalize(advantage, jnp.zeros(4), scale=1.0), 0)

    def squares(advantage):
        return jnp.square(normalize(advantage, jnp.ones(4), scale=0.0)).sum()

    np.testing.assert_array_equal(jax.grad(squares)(advantage), 0)
    np.testing.assert_array_equal(jax.hessian(squares)(advantage), 0)


def test_differences_that_returns_round_away_are_no_signal():
    tiny = jnp.array([0.0, 1e-3, -1e-3, 2e-3])
    np.testing.assert_array_equal(normalize(tiny, jnp.ones(4), scale=1e3), 0)
    assert np.abs(normalize(tiny, jnp.ones(4), scale=1.0)).max() > 1


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_normalize_knows_no_units(size):
    advantage = jnp.array([1.0, 3.0, 5.0, 7.0])
    expected = np.array([-3, -1, 1, 3]) / np.sqrt(5)
    np.testing.assert_allclose(normalize(size * advantage, jnp.ones(4), scale=size), expected, rtol=1e-4)
    found = root_mean_square(size * advantage, jnp.ones(4))
    np.testing.assert_allclose(found / size, np.sqrt(21), rtol=1e-5)


def test_root_mean_square_by_hand():
    # sqrt((2 * 9 + 16) / 3); nothing has no size.
    found = root_mean_square(jnp.array([3.0, -4.0, 100.0]), jnp.array([2.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, np.sqrt(34 / 3), rtol=1e-6)
    assert root_mean_square(jnp.ones(3), jnp.zeros(3)) == 0


@pytest.mark.parametrize(
    ("reward", "mask", "expected"),
    [
        ([[1.0, 2, 3], [1, 2, 3]], [[1, 1, 1], [1, 1, 1]], False),  # whatever was done, the same came of it
        ([[1.0, 2, 3], [1, 2, 3.1]], [[1, 1, 1], [1, 1, 1]], True),
        ([[0.0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 0]], False),
        ([[1.0, 1, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 0]], True),  # the second ended early, and lost one
        ([[1.0, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 0]], False),  # nothing to compare with
        ([[1.0, 1, 0]], [[1, 1, 0]], False),
        ([[1.0, 1, 2]], [[1, 1, 1]], True),
    ],
)
def test_rewards_that_are_all_the_same_are_no_signal(reward, mask, expected):
    for size in (1e-20, 1.0, 1e20):
        assert has_signal(size * jnp.array(reward), jnp.array(mask, float)) == expected


def test_ranks_are_checked():
    with pytest.raises(AssertionError):
        discounted_returns(jnp.ones((2, 3)), jnp.ones((2, 3)), discount=0.9)
    batched = jax.vmap(lambda r, m: discounted_returns(r, m, discount=0.9))(
        jnp.ones((2, 3)), jnp.ones((2, 3))
    )
    assert batched.shape == (2, 3)
