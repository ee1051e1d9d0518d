"""Random configurations: a small and fixed budget; `python -m benchmarks.fuzz` takes a large one."""

import random

import hypothesis
import pytest
from hypothesis import strategies

from benchmarks import fuzz


def few(examples):
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.mark.unmeasured
@few(25)
@hypothesis.given(strategies.integers(0, 2**31))
def test_a_random_configuration_can_be_traced_or_is_refused_by_name(seed):
    chosen = fuzz.configuration(random.Random(seed))
    outcome, error = fuzz.attempt(chosen, compiled=False)
    assert outcome != "failed", f"{chosen}: {error}"


@pytest.mark.unmeasured
@few(3)
@hypothesis.given(strategies.integers(0, 2**31))
def test_a_random_configuration_trains_with_finite_metrics_or_is_refused_by_name(seed):
    chosen = fuzz.configuration(random.Random(seed))
    outcome, error = fuzz.attempt(chosen)
    assert outcome != "failed", f"{chosen}: {error}"


def test_a_configuration_is_the_same_for_the_same_chance():
    assert repr(fuzz.configuration(random.Random(3))) == repr(fuzz.configuration(random.Random(3)))


@pytest.mark.parametrize(
    "algorithm, outcome",
    [
        ({"name": "maml", "num_episodes": 0, "optimizer": {"name": "sgd"}}, "refused"),
        ({"name": "maml", "num_episodes": 2, "optimizer": {"name": "sgd", "num_pulls": 1}}, "failed"),
    ],
)
def test_outcomes(algorithm, outcome):
    policy = {"name": "mlp", "hidden": (3,)}
    chosen = fuzz.Configuration(algorithm, {"name": "bandit", "num_pulls": 1}, policy, num_tasks=2)
    assert fuzz.attempt(chosen)[0] == outcome
