"""Adaptation and its derivatives against exact enumeration and finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import optimizers, policies
from jmeta.estimators.surrogates import SURROGATES
from jmeta.inner import policy_gradient as pg
from jmeta.inner.loop import DIFFERENTIATIONS, inner_loop, symmetric_gradient
from jmeta.types import PolicyInput
from tests import oracle

STEP_SIZE = 2.0


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make(surrogate, *, optimizer=None, **options):
    """Policy, estimator and inner loop; `options` of the last two."""
    policy = oracle.softmax_policy()
    estimation = {
        "num_episodes": 4,
        "discount": 1.0,
        "gae_lambda": 1.0,
        "baseline": "none",
        "normalize_advantages": False,
    }
    estimation |= {name: options.pop(name) for name in estimation if name in options}
    learner = pg.learner(
        oracle.family(), policy, surrogate=surrogate, outer_surrogate=surrogate, **estimation
    )
    inner = inner_loop(policy=policy, learner=learner, optimizer=optimizer or optax.sgd(STEP_SIZE), **options)
    return policy, pg.estimator(oracle.family(), policy, **estimation), inner


def enumerated(num_steps):
    """Data of the inner steps [K, N, T], each enumerated at its own policy, and of the adapted policy."""
    thetas = [oracle.adapted(oracle.THETA, STEP_SIZE, k) for k in range(num_steps + 1)]
    *pre, post = [oracle.enumerated_batch(theta) for theta in thetas]
    return jax.tree.map(lambda *x: jnp.stack(x), *pre), post


def meta_loss(inner_surrogate, outer_surrogate, **options):
    policy, source, inner = make(inner_surrogate, **options)

    def loss(params, pre, post):
        output = pg.unroll(policy, inner.replay(params, pre), post.inputs)
        return source.loss(outer_surrogate)(output, post)

    return loss


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_meta_gradient_is_the_exact_one(surrogate, num_steps):
    gradient = jax.jit(jax.grad(meta_loss(surrogate, surrogate)))(
        jnp.asarray(oracle.THETA), *enumerated(num_steps)
    )
    exact = oracle.meta_gradient(STEP_SIZE, num_steps, surrogate, first_order=False)
    np.testing.assert_allclose(-gradient, exact, rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_first_order_meta_gradient_is_the_gradient_after_adaptation(num_steps):
    loss = meta_loss("dice", "dice", first_order=True)
    gradient = jax.grad(loss)(jnp.asarray(oracle.THETA), *enumerated(num_steps))
    exact = oracle.meta_gradient(STEP_SIZE, num_steps, "dice", first_order=True)
    np.testing.assert_allclose(-gradient, exact, rtol=1e-9)
    second_order = oracle.meta_gradient(STEP_SIZE, num_steps, "dice", first_order=False)
    assert np.abs(exact - second_order).max() > 0.01 * np.abs(exact).max()


def test_the_oracle_differentiates_what_it_adapts():
    """The chain rule of the oracle against central differences of J(adapted(theta))."""
    exact = oracle.meta_gradient(STEP_SIZE, 2, "dice", first_order=False)
    for index in np.ndindex(*oracle.THETA.shape):
        shift = np.zeros_like(oracle.THETA)
        shift[index] = 1e-5
        high, low = (oracle.value(oracle.adapted(oracle.THETA + s, STEP_SIZE, 2)) for s in (shift, -shift))
        np.testing.assert_allclose((high - low) / 2e-5, exact[index], rtol=1e-6, atol=1e-9)


def test_differentiating_reinforce_twice_drops_terms():
    exact = oracle.meta_gradient(STEP_SIZE, 1, "dice", first_order=False)
    biased = oracle.meta_gradient(STEP_SIZE, 1, "reinforce", first_order=False)
    assert np.abs(exact - biased).max() > 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("surrogate", ["ratio", "ppo-clip"])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_meta_gradient_equals_finite_differences_of_the_surrogate(surrogate, num_steps):
    """Away from the behaviour policy, on sampled episodes, with a baseline and normalised advantages."""
    policy, source, inner = make(surrogate, num_episodes=6, baseline="linear", normalize_advantages=True)
    task = oracle.family().sample(jax.random.key(0))
    adapted, info = inner.adapt(jnp.asarray(oracle.THETA), task, jax.random.key(1), num_steps)
    post = source.collect(adapted, task, jax.random.key(2))
    loss = jax.jit(meta_loss(surrogate, "ratio"))
    # Unevenly: a softmax does not see the same number added to all its logits.
    params = jnp.asarray(oracle.THETA) + jnp.array([[0.03, -0.02], [-0.04, 0.01]])
    gradient = jax.jit(jax.grad(loss))(params, info.data, post)
    assert np.abs(gradient).max() > 1e-3
    for index in np.ndindex(*params.shape):
        shift = jnp.zeros_like(params).at[index].set(1e-5)
        difference = (loss(params + shift, info.data, post) - loss(params - shift, info.data, post)) / 2e-5
        np.testing.assert_allclose(gradient[index], difference, rtol=1e-5, atol=1e-8)


def test_replay_repeats_adapt():
    _, _, inner = make("ratio")
    task = oracle.family().sample(jax.random.key(0))
    adapted, info = inner.adapt(jnp.asarray(oracle.THETA), task, jax.random.key(1), 3)
    np.testing.assert_allclose(inner.replay(jnp.asarray(oracle.THETA), info.data), adapted.params, rtol=1e-12)
    assert info.returns.shape == (3,)
    assert np.abs(adapted.params - oracle.THETA).max() > 1e-3


def test_adapt_without_steps_changes_nothing():
    _, _, inner = make("ratio")
    task = oracle.family().sample(jax.random.key(0))
    adapted, info = inner.adapt(jnp.asarray(oracle.THETA), task, jax.random.key(1), 0)
    np.testing.assert_array_equal(adapted.params, oracle.THETA)
    assert info.returns.shape == (0,)


def test_first_order_equals_second_order_at_step_size_zero_only():
    data = enumerated(1)
    gradients = {}
    for step_size in (0.0, STEP_SIZE):
        for first_order in (False, True):
            policy, source, inner = make("dice", optimizer=optax.sgd(step_size), first_order=first_order)
            gradients[step_size, first_order] = jax.grad(
                lambda p, inner=inner, policy=policy, source=source: source.loss("dice")(
                    pg.unroll(policy, inner.replay(p, data[0]), data[1].inputs), data[1]
                )
            )(jnp.asarray(oracle.THETA))
    np.testing.assert_allclose(gradients[0.0, False], gradients[0.0, True], rtol=1e-12)
    assert np.abs(gradients[STEP_SIZE, False] - gradients[STEP_SIZE, True]).max() > 1e-3


def test_symmetric_gradient_differentiates_like_grad():
    def loss(params, data):
        return jnp.sum(jnp.sin(params @ data) ** 2)

    data = jax.random.normal(jax.random.key(0), (3, 5))
    params = jnp.array([0.3, -0.2, 0.5])
    gradient = jax.grad(loss)

    def after_two_steps(gradient, params):
        def step(params, _):
            return params - 0.1 * gradient(params, data), None

        return jnp.sum(jax.lax.scan(step, params, length=2)[0] ** 3)

    ours, plain = (lambda p, g=g: after_two_steps(g, p) for g in (symmetric_gradient(gradient), gradient))
    np.testing.assert_allclose(jax.grad(ours)(params), jax.grad(plain)(params), rtol=1e-12)
    vector = (jnp.array([1.0, 2.0, -1.0]),)
    np.testing.assert_allclose(
        jax.jvp(jax.grad(ours), (params,), vector)[1],
        jax.jvp(jax.grad(plain), (params,), vector)[1],
        rtol=1e-10,
    )


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("num_episodes", 0, "at least 1"),
        ("discount", 1.5, r"\[0, 1\]"),
        ("gae_lambda", -0.1, r"\[0, 1\]"),
        ("baseline", "quadratic", "linear, value, none"),
    ],
)
def test_bad_arguments_are_named(argument, value, allowed):
    with pytest.raises(ValueError, match=f"{argument}.*{allowed}.*{value}"):
        make("ratio", **{argument: value})


def test_unknown_surrogate_is_named():
    with pytest.raises(ValueError, match="reinforce.*got 'rato'"):
        make("rato")


def test_a_value_baseline_needs_a_critic():
    with pytest.raises(ValueError, match="'value' needs a policy with a critic"):
        make("ratio", baseline="value")


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_inner_optimizers_are_differentiable_at_a_gradient_of_zero(name):
    """With no rewards every inner gradient is 0; Adam's root of it must not make the meta-gradient NaN."""
    policy, source, inner = make("ratio", optimizer=optimizers.REGISTRY[name](learning_rate=0.1))
    pre, post = enumerated(1)
    pre = pre._replace(advantage=jnp.zeros_like(pre.advantage))
    gradient = jax.jit(
        jax.grad(lambda p: source.loss("ratio")(pg.unroll(policy, inner.replay(p, pre), post.inputs), post))
    )(jnp.asarray(oracle.THETA))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("num_steps", [1, 2])
