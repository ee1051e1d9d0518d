import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.optimizers import skip_nonfinite, trpo

CURVATURE = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 4.0]])
SLOPE = jnp.array([1.0, -2.0, 0.5])
PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.float32(-1.0)}
MAX_KL = 0.02


def flatten(tree):
    return jnp.append(tree["a"], tree["b"])


def unflatten(flat):
    return {"a": flat[:2], "b": flat[2]}


def kl_to_start(params):
    change = flatten(params) - flatten(PARAMS)
    return 0.5 * change @ CURVATURE @ change


def kl_hvp(vector):
    return unflatten(CURVATURE @ flatten(vector))


def linear_loss(params):
    return SLOPE @ flatten(params)


def run(loss, *, grads=None, kl=kl_to_start, hvp=kl_hvp, **hyperparameters):
    optimizer = trpo(max_kl=MAX_KL, **hyperparameters)

    @jax.jit
    def update(params, state, grads):
        gradient = jax.grad(loss)(params) if grads is None else grads
        return optimizer.update(
            gradient, state, params, value_and_kl_fn=lambda p: (loss(p), kl(p)), kl_hvp_fn=hvp
        )

    updates, state = update(PARAMS, optimizer.init(PARAMS), grads)
    return flatten(updates), state


def test_linear_loss_and_quadratic_kl_give_the_natural_gradient_step_to_the_bound():
    # argmin of g x under x' F x / 2 = d is -sqrt(2 d / (g' F^-1 g)) F^-1 g. The bound itself is met up to
    # rounding, so the line search is given a hair more room than the step was scaled to.
    natural = np.linalg.solve(CURVATURE, SLOPE)
    expected = -np.sqrt(2 * MAX_KL / (SLOPE @ natural)) * natural
    step, state = run(linear_loss, kl=lambda p: kl_to_start(p) * (1 - 1e-5), cg_damping=0.0)
    np.testing.assert_allclose(step, expected, rtol=1e-4)
    np.testing.assert_allclose(state.kl, MAX_KL, rtol=1e-4)
    assert state.step_fraction == 1 and state.rejected == 0


def test_damping_is_added_to_the_curvature():
    damped = np.linalg.solve(CURVATURE + 0.5 * np.eye(3), SLOPE)
    step, state = run(linear_loss, cg_damping=0.5)
    np.testing.assert_allclose(step, -np.sqrt(2 * MAX_KL / (SLOPE @ damped)) * damped, rtol=1e-4)
    assert 0.5 * MAX_KL < state.kl < MAX_KL


def test_backtracks_to_the_first_candidate_that_fits():
    # The divergence is 5 times what its curvature promised: fractions 1, 0.7 (2.45), 0.49 (1.2) exceed the
    # bound, 0.343 (5 * 0.1176 = 0.588) is the first inside.
    step, state = run(linear_loss, kl=lambda p: 5 * kl_to_start(p), cg_damping=0.0, backtrack_ratio=0.7)
    np.testing.assert_allclose(state.step_fraction, 0.7**3, rtol=1e-5)
    np.testing.assert_allclose(state.kl, 5 * 0.343**2 * MAX_KL, rtol=1e-3)
    natural = np.linalg.solve(CURVATURE, SLOPE)
    np.testing.assert_allclose(step, -(0.343) * np.sqrt(2 * MAX_KL / (SLOPE @ natural)) * natural, rtol=1e-3)


def test_backtracks_while_the_loss_is_not_smaller():
    # |x - x0 + tiny| has its minimum close by: the full step overshoots to a larger loss.
    def loss(params):
        return jnp.abs(linear_loss(params) - linear_loss(PARAMS) + 0.05)

    _, state = run(loss)
    assert 0 < state.step_fraction < 1 and state.rejected == 0


def is_rejected(step, state):
    np.testing.assert_array_equal(step, 0)
    return state.rejected == 1 and state.step_fraction == 0 and state.kl == 0


def test_rejects_without_improvement():
    # The gradient points uphill.
    assert is_rejected(*run(linear_loss, grads=jax.tree.map(jnp.negative, jax.grad(linear_loss)(PARAMS))))


def test_rejects_when_every_candidate_exceeds_the_bound():
    assert is_rejected(*run(linear_loss, kl=lambda p: 1.0 + kl_to_start(p)))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_rejects_non_finite_numbers(bad):
    assert is_rejected(*run(linear_loss, grads=unflatten(SLOPE.at[1].set(bad))))
    assert is_rejected(*run(linear_loss, hvp=lambda vector: unflatten(bad * flatten(vector))))
    assert is_rejected(
        *run(linear_loss, kl=lambda p: kl_to_start(p) + bad * jnp.sign(kl_to_start(p)) ** 2 * jnp.nan)
    )
    # A loss that is finite at the start only; minus infinity is no improvement.
    assert is_rejected(*run(lambda p: jnp.where(kl_to_start(p) == 0, 0.0, bad), grads=unflatten(SLOPE)))


def test_rejects_a_zero_gradient_and_negative_curvature():
    assert is_rejected(*run(linear_loss, grads=jax.tree.map(jnp.zeros_like, PARAMS)))
    assert is_rejected(*run(linear_loss, hvp=lambda vector: jax.tree.map(jnp.negative, vector)))


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_the_length_of_the_gradient_does_not_matter(size):
    step, _ = run(linear_loss)
    scaled, state = run(linear_loss, grads=unflatten(size * SLOPE))
    np.testing.assert_allclose(scaled, step, rtol=1e-5)
    assert state.rejected == 0


def test_backtracking_ends():
    calls = []

    def kl(params):
        jax.debug.callback(lambda: calls.append(None))
        return 1.0 + kl_to_start(params)

    run(linear_loss, kl=kl, max_backtracks=3)
    jax.effects_barrier()
    assert len(calls) == 5  # the start, the full step and three more


def test_one_compilation_for_every_update_and_works_inside_skip_nonfinite():
    optimizer = skip_nonfinite(trpo(max_kl=MAX_KL))
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(None)
        updates, state = optimizer.update(
            jax.grad(linear_loss)(params),
            state,
            params,
            value_and_kl_fn=lambda p: (linear_loss(p), 0.5 * jnp.sum((flatten(p) - flatten(params)) ** 2)),
            kl_hvp_fn=lambda vector: vector,
        )
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(3):
        params, state = step(params, state)
    assert len(traces) == 1 and state.skipped == 0 and state.inner.rejected == 0
    # Three steps of length sqrt(2 * 0.02 / (1 + damping)) downhill.
    expected = linear_loss(PARAMS) - 3 * np.sqrt(0.04 / 1.01) * np.linalg.norm(SLOPE)
    np.testing.assert_allclose(linear_loss(params), expected, rtol=1e-3)


def test_missing_arguments_are_named():
    optimizer = trpo()
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match="value_and_kl_fn and kl_hvp_fn"):
        optimizer.update(PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(PARAMS, state, value_and_kl_fn=lambda p: (0.0, 0.0), kl_hvp_fn=kl_hvp)


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_kl", 0.0),
        ("max_kl", float("nan")),
        ("cg_iterations", 0),
        ("cg_damping", -1.0),
        ("backtrack_ratio", 1.0),
        ("max_backtracks", -1),
    ],
)
def test_hyperparameters_are_validated(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        trpo(**{name: value})
