import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jmeta import distributions
from jmeta.distributions import Categorical, DiagonalNormal, NormalParams, TanhNormal
from jmeta.types import Continuous, Discrete

P = NormalParams(jnp.array([0.5, -1.0]), jnp.array([-0.5, 0.3]))
Q = NormalParams(jnp.array([0.0, -0.4]), jnp.array([0.2, 0.1]))
LOGITS_P, LOGITS_Q = jnp.array([0.0, 1.0, -2.0]), jnp.array([0.5, 0.5, 0.0])


def scipy_normal(params, dimension):
    return scipy.stats.norm(float(params.mean[dimension]), float(np.exp(params.log_std[dimension])))


def test_normal_log_prob_and_entropy_are_summed_over_action_dimensions():
    action = np.array([0.1, 0.7])
    expected = sum(scipy_normal(P, i).logpdf(action[i]) for i in range(2))
    np.testing.assert_allclose(DiagonalNormal.log_prob(P, jnp.array(action)), expected, rtol=1e-5)
    np.testing.assert_allclose(
        DiagonalNormal.entropy(P), sum(scipy_normal(P, i).entropy() for i in range(2)), rtol=1e-5
    )
    np.testing.assert_array_equal(DiagonalNormal.mode(P), P.mean)


def test_normal_kl_equals_its_integral():
    def integrand(x, i):
        p, q = scipy_normal(P, i), scipy_normal(Q, i)
        return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))

    expected = sum(scipy.integrate.quad(integrand, -12, 12, args=(i,))[0] for i in range(2))
    np.testing.assert_allclose(DiagonalNormal.kl(P, Q), expected, rtol=1e-4)
    assert DiagonalNormal.kl(P, P) == 0
    assert abs(DiagonalNormal.kl(Q, P) - expected) > 0.1  # KL(p || q), not KL(q || p)


def test_normal_samples_have_their_moments():
    samples = jax.vmap(DiagonalNormal.sample, (0, None))(jax.random.split(jax.random.key(0), 20_000), P)
    # Standard error of a mean is at most 1.35 / sqrt(20000) = 0.0095.
    np.testing.assert_allclose(samples.mean(0), P.mean, atol=0.04)
    np.testing.assert_allclose(samples.std(0), np.exp(P.log_std), atol=0.04)


@pytest.mark.parametrize("mean, log_std", [(0.0, 0.0), (1.5, -1.0), (-3.0, 0.7), (0.3, 1.0)])
def test_tanh_normal_density_integrates_to_one_and_has_the_stated_entropy(mean, log_std):
    params = NormalParams(jnp.array([mean]), jnp.array([log_std]))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(float), params)
        # On x = atanh(a), where both integrands are smooth: da = (1 - tanh(x)^2) dx.
        x = np.linspace(mean - 9 * np.exp(log_std), mean + 9 * np.exp(log_std), 20_001)
        inside = np.abs(np.tanh(x)) < distributions._MAX_SQUASHED
        x = x[inside]
        log_prob = np.asarray(jax.vmap(TanhNormal.log_prob, (None, 0))(params, jnp.tanh(x)[:, None]))
        density = np.exp(log_prob) * (1 - np.tanh(x) ** 2)
        # The rest of the mass is where the action rounds to +-1.
        lost = 1 - np.diff(scipy.stats.norm(mean, np.exp(log_std)).cdf(x[[0, -1]]))[0]
        np.testing.assert_allclose(np.trapezoid(density, x), 1 - lost, atol=1e-6)
        wide = np.linspace(mean - 9 * np.exp(log_std), mean + 9 * np.exp(log_std), 20_001)
        slope = 2 * (np.log(2) - wide - np.logaddexp(0, -2 * wide))
        normal = scipy.stats.norm(mean, np.exp(log_std))
        expected = np.trapezoid(normal.pdf(wide) * (slope - normal.logpdf(wide)), wide)
        np.testing.assert_allclose(TanhNormal.entropy(params), expected, atol=0.01)


def test_tanh_normal_is_finite_where_actions_saturate():
    params = NormalParams(jnp.array([12.0]), jnp.array([0.0]))
    sampled = TanhNormal.sample(jax.random.key(0), params)
    assert 1 - 1e-6 < sampled <= 1.0  # as the compiler rounds
    for action in (sampled, jnp.ones(1), -jnp.ones(1)):
        value, gradient = jax.value_and_grad(TanhNormal.log_prob)(params, action)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in gradient)


