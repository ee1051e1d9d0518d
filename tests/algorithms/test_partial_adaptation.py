"""ANIL and CAVIA: what adaptation changes, and what the outer update learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import policies
from jmeta.algorithms import anil, cavia
from jmeta.policies.normalized import NormalizedParams
from tests import oracle, small
from tests.algorithms import exact

METHODS = {"anil": (anil, "head"), "cavia": (cavia, "context")}


def make_policy(spec, *, normalize, **options):
    return policies.mlp(spec, hidden=(8,), normalize_observations=normalize, context_size=2, **options)


def plain(params):
    """The perceptron's own."""
    return params.policy if isinstance(params, NormalizedParams) else params


def changed(old, new):
    """Whether each leaf differs, by its path."""
    leaves = jax.tree.leaves_with_path(jax.tree.map(lambda a, b: bool(np.any(a != b)), old, new))
    return {jax.tree_util.keystr(path): found for path, found in leaves}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "normalized"])
def normalize(request):
    return request.param


@pytest.fixture(scope="module", params=METHODS)
def updated(request, normalize):
    """The name, the algorithm, and its states before and after three updates."""
    policy = make_policy(small.family().env.spec, normalize=normalize, critic=True)
    algorithm = METHODS[request.param][0](
        small.family(),
        policy,
        optimizer=optax.sgd(0.1),
        num_episodes=4,
        num_inner_steps=2,
        inner_learning_rate=0.5,
        baseline="value",
    )
    states, update = [algorithm.init(jax.random.key(0))], jax.jit(algorithm.update)
    for seed in (1, 2, 3):
        tasks = small.sample_tasks(jax.random.key(seed))
        states.append(update(states[-1], tasks, jax.random.key(10 + seed))[0])
    return request.param, algorithm, states


def test_adaptation_changes_its_part_alone(updated):
    name, algorithm, states = updated
    params = states[1].params
    adapted, _ = jax.jit(algorithm.adapt)(
        params, small.sample_tasks(jax.random.key(4), 1)[0], jax.random.key(5)
    )
    part = algorithm.policy.parts[METHODS[name][1]](params)
    assert changed(params, adapted.params) == {
        jax.tree_util.keystr(path): inside for path, inside in jax.tree.leaves_with_path(part)
    }


def test_the_parts_are_the_last_layers_and_the_context():
    policy = make_policy(small.family().env.spec, normalize=False, critic=True)
    params = policy.init(jax.random.key(0))
    inside = {
        name: [jax.tree_util.keystr(p) for p, x in jax.tree.leaves_with_path(policy.parts[name](params)) if x]
        for name in ("head", "context")
    }
    assert inside["context"] == ["['context']"]
    assert inside["head"] == [
        f"['{network}'][1].{leaf}" for network in ("critic", "policy") for leaf in ("kernel", "bias")
    ]


def test_the_outer_update_learns_all_but_the_context(updated, normalize):
    """Over the updates, for a bias of the first layer starts where its gradient may be tiny, never 0."""
    name, _, states = updated
    moved = changed(plain(states[1].params), plain(states[3].params))
    context = moved.pop("['context']")
    assert all(moved.values()), moved
    assert context == (name == "anil")
    if normalize:
        assert states[3].params.statistics.num > states[1].params.statistics.num > 0


def test_the_context_is_zero_before_the_first_step():
    policy = make_policy(small.family().env.spec, normalize=False)
    algorithm = cavia(small.family(), policy, optimizer=optax.sgd(0.1), num_episodes=4)
    params = algorithm.init(jax.random.key(0)).params
    other = params | {"context": jnp.array([3.0, -2.0])}
    task, adapt = small.sample_tasks(jax.random.key(4), 1)[0], jax.jit(algorithm.adapt, static_argnums=3)
    np.testing.assert_array_equal(adapt(other, task, jax.random.key(5), 0)[0].params["context"], 0)
    first, second = (adapt(start, task, jax.random.key(5), 2) for start in (params, other))
    assert small.bits(first) == small.bits(second)  # the episodes too
    assert np.abs(first[0].params["context"]).min() > 0
    tasks, key = small.sample_tasks(jax.random.key(1)), jax.random.key(2)
    state, update = algorithm.init(jax.random.key(0)), jax.jit(algorithm.update)
    first, second = (update(state._replace(params=start), tasks, key)[0].params for start in (params, other))
    np.testing.assert_array_equal(first.pop("context"), 0)  # the outer update leaves it where it was
    np.testing.assert_array_equal(second.pop("context"), other["context"])
    assert small.bits(first) == small.bits(second)


@pytest.mark.parametrize("factory", [anil, cavia])
def test_gradient_equals_finite_differences_of_the_surrogate(float64, factory):
    policy = policies.mlp(oracle.family().env.spec, hidden=(3,), context_size=2)
    made = exact.make(factory, policy=policy, num_inner_steps=2, surrogate="ratio", **exact.SAMPLED)
    gradient = exact.assert_gradient_is_that_of_the_loss(made)
    assert (np.abs(gradient["context"]).max() > 1e-6) == (factory is anil)
    assert np.abs(gradient["policy"][0].kernel).max() > 1e-3


@pytest.mark.parametrize("factory", [anil, cavia])
def test_a_step_descends_the_gradient_by_its_part(float64, factory):
    policy = policies.mlp(oracle.family().env.spec, hidden=(3,), context_size=2)
    made = exact.make(factory, policy=policy, num_episodes=6)
    params = policy.init(jax.random.key(0))
    adapted, info = made.algorithm.adapt(params, oracle.family().sample(None), jax.random.key(1))
    gradient = made.parts.learner.gradient(params, jax.tree.map(lambda x: x[0], info.data))
    if factory is cavia:
        expected = params | {"context": -exact.STEP_SIZE * gradient["context"]}
    else:
        first, head = params["policy"]
        head = jax.tree.map(lambda old, g: old - exact.STEP_SIZE * g, head, gradient["policy"][1])
        expected = params | {"policy": (first, head)}
    small.assert_trees_close(adapted.params, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (anil, "must have a part 'head', got one with no parts"),
        (cavia, "must have a part 'context', got one with no parts"),
    ],
)
def test_a_policy_without_parts_is_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        factory(oracle.family(), oracle.softmax_policy(), optimizer=optax.sgd(1.0))


@pytest.mark.parametrize("normalize", [False, True])
def test_a_policy_without_the_part_is_refused_and_its_parts_named(normalize):
    policy = policies.mlp(small.family().env.spec, normalize_observations=normalize)
    with pytest.raises(ValueError, match="must have a part 'context', got one with head"):
        cavia(small.family(), policy, optimizer=optax.sgd(1.0))
