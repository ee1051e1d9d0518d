"""Sines: their distribution, their points and the error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jmeta import tasks
from jmeta.tasks.sinusoid import Sine


@pytest.fixture(scope="module")
def family():
    return tasks.sinusoid()


def is_uniform(values, low, high):
    assert low <= values.min() and values.max() <= high
    return scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_amplitude_and_phase_are_uniform_and_independent(family):
    sines = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 4000))
    amplitude, phase = np.asarray(sines.amplitude, float), np.asarray(sines.phase, float)
    assert is_uniform(amplitude, 0.1, 5.0 + 1e-6)  # float32 rounds
    assert is_uniform(phase, 0.0, np.pi + 1e-6)
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 0.064  # four of 1 / sqrt(4000)


def test_inputs_are_uniform(family):
    keys = jax.random.split(jax.random.key(1), 4000)
    task = family.sample(jax.random.key(0))
    _, first = jax.vmap(family.env.reset, in_axes=(0, None))(keys, task)
    assert first.obs.shape == (4000, 1)
    assert is_uniform(np.asarray(first.obs[:, 0], float), -5.0, 5.0)


def error(family, task, inputs, prediction):
    _, time_step = family.env.step(jax.random.key(0), jnp.array([inputs]), jnp.array([prediction]), task)
    assert not time_step.terminated
    return -time_step.reward


def test_reward_is_minus_the_squared_error(family):
    task = Sine(jnp.array(2.0), jnp.array(0.5))
    # 2 sin(1.5 - 0.5) = 1.682942; less 0.682942 is 1, squared 1.
    np.testing.assert_allclose(error(family, task, 1.5, 0.682942), 1.0, rtol=1e-5)
    # 2 sin(0.5 - 0.5) = 0; (0.3 - 0)^2.
    np.testing.assert_allclose(error(family, task, 0.5, 0.3), 0.09, rtol=1e-5)


def test_both_numbers_of_a_task_matter(family):
    task = Sine(jnp.array(2.0), jnp.array(0.5))
    errors = [error(family, t, 2.0, 0.0) for t in (task, Sine(2.25, 0.5), Sine(2.0, 0.75))]
    # (A sin(2 - phase))^2 by hand: 4 sin(1.5)^2, 2.25^2 sin(1.5)^2, 4 sin(1.25)^2.
    np.testing.assert_allclose(errors, [3.979985, 5.037168, 3.602287], rtol=1e-5)


def test_the_optimum_is_a_perfect_prediction(family):
    task = family.sample(jax.random.key(3))
    for x in (-4.0, 0.0, 3.3):
        perfect = task.amplitude * np.sin(x - task.phase)
        np.testing.assert_allclose(-error(family, task, x, perfect), family.optimal_return(task), atol=1e-9)


def test_spec_and_splits(family):
    assert family.name == "sinusoid" and family.sample_heldout is family.sample
    spec = family.env.spec
    assert (spec.obs_size, spec.action.size, spec.horizon) == (1, 1, 1)