def test_tanh_normal_samples_agree_with_its_log_prob():
    # E[log p(a)] = -entropy.
    samples = jax.vmap(TanhNormal.sample, (0, None))(jax.random.split(jax.random.key(1), 20_000), P)
    log_probs = jax.vmap(TanhNormal.log_prob, (None, 0))(P, samples)
    np.testing.assert_allclose(-log_probs.mean(), TanhNormal.entropy(P), atol=0.03)
    np.testing.assert_allclose(TanhNormal.kl(P, Q), DiagonalNormal.kl(P, Q))
    np.testing.assert_allclose(TanhNormal.mode(P), np.tanh(P.mean))


def test_categorical_equals_scipy():
    p, q = scipy.special.softmax(LOGITS_P), scipy.special.softmax(LOGITS_Q)
    for action in range(3):
        np.testing.assert_allclose(
            Categorical.log_prob(LOGITS_P, jnp.int32(action)), np.log(p[action]), rtol=1e-5
        )
    np.testing.assert_allclose(Categorical.entropy(LOGITS_P), scipy.stats.entropy(p), rtol=1e-5)
    np.testing.assert_allclose(Categorical.kl(LOGITS_P, LOGITS_Q), scipy.stats.entropy(p, q), rtol=1e-5)
    assert Categorical.mode(LOGITS_P) == 1
    samples = jax.vmap(Categorical.sample, (0, None))(jax.random.split(jax.random.key(0), 20_000), LOGITS_P)
    assert samples.dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(samples) / 20_000, p, atol=0.02)


def test_for_action():
    assert distributions.for_action(Continuous(2)) is DiagonalNormal
    assert distributions.for_action(Discrete(2)) is Categorical
    with pytest.raises(ValueError, match="action is 3"):
        distributions.for_action(3)


CLOSED = jnp.array([0.0, 1.0, -jnp.inf])  # the distribution of the first two
PAIR = CLOSED[:2]


def test_a_closed_action_adds_nothing():
    np.testing.assert_allclose(Categorical.entropy(CLOSED), Categorical.entropy(PAIR), rtol=1e-6)
    np.testing.assert_allclose(Categorical.entropy(CLOSED), 0.5822, atol=1e-4)
    assert Categorical.kl(CLOSED, CLOSED) == 0
    log_p, log_q = jax.nn.log_softmax(PAIR), jax.nn.log_softmax(LOGITS_Q)[:2]
    expected = np.sum(np.exp(log_p) * (log_p - log_q))
    np.testing.assert_allclose(Categorical.kl(CLOSED, LOGITS_Q), expected, rtol=1e-5)
    assert Categorical.kl(LOGITS_P, CLOSED) == jnp.inf  # plays what the other closes
    log_probs = jax.vmap(Categorical.log_prob, (None, 0))(CLOSED, jnp.arange(3))
    np.testing.assert_allclose(log_probs, [*jax.nn.log_softmax(PAIR), -np.inf], rtol=1e-6)
    samples = jax.vmap(Categorical.sample, (0, None))(jax.random.split(jax.random.key(0), 1000), CLOSED)
    assert set(samples.tolist()) == {0, 1}
    assert Categorical.mode(jnp.array([-jnp.inf, -3.0, -2.0])) == 2


@pytest.mark.parametrize(
    "of",
    [
        Categorical.entropy,
        lambda logits: Categorical.kl(logits, logits + 1),
        lambda logits: Categorical.kl(jax.lax.stop_gradient(logits), 2 * logits),
        lambda logits: Categorical.kl(logits, jnp.ones(logits.shape)),
        lambda logits: Categorical.log_prob(logits, jnp.int32(0)),
        lambda logits: jnp.exp(Categorical.log_prob(logits, jnp.int32(logits.size - 1))),
    ],
    ids=["entropy", "kl", "kl to another", "kl to an open one", "log-probability", "its exponential"],
)
def test_derivatives_at_closed_actions_are_those_without_them(of):
    if of(CLOSED) == 0 and of(PAIR) != 0:  # the probability of the closed action
        expected = np.zeros(2), np.zeros((2, 2))
    else:
        expected = jax.grad(of)(PAIR), jax.hessian(of)(PAIR)
    gradient, hessian = jax.grad(of)(CLOSED), jax.hessian(of)(CLOSED)
    np.testing.assert_allclose(gradient, np.pad(expected[0], (0, 1)), atol=1e-6)
    np.testing.assert_allclose(hessian, np.pad(expected[1], (0, 1)), atol=1e-6)


def test_open_actions_only_change_nothing_and_closed_ones_only_have_no_distribution():
    logits = 5 * jax.random.normal(jax.random.key(0), (100, 7))
    log_probs = jax.vmap(Categorical.log_prob, (None, 0))(logits, jnp.arange(7)[:, None])
    np.testing.assert_array_equal(log_probs.T, jax.nn.log_softmax(logits))
    nothing = jnp.full(3, -jnp.inf)
    assert np.isnan(Categorical.entropy(nothing)) and np.isnan(Categorical.log_prob(nothing, jnp.int32(0)))
