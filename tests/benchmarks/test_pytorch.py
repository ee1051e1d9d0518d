"""On the same data PyTorch's sides compute what jmeta computes; and they sample what they should."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="extra 'benchmarks'")

from benchmarks import compare, sides  # noqa: E402
from benchmarks.pytorch import envs, maml, rl2  # noqa: E402
from benchmarks.pytorch import policy_gradient as pytorch_pg  # noqa: E402
from jmeta import optimizers  # noqa: E402
from jmeta.algorithms.gradient import outer  # noqa: E402
from jmeta.algorithms.memory.rl2 import with_advantages  # noqa: E402
from jmeta.estimators import advantages  # noqa: E402
from jmeta.inner import policy_gradient as jmeta_pg  # noqa: E402
from jmeta.types import PolicyInput, Rollout  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # its compiler's own
CASE = sides.Case(sides.JMETA, "point-goal", "trpo", 2, 2, gradient=True, file="")
SIDES = ("eager", "vmap", "compile", "eager x cores")


@pytest.fixture(scope="module")
def jmeta():
    return sides.Jmeta(CASE)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A batch of jmeta's, its meta-gradient beside it."""
    case = dataclasses.replace(CASE, file=str(tmp_path_factory.mktemp("batch") / "common.pickle"))
    sides.store(case)
    return case


@pytest.fixture(scope="module")
def collected(stored):
    return pickle.loads(sides.jmetas_own(stored).read_bytes())


@pytest.fixture(scope="module", params=SIDES)
def learner(request, stored):
    """A side of PyTorch that has the batch; two processes where there are several, on one core, too."""
    common_ground = sides.stored(stored)
    style, *several = request.param.split(" x ")
    setting = maml.Setting(**common_ground["setting"])
    made = maml.Learner(setting, style, common_ground["params"], 2 if several else 1)
    made.load(common_ground["batch"])
    return made


def params_of(jmeta):
    return jax.jit(jmeta.algorithm.init)(jax.random.key(0)).params


def flat_of(params):
    return np.concatenate([x.ravel() for x in sides.flat(params)])


@pytest.mark.parametrize("side", SIDES)
def test_the_meta_gradient_is_jmetas(stored, side):
    found = sides.pytorch_side(dataclasses.replace(stored, side=side))
    assert found.once()["difference"] < compare.TOLERANCE
    found.forget_memory()
    assert found.memory() > 0


def test_the_curvature_is_jmetas(jmeta, collected, learner):
    params = params_of(jmeta)
    vector = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)

    @jax.jit
    @jax.vmap
    def product(data):
        parts = jmeta.parts
        return jmeta_pg.fisher_product(parts.policy, parts.inner, params, vector, data.pre, data.post)

    expected = flat_of(jax.tree.map(lambda x: x.mean(0), product(collected)))
    learner.call("linearize", learner.flat)
    found = learner.mean("curvature", torch.tensor(flat_of(vector)))
    assert sides.relative(found.numpy(), expected) < 1e-3