def test_replay_jvp_is_the_forward_derivative_of_replay(num_steps):
    _, _, inner = make("dice")
    data, _ = enumerated(num_steps)
    theta, tangent = jnp.asarray(oracle.THETA), jnp.array([[1.0, -0.5], [0.2, 0.7]])
    adapted, change = jax.jit(inner.replay_jvp)(theta, data, tangent)
    np.testing.assert_allclose(adapted, jax.jit(inner.replay)(theta, data), rtol=1e-12)
    jacobian = jax.jit(jax.jacrev(inner.replay))(theta, data)
    np.testing.assert_allclose(change, jnp.einsum("abcd,cd->ab", jacobian, tangent), rtol=1e-10)


@pytest.mark.parametrize("differentiation", DIFFERENTIATIONS)
def test_every_differentiation_gives_the_exact_meta_gradient(differentiation):
    loss = meta_loss("dice", "dice", differentiation=differentiation)
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(oracle.THETA), *enumerated(2))
    exact = oracle.meta_gradient(STEP_SIZE, 2, "dice", first_order=False)
    np.testing.assert_allclose(-gradient, exact, rtol=1e-9)


def test_the_path_holds_the_policies_that_sampled():
    _, _, inner = make("ratio")
    data, _ = enumerated(3)
    adapted, path = jax.jit(inner.path)(jnp.asarray(oracle.THETA), data)
    expected = [oracle.adapted(oracle.THETA, STEP_SIZE, k) for k in range(4)]
    np.testing.assert_allclose(path, expected[:3], rtol=1e-9)
    np.testing.assert_allclose(adapted, expected[3], rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda spec: policies.gru(spec, size=3),
        lambda spec: policies.mlp(spec, hidden=(3,), critic=True),
    ],
    ids=["gru", "mlp"],
)
def test_stored_episodes_are_read_each_from_a_fresh_carry(make):
    spec = oracle.family().env.spec
    policy = make(spec)
    params = policy.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    inputs = PolicyInput(
        obs=jax.random.normal(keys[0], (2, 3, spec.obs_size)),
        prev_action=jax.random.normal(keys[1], (2, 3, spec.action.num)),
        prev_reward=jax.random.normal(keys[2], (2, 3)),
        prev_done=jnp.zeros((2, 3), bool),
        first=jnp.zeros((2, 3), bool),
    )
    episodes = [jax.tree.map(lambda x, n=n: x[n], inputs) for n in range(2)]
    expected = [policy.unroll(params, policy.initial_carry(), episode)[1] for episode in episodes]
    found = pg.unroll(policy, params, inputs)
    for a, *b in zip(*map(jax.tree.leaves, (found, *expected)), strict=True):
        np.testing.assert_allclose(a, np.stack(b), rtol=1e-12)


def test_unknown_differentiation_is_named():
    with pytest.raises(ValueError, match="mixed, reverse, rematerialized, got 'forward'"):
        make("ratio", differentiation="forward")
