"""E-MAML: the gradient of the return after learning from finitely many episodes, sampling included.

The objective is enumerated in plain NumPy: every batch of episodes that adaptation may see, its probability,
the policy that it leads to and the value of that. Nothing of it is estimated or differentiated.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.algorithms import e_maml, maml
from jmeta.algorithms.gradient import outer
from jmeta.inner import policy_gradient as pg
from tests import oracle
from tests.algorithms import exact

CASES = [(1, 1), (1, 2), (2, 1)]  # steps, episodes of each
EPISODES = oracle.trajectories(oracle.THETA)
STATES, ACTIONS, REWARDS = (
    np.array([getattr(e, name) for e in EPISODES]) for name in oracle.Trajectory._fields[:3]
)
# Without the policy's share of it [32].
PROBABILITY = np.array([e.probability for e in EPISODES])
PROBABILITY = PROBABILITY / oracle.probabilities(oracle.THETA)[STATES, ACTIONS].prod(1)
TO_COME = REWARDS[:, ::-1].cumsum(1)[:, ::-1]
VISITED = np.eye(2)[STATES]  # [32, T, S]
TAKEN = VISITED[..., None] * np.eye(2)[ACTIONS][:, :, None]  # [32, T, S, A]


def softmax(theta):
    return np.exp(theta) / np.exp(theta).sum(-1, keepdims=True)


def probability(theta):
    """Of every episode [..., 32] under logits [..., S, A]."""
    return PROBABILITY * softmax(theta)[..., STATES, ACTIONS].prod(-1)


def steps(theta):
    """sum_t score_t G_t / T of every episode [..., 32, S, A]."""
    taken = np.einsum("nt,ntsa->nsa", TO_COME, TAKEN)
    visited = np.einsum("nt,nts->ns", TO_COME, VISITED)
    return (taken - visited[..., None] * softmax(theta)[..., None, :, :]) / oracle.HORIZON


def value_after(theta, num_steps, num_episodes):
    """E[J of the adapted policy] over all batches of all steps, of logits [..., S, A] -> [...]."""
    weight = probability(theta)
    if not num_steps:
        return weight @ REWARDS.sum(1) / oracle.HORIZON
    change = steps(theta)
    if num_episodes == 2:  # all ordered pairs
        weight = (weight[..., :, None] * weight[..., None, :]).reshape(*weight.shape[:-1], -1)
        change = (change[..., :, None, :, :] + change[..., None, :, :, :]) / 2
        change = change.reshape(*theta.shape[:-2], -1, *theta.shape[-2:])
    adapted = theta[..., None, :, :] + exact.STEP_SIZE * change
    return (weight * value_after(adapted, num_steps - 1, num_episodes)).sum(-1)


def expected_gradient(made, num_steps, num_episodes):
    """Of the loss, over everything that is sampled: the batches of each step, and an episode after the last.

    The loss is linear in the episodes after the last step, so that one of them, repeated, stands for all.
    """
    policy, inner = made.parts.policy, made.parts.inner
    prepare = made.replaced.get("prepare") or (lambda params, batch: ())
    every = oracle.enumerated_batch(oracle.THETA)

    def sampled(theta, indices):
        batch = jax.tree.map(lambda x: x[indices], every)._replace(mask=jnp.ones((num_episodes, 3)))
        log_prob = jax.nn.log_softmax(theta)[jnp.asarray(STATES)[indices], batch.action]
        weight = jnp.asarray(PROBABILITY)[indices] * jnp.exp(log_prob.sum(1))
        return batch._replace(log_prob=log_prob), weight

    def weighted(before, after):
        start = adapted = jnp.asarray(oracle.THETA)
        pre, total = [], 1.0
        for indices in before:
            batch, weight = sampled(adapted, indices)
            pre.append(jax.tree.map(lambda x: x[None], batch))
            total *= weight.prod()
            adapted = inner.replay(adapted, pre[-1])
        post, weight = sampled(adapted, jnp.full(num_episodes, after))
        pre = jax.tree.map(lambda *x: jnp.concatenate(x), *pre)
        collected = outer.Collected(pre, post, adapted, pg.unroll(policy, adapted, post.inputs).distribution)
        extra = prepare(start, outer.Batch(jax.tree.map(lambda x: x[None], collected), jnp.ones(1)))
        extra = jax.tree.map(lambda x: x[0], extra)
        return total * weight[0] * jax.grad(exact.loss_of(made))(start, collected, extra)

    before = np.array([*itertools.product(range(32), repeat=num_steps * num_episodes)])
    before = before.reshape(-1, num_steps, num_episodes)
    all_after = jax.vmap(weighted, (None, 0))
    total = jax.jit(jax.vmap(lambda indices: all_after(indices, jnp.arange(32)).sum(0)))(jnp.asarray(before))
    return np.asarray(total.sum(0))


def exact_gradient(num_steps, num_episodes):
    return exact.differences(lambda theta: value_after(theta, num_steps, num_episodes), oracle.THETA)


def make(factory, num_steps, num_episodes, **options):
    return exact.make(factory, num_inner_steps=num_steps, num_episodes=num_episodes, **options)


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_the_enumerated_objective_is_that_of_the_oracle():
    np.testing.assert_allclose(value_after(oracle.THETA, 0, 1), oracle.value(oracle.THETA), rtol=1e-12)
    mean = probability(oracle.THETA) @ steps(oracle.THETA).reshape(-1, 4)
    np.testing.assert_allclose(mean, oracle.gradient(oracle.THETA), rtol=1e-12)


@pytest.mark.parametrize(("num_steps", "num_episodes"), CASES)
def test_the_gradient_is_that_of_the_return_after_adaptation(float64, num_steps, num_episodes):
    expected = exact_gradient(num_steps, num_episodes)
    ours = make(e_maml, num_steps, num_episodes, surrogate="reinforce")
    assert error(-expected_gradient(ours, num_steps, num_episodes), expected) < 1e-7


@pytest.mark.parametrize("surrogate", ["reinforce", "ratio", "dice"])
def test_no_surrogate_gives_maml_that_gradient(float64, surrogate):
    found = -expected_gradient(make(maml, 1, 2, surrogate=surrogate), 1, 2)
    assert error(found, exact_gradient(1, 2)) > 0.01


@pytest.mark.parametrize("surrogate", ["ratio", "dice", "loaded-dice"])
def test_surrogates_with_credit_for_sampling_count_it_twice(float64, surrogate):
    found = -expected_gradient(make(e_maml, 1, 2, surrogate=surrogate), 1, 2)
    assert error(found, exact_gradient(1, 2)) > 0.05


@pytest.fixture(scope="module")
def replicas():
    """Gradients [replicas, S, A] of real updates on two tasks: each is the other's baseline."""
    with jax.enable_x64(True):
        batch, keys = exact.tasks(2), jax.random.split(jax.random.key(1), 40_000)

        def gradients(factory):
            algorithm = make(factory, 1, 2, surrogate="reinforce").algorithm
            state = algorithm.init(jax.random.key(0))
            moved = jax.vmap(lambda key: state.params - algorithm.update(state, batch, key)[0].params)
            return np.asarray(jax.jit(moved)(keys))

        return {"e-maml": gradients(e_maml), "maml": gradients(maml)}