def test_the_trust_region_step_is_jmetas(jmeta, collected, learner):
    """Gradient, curvature, line search and all."""
    parts = jmeta.parts._replace(optimizer=optimizers.skip_nonfinite(optimizers.trpo()))
    params = params_of(jmeta)
    through = outer.meta_loss(parts)

    def mean(fn, params):
        return jax.tree.map(lambda x: x.mean(0), jax.vmap(lambda data: fn(params, data))(collected))

    def loss_and_kl(params, data):
        value, adapted = through(params, data)
        new = jmeta_pg.unroll(parts.policy, adapted, data.post.inputs).distribution
        return value, jmeta_pg.mean_kl(parts.policy, data.distribution, new, data.post.mask)

    def curvature(vector, data):
        return jmeta_pg.fisher_product(parts.policy, parts.inner, params, vector, data.pre, data.post)

    @jax.jit
    def step(params):
        slope = mean(jax.grad(lambda params, data: through(params, data)[0]), params)
        updates, _ = parts.optimizer.update(
            slope,
            parts.optimizer.init(params),
            params,
            value_and_kl_fn=lambda candidate: mean(loss_and_kl, candidate),
            kl_hvp_fn=lambda vector: mean(curvature, vector),
        )
        return optax.apply_updates(params, updates)

    before = learner.flat
    learner._trpo()
    found, learner.flat = learner.flat - before, before
    expected = flat_of(step(params)) - flat_of(params)
    assert np.linalg.norm(expected) > 0
    assert sides.relative(found.numpy(), expected) < 0.02  # ten products of the curvature, in float32


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_the_advantages_of_episodes_are_jmetas(jmeta, collected, normalize, gae_lambda):
    """Of episodes of which some end early."""
    batch = jax.tree.map(lambda x: x[:, 0], collected.pre)  # the first inner step
    length = np.random.default_rng(0).integers(20, 100, batch.mask.shape[:2])
    mask = (np.arange(batch.mask.shape[2]) < length[..., None]).astype(np.float32)
    reward = np.asarray(batch.reward) * mask
    found = pytorch_pg.advantages(
        torch.tensor(np.asarray(batch.inputs.obs)),
        torch.tensor(reward),
        torch.tensor(mask),
        discount=0.95,
        gae_lambda=gae_lambda,
        normalize=normalize,
    )

    @jax.vmap
    def expected(obs, reward, mask):
        ended = (jnp.cumsum(mask, -1) == mask.sum(-1, keepdims=True)) & (mask > 0)
        returns = jax.vmap(lambda r, m: advantages.discounted_returns(r, m, discount=0.95))(reward, mask)
        value = jmeta_pg.baselines.linear_baseline(obs, returns, mask)
        gae = jax.vmap(lambda *x: advantages.gae(*x, discount=0.95, gae_lambda=gae_lambda))
        advantage, _ = gae(reward, value, jnp.zeros(len(obs)), ended, mask)
        return advantages.normalize(advantage, mask, scale=1.0) if normalize else advantage

    np.testing.assert_allclose(found, expected(batch.inputs.obs, reward, mask), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", compare.FAMILIES)
def test_tasks_are_drawn_afresh_and_episodes_end(family):
    """Large actions: an ant falls."""
    made = envs.make(family, 8, 2, seed=0)
    made.draw()
    first = made.reset()
    assert first.shape == (8, 2, made.obs_size)
    rng, ended = np.random.default_rng(0), np.zeros((8, 2), bool)
    for _ in range(100):
        action = rng.choice([-2.0, 2.0], (8, 2, made.action_size)).astype(np.float32)
        obs, reward, now = made.step(action)
        assert obs.dtype == reward.dtype == np.float32 and reward.shape == (8, 2)
        assert np.isfinite(obs).all() and (now | ~ended).all()  # what has ended stays so
        ended = now
    assert ended.any() == (family == "ant-direction")
    task = "goal" if family == "point-goal" else "task"
    before = getattr(made, task)
    made.draw()
    assert (getattr(made, task) != before).any()
    np.testing.assert_allclose(made.reset(), first, atol=1.0)  # where it begins


def test_goals_are_those_of_training():
    made = envs.make("point-goal", 5000, 1, seed=0)
    made.draw()
    x, y = made.goal[:, 0].T
    assert not ((x > 0.25) & (y > 0.25)).any()
    assert np.abs(made.goal).max() <= 0.5
    np.testing.assert_allclose(made.goal.mean((0, 1)), -0.025, atol=0.02)  # 15 cells of 16


def test_a_meta_iteration_says_what_it_sampled(stored, monkeypatch):
    """Every step earns 1 of the first of two tasks, and 2 of the second."""

    class Paid(envs.PointGoal):
        def step(self, action):
            obs, _, ended = super().step(action)
            return obs, np.tile([[1.0], [2.0]], ended.shape[1]).astype(np.float32), ended & False

    monkeypatch.setattr(envs, "make", lambda family, *sizes: Paid(*sizes))
    common_ground = sides.stored(stored)
    setting = maml.Setting(**common_ground["setting"])
    found = maml.Learner(setting, "vmap", common_ground["params"], processes=1).iteration()
    assert found["return_before"] == found["return_after"] == 1.5 * setting.horizon
    assert found["env_steps"] == 3 * setting.tasks * setting.episodes * setting.horizon
    assert found["sampling"] > 0 and found["update"] > 0


def test_the_advantages_of_trials_are_jmetas():
    num, episodes, horizon = 5, 2, 3
    case = sides.Case("eager", "bandit", sides.RL2, 8, 0, gradient=False, file="")
    setting = rl2.Setting(**sides.rl2_setting(sides.Jmeta(case)))
    learner = rl2.Learner(dataclasses.replace(setting, horizon=horizon, discount=0.9, gae_lambda=0.7))
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
    expected = advantages.normalize(steps.advantage, steps.mask, scale=1.0)
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target, steps.target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", compare.PROBLEMS)
def test_an_iteration_of_rl2_moves_the_policy(family, tmp_path):
    case = sides.Case("eager", family, sides.RL2, 8, 0, gradient=False, file=str(tmp_path / "common.pickle"))
    sides.store(case)
    found = sides.pytorch_side(case).once()
    assert found["steps"] == 8 * (10 if family == "bandit" else 100)
    learner = rl2.Learner(rl2.Setting(**sides.stored(case)["setting"]))
    before = [p.clone() for p in learner.policy.parameters()]
    learner.iteration()
    assert any((p != q).any() for p, q in zip(before, learner.policy.parameters(), strict=True))
