import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import distributions
from jmeta.policies import REGISTRY, layers, mlp
from jmeta.types import Continuous, Discrete, EnvSpec, PolicyInput

D, T = 3, 6
SPECS = {
    "continuous": EnvSpec(obs_size=D, action=Continuous(2), horizon=T),
    "discrete": EnvSpec(obs_size=D, action=Discrete(4), horizon=T),
}


def make_inputs(spec, key):
    size = spec.action.size if isinstance(spec.action, Continuous) else spec.action.num
    return PolicyInput(
        obs=jax.random.normal(key, (T, D)),
        prev_action=jnp.zeros((T, size)),
        prev_reward=jnp.zeros(T),
        prev_done=jnp.zeros(T, bool),
        first=jnp.arange(T) == 0,
    )


@pytest.mark.parametrize("context_size", [0, 2])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("space", SPECS)
def test_unroll_equals_scanning_step(space, critic, normalize, context_size):
    spec = SPECS[space]
    policy = mlp(
        spec, hidden=(8,), critic=critic, normalize_observations=normalize, context_size=context_size
    )
    params = jax.tree.map(lambda leaf: leaf + 0.1, policy.init(jax.random.key(0)))  # no context of 0
    inputs = make_inputs(spec, jax.random.key(1))
    params = policy.observe(params, 3 * inputs.obs + 1, jnp.ones(T))
    carry, unrolled = policy.unroll(params, policy.initial_carry(), inputs)
    scanned_carry, scanned = jax.lax.scan(
        lambda carry, one: policy.step(params, carry, one), policy.initial_carry(), inputs
    )
    assert jax.tree.structure(carry) == jax.tree.structure(scanned_carry)
    assert jax.tree.structure(unrolled) == jax.tree.structure(scanned)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), unrolled, scanned)
    assert unrolled.value.shape == (T,)
    assert np.abs(unrolled.value).max() > 0 if critic else (unrolled.value == 0).all()


@pytest.mark.parametrize("space", SPECS)
def test_distribution_matches_the_action_space(space):
    spec = SPECS[space]
    policy = mlp(spec, hidden=(8,))
    params = policy.init(jax.random.key(0))
    one = jax.tree.map(lambda x: x[0], make_inputs(spec, jax.random.key(1)))
    _, output = policy.step(params, policy.initial_carry(), one)
    action = policy.distribution.sample(jax.random.key(2), output.distribution)
    assert policy.distribution is distributions.for_action(spec.action)
    assert policy.distribution.log_prob(output.distribution, action).shape == ()
    if space == "continuous":
        assert action.shape == (2,)
        np.testing.assert_allclose(output.distribution.log_std, -0.5)
        # The last layer starts small: the first actions do not depend on the observation.
        assert np.abs(output.distribution.mean).max() < 0.05
    else:
        assert action.shape == () and output.distribution.shape == (4,)
        assert "log_std" not in params


def test_forward_pass_by_hand():
    policy = mlp(EnvSpec(2, Continuous(1), T), hidden=(1,), activation="relu", critic=True)
    params = policy.init(jax.random.key(0))
    kernels = [jnp.array([[1.0], [2.0]]), jnp.array([[3.0]])]
    params["policy"] = tuple(
        layer._replace(kernel=kernel, bias=layer.bias + 0.5)
        for layer, kernel in zip(params["policy"], kernels, strict=True)
    )
    params["critic"] = tuple(layer._replace(kernel=-2 * layer.kernel) for layer in params["policy"])
    inputs = PolicyInput(jnp.array([1.0, 1.0]), *[jnp.zeros(())] * 4)
    _, output = policy.step(params, (), inputs)
    # relu(1 + 2 + 0.5) = 3.5; 3 * 3.5 + 0.5 = 11.  Critic: relu(-2 - 4 + 0.5) = 0; 0.5.
    np.testing.assert_allclose(output.distribution.mean, [11.0], rtol=1e-6)
    np.testing.assert_allclose(output.value, 0.5)


def test_initial_layers_are_orthogonal_with_their_gains():
    params = mlp(SPECS["continuous"], hidden=(16, 16), critic=True).init(jax.random.key(0))
    for name, last_gain in (("policy", 0.01), ("critic", 1.0)):
        gains = [np.sqrt(2), np.sqrt(2), last_gain]
        for layer, gain in zip(params[name], gains, strict=True):
            singular_values = np.linalg.svd(layer.kernel, compute_uv=False)
            np.testing.assert_allclose(singular_values, gain, rtol=1e-4)
            np.testing.assert_array_equal(layer.bias, 0)
    assert np.abs(params["policy"][0].kernel - params["critic"][0].kernel).max() > 0.1


def test_log_std_is_clamped_for_any_parameters():
    policy = mlp(SPECS["continuous"], hidden=(4,), min_log_std=-1.0)
    params = policy.init(jax.random.key(0))
    inputs = make_inputs(SPECS["continuous"], jax.random.key(1))

    def log_std(params):
        return policy.unroll(params, (), inputs)[1].distribution.log_std

    # As after an inner step that went too far in one dimension.
    adapted = params | {"log_std": jnp.array([-50.0, 0.2])}
    np.testing.assert_allclose(log_std(adapted), jnp.broadcast_to(jnp.array([-1.0, 0.2]), (T, 2)))
    gradient = jax.grad(lambda p: log_std(p).sum())(adapted)["log_std"]
    np.testing.assert_allclose(gradient, [0.0, T])


