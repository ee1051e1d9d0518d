import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.estimators.surrogates import SURROGATES, PolicyGradientBatch, loaded_dice, ppo_clip

N, T = 3, 4
# The second episode ends after two steps.
MASK = jnp.array([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
NAMES = sorted(SURROGATES)


def log_prob_fn(theta):
    """[N, T] smooth functions of the parameters, with a different gradient and curvature at every step."""
    slopes = jnp.sin(jnp.arange(N * T * 2.0).reshape(N, T, 2))
    return -jax.nn.softplus(slopes @ theta)


THETA = jnp.array([0.3, -0.7])
# Garbage after the episode's end, which must not matter.
REWARD = jnp.where(MASK > 0, jnp.cos(3 * jnp.arange(N * T * 1.0)).reshape(N, T), 0)


def returns_to_go(reward, discount=1.0):
    weights = jnp.array([[discount ** (s - t) if s >= t else 0.0 for s in range(T)] for t in range(T)])
    return reward @ weights.T


def make_batch(mask=MASK, advantage=None, value=None, reward=REWARD, theta=THETA):
    value = jnp.zeros((N, T)) if value is None else value
    advantage = returns_to_go(reward) - value if advantage is None else advantage
    return PolicyGradientBatch(
        inputs=None,
        action=None,
        log_prob=log_prob_fn(theta),
        advantage=advantage,
        target=None,
        reward=reward,
        value=value,
        mask=mask,
        terminated=None,
        last_value=None,
    )


@functools.partial(jax.jit, static_argnames=("name", "discount"))
def derivatives(theta, batch, *, name, discount=1.0):
    def objective(theta):
        return SURROGATES[name](log_prob_fn(theta), batch, discount=discount, gae_lambda=1.0)

    return objective(theta), jax.grad(objective)(theta), jax.hessian(objective)(theta)


def scores():
    return jax.jacobian(log_prob_fn)(THETA)  # [N, T, 2]


@pytest.mark.parametrize("name", NAMES)
def test_first_derivative_is_the_policy_gradient(name):
    # Undiscounted Monte Carlo advantages without a baseline: the mean of score times return to go.
    expected = jnp.einsum("nt,nt,ntp->p", MASK, returns_to_go(REWARD), scores()) / (N * T)
    _, gradient, _ = derivatives(THETA, make_batch(), name=name)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_values_at_the_behaviour_parameters():
    batch = make_batch()
    value = {name: derivatives(THETA, batch, name=name)[0] for name in NAMES}
    np.testing.assert_allclose(
        value["reinforce"], (MASK * log_prob_fn(THETA) * batch.advantage).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(value["ratio"], (MASK * batch.advantage).mean(), rtol=1e-5)
    np.testing.assert_allclose(value["ppo-clip"], value["ratio"], rtol=1e-6)
    np.testing.assert_allclose(value["dice"], REWARD.sum() / (N * T), rtol=1e-5)
    assert value["loaded-dice"] == 0


def expected_dice_hessian(discount=1.0):
    """Sum over t of g^t r_t (S_t S_t' + H_t), S_t and H_t summed over the steps up to t."""
    score, curvature = scores(), jax.hessian(log_prob_fn)(THETA)
    total = np.zeros((2, 2))
    for n, t in itertools.product(range(N), range(T)):
        if MASK[n, t] == 0:
            continue
        past_score = np.asarray(score[n, : t + 1]).sum(0)
        past_curvature = np.asarray(curvature[n, : t + 1]).sum(0)
        weight = discount**t * float(REWARD[n, t])
        total += weight * (np.outer(past_score, past_score) + past_curvature)
    return total / (N * T)


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_second_derivative_of_dice_is_summed_per_episode_and_masked(discount):
    # Fails if the cumulative sum crosses episodes or contains steps after the end.
    _, _, hessian = derivatives(THETA, make_batch(), name="dice", discount=discount)
    np.testing.assert_allclose(hessian, expected_dice_hessian(discount), rtol=1e-4, atol=1e-6)


def test_second_derivative_of_loaded_dice_without_baseline_equals_that_of_dice():
    # With Monte Carlo advantages the two rearrange the same sum.
    _, _, hessian = derivatives(THETA, make_batch(), name="loaded-dice")
    np.testing.assert_allclose(hessian, expected_dice_hessian(), rtol=1e-4, atol=1e-6)


def test_discounts_of_dice_and_loaded_dice_agree():
    batch = make_batch(advantage=returns_to_go(REWARD, 0.8))
    _, dice_gradient, _ = derivatives(THETA, batch, name="dice", discount=0.8)
    _, loaded_gradient, loaded_hessian = derivatives(THETA, batch, name="loaded-dice", discount=0.8)
    np.testing.assert_allclose(loaded_gradient, dice_gradient, rtol=1e-4)
    np.testing.assert_allclose(loaded_hessian, expected_dice_hessian(0.8), rtol=1e-4, atol=1e-6)


def test_second_derivatives_differ_where_they_should():
    batch = make_batch()
    hessian = {name: derivatives(THETA, batch, name=name)[2] for name in NAMES}
    curvature = jax.hessian(log_prob_fn)(THETA)
    outer = jnp.einsum("nti,ntj->ntij", scores(), scores())
    weight = (MASK * batch.advantage)[..., None, None]
    np.testing.assert_allclose(hessian["reinforce"], (weight * curvature).sum((0, 1)) / (N * T), atol=1e-6)
    np.testing.assert_allclose(
        hessian["ratio"], (weight * (curvature + outer)).sum((0, 1)) / (N * T), atol=1e-6
    )
    np.testing.assert_allclose(hessian["ppo-clip"], hessian["ratio"], atol=1e-6)
    for one, other in [("reinforce", "ratio"), ("reinforce", "dice"), ("ratio", "dice")]:
        assert np.abs(hessian[one] - hessian[other]).max() > 1e-3


def test_loaded_dice_without_dependencies_on_earlier_actions_is_the_ratio():
    batch = make_batch()

    def hessian(decay):
        def objective(theta):
            return loaded_dice(
                log_prob_fn(theta), batch, discount=1.0, gae_lambda=1.0, dependency_decay=decay
            )

        return jax.hessian(objective)(THETA)

    np.testing.assert_allclose(hessian(0.0), derivatives(THETA, batch, name="ratio")[2], atol=1e-6)
    # In between, the cross terms of steps s < t weigh decay^(t - s).
    score = np.asarray(scores() * MASK[..., None])
    cross = np.zeros((2, 2))
    for n, s, t in itertools.product(range(N), range(T), range(T)):
        if s < t:
            product = np.outer(score[n, s], score[n, t])
            cross += 0.5 ** (t - s) * float(batch.advantage[n, t]) * (product + product.T)
    np.testing.assert_allclose(hessian(0.5), hessian(0.0) + cross / (N * T), atol=1e-6)


def test_dice_baseline_enters_the_first_derivative_as_an_advantage():
    value = jnp.where(MASK > 0, 0.3 + 0.1 * jnp.arange(N * T).reshape(N, T), 0)
    expected = jnp.einsum("nt,nt,ntp->p", MASK, returns_to_go(REWARD) - value, scores()) / (N * T)
    _, gradient, _ = derivatives(THETA, make_batch(value=value), name="dice")
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_linear_in_the_weights_of_episodes(name):
    weights = np.array([0.5, 2.0, 0.25])
    whole = derivatives(THETA, make_batch(mask=MASK * weights[:, None]), name=name)
    parts = [
        derivatives(THETA, make_batch(mask=MASK * (np.arange(N) == n)[:, None]), name=name) for n in range(N)
    ]
    for order in range(3):
        total = sum(weight * part[order] for weight, part in zip(weights, parts, strict=True))
        np.testing.assert_allclose(whole[order], total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_steps_after_the_end_do_not_matter(name):
    clean = make_batch()
    garbage = jnp.where(MASK > 0, 0, 50.0)
    dirty = clean._replace(
        log_prob=clean.log_prob - 10 * garbage,
        advantage=clean.advantage + garbage,
        reward=clean.reward + garbage,
        value=clean.value + garbage,
    )
    for one, other in zip(
        derivatives(THETA, clean, name=name), derivatives(THETA, dirty, name=name), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_stored_data_is_not_differentiated(name):
    batch = make_batch(value=jnp.ones((N, T)))

    def through_data(scale):
        scaled = jax.tree.map(lambda x: x * scale, batch)
        return SURROGATES[name](log_prob_fn(THETA), scaled._replace(mask=MASK), discount=1.0, gae_lambda=1.0)

    assert jax.grad(through_data)(1.0) == 0


@pytest.mark.parametrize(
    "advantage, ratio, expected", [(2, 1.5, 2.4), (2, 0.5, 1), (-2, 1.5, -3), (-2, 0.5, -1.6)]
)
def test_ppo_clip_by_hand(advantage, ratio, expected):
    # min(ratio A, clip(ratio, 0.8, 1.2) A): min(3, 2.4); min(1, 1.6); min(-3, -2.4); min(-1, -1.6)
    ones = jnp.ones((1, 1))
    batch = PolicyGradientBatch(None, None, 0 * ones, advantage * ones, None, ones, ones, ones, None, None)
    objective = ppo_clip(jnp.log(ratio) * ones, batch, discount=1.0, gae_lambda=1.0)
    np.testing.assert_allclose(objective, expected, rtol=1e-6)