def test_updates_follow_that_gradient_and_mamls_do_not(replicas):
    """With episodes sampled, and the mean return of the other tasks as a baseline."""

    def distance(samples):
        """In standard errors of the mean."""
        return (samples.mean(0) + exact_gradient(1, 2)) / (samples.std(0) / np.sqrt(len(samples)))

    assert np.abs(distance(replicas["e-maml"])).max() < 4
    assert np.abs(distance(replicas["maml"])).max() > 8


def test_without_exploration_it_is_maml(float64):
    options = {"num_inner_steps": 2, "num_episodes": 5, "surrogate": "ratio", "baseline": "linear"}
    ours, theirs = (
        exact.update(exact.make(factory, **options, **more).algorithm, num_tasks=2)[0]
        for factory, more in ((e_maml, {"exploration_weight": 0.0}), (maml, {}))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert np.abs(theirs).max() > 1e-2


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("surrogate", ["ratio", "reinforce"])
def test_gradient_equals_finite_differences_of_the_loss(float64, num_steps, surrogate):
    made = exact.make(e_maml, num_inner_steps=num_steps, surrogate=surrogate, **exact.SAMPLED)
    exact.assert_gradient_is_that_of_the_loss(made)


def test_normalised_advantages_scale_the_credit_alike(float64):
    """Both terms are divided by the spread of the advantages: weights keep their meaning."""
    plain, normalised = (
        exact.collect(make(e_maml, 1, 6, normalize_advantages=flag), jnp.asarray(oracle.THETA))
        for flag in (False, True)
    )
    spread = np.std(plain[0].post.advantage)
    np.testing.assert_allclose(
        normalised[1], plain[1] / spread, rtol=1e-3
    )  # an epsilon is added to the spread
    assert abs(plain[1]) > 0.01
