"""On the same data PyTorch's sides find jmeta's meta-gradient, and the advantages of its trials."""

import dataclasses
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="extra 'benchmarks'")

from benchmarks import common, compare  # noqa: E402
from benchmarks.pytorch import rl2  # noqa: E402
from jmeta.algorithms.memory.rl2 import with_advantages  # noqa: E402
from jmeta.estimators import advantages  # noqa: E402
from jmeta.types import PolicyInput, Rollout  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # its compiler's own
CASE = compare.Case(compare.JMETA, "point-goal", "trpo", 2, 2, None)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A batch of jmeta's, its meta-gradient beside it."""
    case = dataclasses.replace(CASE, batch=str(tmp_path_factory.mktemp("batch") / "batch.pickle"))
    command = common.worker("benchmarks.compare", case)
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return case


@pytest.mark.parametrize("side", ["eager", "vmap", "compile", "eager x cores"])
def test_the_meta_gradient_is_jmetas(stored, side):
    once, memory = compare.pytorch_side(dataclasses.replace(stored, side=side))
    assert once()["difference"] < compare.TOLERANCE
    assert memory() > 0


def test_the_advantages_of_trials_are_jmetas():
    num, episodes, horizon = 5, 2, 3
    setting = rl2.Setting("bandit", num, episodes, horizon, num_actions=2, discount=0.9, gae_lambda=0.7)
    learner = rl2.Learner(setting)
    rng = np.random.default_rng(0)
    reward, value = (rng.normal(size=(num, episodes * horizon)).astype(np.float32) for _ in range(2))
    advantage, target = learner.advantages(torch.tensor(reward), torch.tensor(value))
    zeros = jnp.zeros_like(reward)
    first = jnp.tile(jnp.arange(episodes * horizon) % horizon == 0, (num, 1))
    steps = with_advantages(
        Rollout(
            inputs=PolicyInput(zeros[..., None], zeros, zeros, zeros, first),
            action=zeros,
            log_prob=zeros,
            value=jnp.asarray(value),
            reward=jnp.asarray(reward),
            terminated=zeros > 0,
            mask=zeros + 1,
            last_obs=zeros[:, :1],
            last_value=zeros[:, 0],
        ),
        horizon=horizon,
        discount=0.9,
        gae_lambda=0.7,
    )
    expected = advantages.normalize(steps.advantage, steps.mask)
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target, steps.target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", compare.PROBLEMS)
def test_an_iteration_of_rl2_moves_the_policy(family):
    case = compare.Case("eager", family, compare.RL2, 8, 0, None)
    learner = compare.rl2_learner(case)
    before = [p.clone() for p in learner.policy.parameters()]
    found = learner.iteration()
    assert found["env_steps"] == 8 * (10 if family == "bandit" else 100)
    assert any((p != q).any() for p, q in zip(before, learner.policy.parameters(), strict=True))
