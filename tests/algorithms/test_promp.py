"""ProMP: its gradient, and its penalty by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.algorithms import maml, promp
from tests import oracle
from tests.algorithms import exact


def test_gradient_equals_finite_differences_of_the_loss(float64):
    gradients = [
        exact.assert_gradient_is_that_of_the_loss(
            exact.make(
                promp, num_inner_steps=2, kl_penalty=weight, outer_surrogate="ppo-clip", **exact.SAMPLED
            )
        )
        for weight in (0.0, 2.0)
    ]
    assert np.abs(gradients[1] - gradients[0]).max() > 1e-3  # the penalty has its share


def test_the_first_gradient_is_that_of_maml(float64):
    """At the parameters that sampled, the divergence is at its minimum and nothing is clipped."""
    shared = {"num_inner_steps": 2, "outer_surrogate": "ppo-clip", **exact.SAMPLED}
    ours, _ = exact.update(exact.make(promp, kl_penalty=3.0, **shared).algorithm)
    theirs, _ = exact.update(exact.make(maml, surrogate="ratio", **shared).algorithm)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert np.abs(theirs).max() > 1e-3


def mean_kl(old, new, behaviour):
    """KL of the softmax policies at logits [S, A], averaged over the steps of episodes of `behaviour`."""
    p, q = oracle.probabilities(old), oracle.probabilities(new)
    divergence = (p * np.log(p / q)).sum(1)  # [S]
    return sum(
        episode.probability * divergence[list(episode.states)].mean()
        for episode in oracle.trajectories(behaviour)
    )


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_penalty_is_the_mean_divergence_of_the_sampling_policies(enumerated, num_steps):
    free, held = (exact.make(promp, num_inner_steps=num_steps, kl_penalty=weight) for weight in (0.0, 0.7))
    theta = jnp.asarray(oracle.THETA)
    data, moved = exact.collect(held, theta), theta + jnp.array([[0.3, -0.1], [0.2, -0.4]])
    penalty = exact.loss_of(held)(moved, *data) - exact.loss_of(free)(moved, *data)
    adapted, path = held.parts.inner.path(moved, data[0].pre)
    old = [oracle.adapted(oracle.THETA, exact.STEP_SIZE, k) for k in range(num_steps + 1)]
    new = np.array([*path, adapted])
    divergences = [mean_kl(p, q, p) for p, q in zip(old, new, strict=True)]
    assert min(divergences) > 1e-3
    np.testing.assert_allclose(penalty, 0.7 * np.mean(divergences), rtol=1e-9)


def test_a_large_penalty_holds_the_policies(enumerated):
    moved, kl = {}, {}
    for weight in (0.0, 5.0):
        made = exact.make(promp, kl_penalty=weight, optimizer=optax.sgd(0.5), outer_epochs=8)
        moved[weight], metrics = exact.update(made.algorithm)
        kl[weight] = metrics["kl"]
    assert np.linalg.norm(moved[5.0]) < 0.7 * np.linalg.norm(moved[0.0])
    assert 0 < kl[5.0] < 0.5 * kl[0.0]