def test_without_hidden_layers_it_is_linear():
    policy = mlp(SPECS["continuous"], hidden=())
    params = policy.init(jax.random.key(0))
    inputs = make_inputs(SPECS["continuous"], jax.random.key(1))
    (layer,) = params["policy"]
    mean = policy.unroll(params, (), inputs)[1].distribution.mean
    np.testing.assert_allclose(mean, inputs.obs @ layer.kernel + layer.bias, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"hidden": (8, 0)}, "hidden must be at least 1, got 0"),
        ({"activation": "cube"}, "activation must be one of tanh, relu, elu, swish, got 'cube'"),
        ({"init_log_std": -4.0}, "init_log_std must be at least min_log_std=-3.0, got -4.0"),
        ({"min_log_std": float("nan")}, "min_log_std must be finite, got nan"),
        ({"init_log_std": float("inf")}, "init_log_std must be finite, got inf"),
        ({"context_size": -1}, "context_size must be at least 0, got -1"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp(SPECS["continuous"], **arguments)


def test_context_is_an_input_beside_the_observation():
    spec = SPECS["continuous"]
    policy = mlp(spec, hidden=(5,), critic=True, context_size=2)
    params = policy.init(jax.random.key(0))
    np.testing.assert_array_equal(params["context"], [0, 0])
    assert params["policy"][0].kernel.shape == params["critic"][0].kernel.shape == (D + 2, 5)
    one = jax.tree.map(lambda x: x[0], make_inputs(spec, jax.random.key(1)))
    params["context"] = jnp.array([0.7, -1.2])
    _, output = policy.step(params, (), one)
    # The same as a policy without a context that observes both.
    wider = mlp(EnvSpec(D + 2, spec.action, T), hidden=(5,), critic=True)
    without = {name: params[name] for name in ("policy", "log_std", "critic")}
    both = one._replace(obs=jnp.concatenate([one.obs, params["context"]]))
    _, expected = wider.step(without, (), both)
    jax.tree.map(np.testing.assert_array_equal, output, expected)


def test_parts_of_the_parameters():
    policy = mlp(SPECS["continuous"], hidden=(4, 4), critic=True, context_size=2)
    params = policy.init(jax.random.key(0))
    inside = {True: (True, True), False: (False, False)}  # kernel and bias
    hidden, last = inside[False], inside[True]
    head = {
        "policy": (hidden, hidden, last),
        "critic": (hidden, hidden, last),
        "log_std": False,
        "context": False,
    }
    assert policy.parts["head"](params) == head
    nothing = {"policy": (hidden,) * 3, "critic": (hidden,) * 3, "log_std": False}
    assert policy.parts["context"](params) == nothing | {"context": True}
    assert set(policy.parts) == {"head", "context"}
    assert set(mlp(SPECS["discrete"], hidden=(4,)).parts) == {"head"}


def test_parts_of_a_normalising_policy():
    plain = mlp(SPECS["discrete"], hidden=(4,), context_size=2)
    policy = mlp(SPECS["discrete"], hidden=(4,), context_size=2, normalize_observations=True)
    params = policy.init(jax.random.key(0))
    for name, part in plain.parts.items():
        of_policy, of_statistics = policy.parts[name](params)
        assert of_policy == part(params.policy)
        assert jax.tree.leaves(of_statistics) == [False] * 3


def test_registry():
    assert REGISTRY["mlp"] is mlp


@pytest.mark.parametrize("shape", [(17, 64), (64, 64), (64, 6)])
def test_orthogonal_initialisation_is_that_of_jax_without_its_qr(shape):
    """LAPACK's QR hangs when several host devices run it in a loop, which scratch does for every task."""
    key = jax.random.key(3)
    ours = layers.orthogonal(key, shape)
    np.testing.assert_allclose(ours, jax.nn.initializers.orthogonal()(key, shape), atol=1e-4)
    small = ours if shape[0] < shape[1] else ours.T
    np.testing.assert_allclose(small @ small.T, np.eye(min(shape)), atol=1e-5)
    initializers = (layers.orthogonal, jax.nn.initializers.orthogonal())
    programs = [
        str(jax.make_jaxpr(initializer, static_argnums=1)(key, shape)) for initializer in initializers
    ]
    assert [" qr[" in program for program in programs] == [False, True]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_policy_is_initialised_without_qr(spec):
    policy = mlp(spec, hidden=(8,), critic=True)
    assert " qr[" not in str(jax.make_jaxpr(policy.init)(jax.random.key(0)))


def test_discrete_actions_have_no_standard_deviation():
    spec = EnvSpec(2, Discrete(3), horizon=4)
    mlp(spec, init_log_std=-0.5, min_log_std=-3.0)
    with pytest.raises(ValueError, match="init_log_std must be its default, -0.5, because .* got 0.0"):
        mlp(spec, init_log_std=0.0)
