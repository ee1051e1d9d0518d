"""Intervals cover what they say, over seeds, over tasks and over both."""

import numpy as np
import pytest

from jmeta import statistics

TABLES = 4000  # simulated; the standard error of a coverage is 0.35 %


def effects(rng, skewness, size):
    """Mean 0, standard deviation 1."""
    if skewness == 0:
        return rng.normal(size=size)
    shape = 4 / skewness**2
    return (rng.gamma(shape, size=size) - shape) / np.sqrt(shape)


def coverage(estimate):
    return np.mean((estimate.low <= 0) & (estimate.high >= 0))


@pytest.mark.parametrize("skewness", [0, 1])
@pytest.mark.parametrize("seeds", [5, 10])
def test_intervals_over_seeds_cover_what_they_say(seeds, skewness):
    rng = np.random.default_rng(seeds)
    noise = rng.normal(size=(seeds, TABLES)) * 3 / np.sqrt(100)  # of 100 tasks, each of another return
    found = coverage(statistics.over_seeds(effects(rng, skewness, (seeds, TABLES)) + noise))
    assert 0.93 <= found <= 0.97


@pytest.mark.parametrize("skewness", [0, 1])
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("of_task", [0.0, 3.0])
def test_intervals_over_seeds_on_the_same_tasks_cover_what_they_say(seeds, skewness, of_task):
    rng = np.random.default_rng(seeds)
    num_tasks, tables = 40, TABLES // 2
    samples = 0.3 * effects(rng, skewness, (seeds, 1, tables)) + rng.normal(size=(seeds, num_tasks, tables))
    samples += of_task * effects(rng, 0, (1, num_tasks, tables))
    assert 0.93 <= coverage(statistics.over_seeds_and_tasks(samples)) <= 0.97


def test_tasks_that_seeds_share_do_not_average_out():
    of_task = np.random.default_rng(0).normal(size=(1, 1000, 1)) * np.ones((3, 1, 1))
    shared = statistics.over_seeds_and_tasks(of_task)
    one = statistics.over_tasks(of_task[0])
    np.testing.assert_allclose(shared.standard_error, one.standard_error, rtol=1e-6)
    np.testing.assert_allclose(shared.high - shared.low, one.high - one.low, rtol=0.1)


def test_the_interval_of_three_seeds_is_students():
    found = statistics.over_seeds(np.array([[1.0], [2.0], [3.0]]))
    np.testing.assert_allclose(found.mean, [2.0])
    np.testing.assert_allclose(found.high - found.mean, [4.3027 / np.sqrt(3)], rtol=1e-4)  # t of 2 degrees


def test_equal_samples_have_an_interval_of_no_width():
    for found in (
        statistics.over_seeds(np.full((5, 2), 7.0)),
        statistics.over_seeds_and_tasks(np.full((5, 4, 2), 7.0)),
        statistics.over_tasks(np.full((4, 2), 7.0)),
    ):
        np.testing.assert_array_equal(found.low, [7, 7])
        np.testing.assert_array_equal(found.high, [7, 7])


def test_one_seed_has_an_interval_over_its_tasks_alone():
    assert np.isnan(statistics.over_seeds(np.ones((1, 2))).low).all()
    samples = np.random.default_rng(0).normal(size=(1, 50, 2))
    np.testing.assert_array_equal(
        statistics.over_seeds_and_tasks(samples).low, statistics.over_tasks(samples[0]).low
    )


def test_few_seeds_are_not_said_to_cover_95_percent():
    assert "tasks only" in statistics.heading(1)
    assert "too few" in statistics.heading(3) and "[95 %" not in statistics.heading(3)
    assert statistics.heading(5) == "mean [95 % t interval over 5 seeds]"


# -- over tasks ----------------------------------------------------------------------------------------


def test_the_interval_of_many_samples_is_the_normal_one():
    samples = np.random.default_rng(0).normal([2.0, -5.0], [1.0, 3.0], (400, 2))
    mean, low, high, error = statistics.over_tasks(samples)
    np.testing.assert_allclose(mean, samples.mean(0))
    np.testing.assert_allclose(mean - low, 1.96 * error, rtol=0.06)
    np.testing.assert_allclose(high - mean, 1.96 * error, rtol=0.06)


def test_the_interval_of_two_values_by_hand():
    # A resample of 0 and 1 has mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4: 2.5 % is 0 and 97.5 % is 1.
    mean, low, high, _ = statistics.over_tasks(np.array([0.0, 1.0]))
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_statistics_repeat():
    samples = np.random.default_rng(1).normal(size=(10, 2))
    np.testing.assert_array_equal(statistics.over_tasks(samples), statistics.over_tasks(samples))


def test_a_single_sample_has_no_interval():
    mean, low, high, _ = statistics.over_tasks(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(mean, [1, 2])
    assert np.isnan(low).all() and np.isnan(high).all() and low.shape == high.shape == (2,)


def test_float32_samples_are_averaged_in_float64():
    mean = statistics.over_tasks(np.full(3, 0.1, np.float32)).mean
    assert mean.dtype == np.float64 and mean == np.float64(np.float32(0.1))
