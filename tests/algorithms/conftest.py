import jax
import pytest

from jmeta import rollouts


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def enumerated(monkeypatch, float64):
    """Every episode in place of a sample, in float64: what is estimated is exact."""
    from tests.algorithms import exact

    monkeypatch.setattr(rollouts, "batch", exact.every_episode)
