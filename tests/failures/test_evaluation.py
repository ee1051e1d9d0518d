"""Evaluation: lost tasks, acting by the mode, what is kept of every episode, and when it compiles."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, cli, evaluation, parallel, policies, tasks, training
from jmeta.envs import probes
from jmeta.runs import RunFolder
from jmeta.runs.config import build
from jmeta.training.evaluations import key_while_training
from jmeta.types import TaskFamily
from tests import small

SIZES = {"num_tasks": 6, "num_steps": 1, "num_episodes": 2}


def exploding(where):
    """The small family, whose reward is NaN from the second step on for tasks that `where` names."""
    family = small.family()

    def step(key, state, action, task):
        state, timestep = family.env.step(key, state, action, task)
        return state, timestep._replace(reward=jnp.where(where(task), jnp.nan, timestep.reward))

    return family._replace(env=family.env._replace(step=step))


def evaluate(family, algorithm, seed=0, **options):
    params = small.policy().init(jax.random.key(0))
    return evaluation.evaluate(algorithm, family, params, evaluation.evaluation_key(seed), **SIZES | options)


@pytest.fixture(scope="module")
def maml():
    return small.algorithm("maml")


@pytest.fixture(scope="module")
def healthy(maml):
    return evaluate(small.family(), maml)


@pytest.fixture(scope="module")
def some_lost(healthy):
    """Lost are the tasks with a negative first coordinate."""
    family = exploding(lambda task: task[0] < 0)
    algorithm = algorithms.maml(family, small.policy(), optimizer=optax.adam(0.01), num_episodes=3)
    return evaluate(family, algorithm)


def test_lost_tasks_are_left_out_and_counted(healthy, some_lost):
    expected = np.asarray(healthy.tasks)[:, 0] < 0
    assert 0 < expected.sum() < 6
    np.testing.assert_array_equal(some_lost.lost, expected)
    assert some_lost.tasks_lost == expected.sum() and some_lost.num_tasks == 6
    # The others are what they are without them.
    np.testing.assert_allclose(some_lost.returns[~expected], healthy.returns[~expected], rtol=1e-5)
    np.testing.assert_allclose(some_lost.return_mean, healthy.returns[~expected].mean(0), rtol=1e-5)
    assert np.isfinite(some_lost.return_low).all() and np.isfinite(some_lost.optimal_mean)
    np.testing.assert_allclose(some_lost.optimal_mean, healthy.optimal_returns[~expected].mean(), rtol=1e-5)


def test_if_all_tasks_are_lost_nothing_is_claimed(some_lost):
    found = evaluation._summarize(
        some_lost.episode_returns, some_lost.episode_lengths, {}, some_lost.tasks, np.ones(6, bool), None
    )
    assert found.tasks_lost == 6
    assert np.isnan([found.return_mean, found.return_low, found.return_high]).all()


def test_nothing_is_lost_where_all_is_finite(healthy):
    assert healthy.tasks_lost == 0 and not healthy.lost.any()


# -- acting -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_step():
    """Reward -(action - task)^2 with tasks of ±1, and a policy of standard deviation 1."""
    sample = lambda key: jax.random.rademacher(key, (), float)  # noqa: E731
    family = TaskFamily("one-step", probes.action_reward(), sample, sample)
    policy = policies.mlp(family.env.spec, hidden=(2,), init_log_std=0.0)
    algorithm = algorithms.fomaml(
        family, policy, optimizer=optax.adam(0.01), num_episodes=20, inner_learning_rate=0.5
    )
    params = policy.init(jax.random.key(0))

    def evaluate(**options):
        key = evaluation.evaluation_key(0)
        return evaluation.evaluate(algorithm, family, params, key, num_tasks=8, num_steps=2, **options)

    return evaluate


def test_deterministic_episodes_take_the_mode_and_adaptation_samples(one_step):
    found = one_step(deterministic=True)
    # Without noise all episodes of a task and a step are the same one.
    np.testing.assert_allclose(
        found.episode_returns, found.episode_returns[..., :1] + np.zeros(20), rtol=1e-5
    )
    # The mode of the initial policy is 0 up to a bias of some hundredths; noise would cost 1 more.
    np.testing.assert_allclose(found.return_mean[0], -1, atol=0.05)
    # Samples are what adaptation learns from: the mode moves toward the task.
    assert found.return_mean[0] + 0.2 < found.return_mean[1] < found.return_mean[2]
    sampled = one_step()
    np.testing.assert_allclose(sampled.return_mean[0], -2, atol=0.4)
    assert sampled.episode_returns.std(-1).min() > 0


def test_a_memory_is_measured_at_every_episode_without_being_changed():
    family = tasks.bandit(num_arms=2, num_pulls=5)
    policy = policies.gru(family.env.spec, size=4)
    algorithm = algorithms.rl2(family, policy, optimizer=optax.adam(0.01), num_episodes=3)
    params = policy.init(jax.random.key(0))
    evaluate = lambda **options: evaluation.evaluate(  # noqa: E731
        algorithm, family, params, evaluation.evaluation_key(0), num_tasks=3, num_episodes=2, **options
    )
    assert evaluate().episode_returns.shape == (3, 3, 2)
    found = evaluate(deterministic=True)
    assert set(found.episode_returns.ravel().tolist()) <= set(range(6))
    with pytest.raises(ValueError, match="step_scale must be None, got .*: rl2"):
        evaluate(step_scale=2.0)


# -- the size of a step -------------------------------------------------------------------------------


def test_another_step_size_compiles_once_for_all(one_step):
    with small.compilations() as compiled:
        found = [one_step(step_scale=scale).return_mean for scale in (0.0, 1.0, 2.0)]
    assert compiled.count("jit(program)") == 1
    np.testing.assert_allclose(found[1], one_step().return_mean, rtol=1e-4)
    np.testing.assert_allclose(found[0][1:], found[0][0], atol=0.5)  # no step: other episodes, same policy
    assert found[2][1] > found[1][1] > found[0][1]


@pytest.mark.parametrize("name", ["meta-sgd", "meta-gradient", "anil", "cavia", "scratch", "imaml"])
def test_the_factor_is_on_the_step_of_every_method(name):
    algorithm = small.algorithm(name)
    params = algorithm.init(jax.random.key(0)).params
    task = small.sample_tasks(jax.random.key(1))[0]
    adapt = jax.jit(lambda scale: algorithm.adapt(params, task, jax.random.key(2), 1, scale))
    (once, info), (twice, _) = adapt(1.0), adapt(2.0)
    before = jax.tree.map(lambda x: x[0], info.path.params)
    moved = jax.tree.map(jnp.subtract, once.params, before)
    expected = jax.tree.map(lambda x, step: x + 2 * step, before, moved)
    assert max(jnp.abs(step).max() for step in jax.tree.leaves(moved)) > 0
    small.assert_trees_close(twice.params, expected, rtol=1e-4, atol=1e-6)


def test_the_best_factor_is_found_for_every_number_of_steps(monkeypatch):
    tried = []

    def evaluate(*arguments, step_scale, **options):
        tried.append((arguments[3], step_scale))
        curve = [-5.0, -abs(step_scale - 4), -abs(step_scale - 0.5)]
        lost = int(step_scale == 4)
        return types.SimpleNamespace(steps=[0, 1, 2], return_mean=curve, tasks_lost=lost)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    found = evaluation.tune_step_scale(None, None, None, "validation", scales=(0.5, 1, 2, 4))
    assert found == [1, 2, 0.5]  # 4 would be best for one step, and loses a task
    assert tried == [("validation", scale) for scale in (0.5, 1, 2, 4)]


# -- what is kept -------------------------------------------------------------------------------------


def test_every_episode_is_kept_with_its_task(healthy, tmp_path):
    found = healthy.arrays()
    assert found["returns"].shape == found["lengths"].shape == found["measures/success"].shape == (6, 2, 2)
    np.testing.assert_array_equal(found["task"], healthy.tasks)
    assert found["lengths"].min() >= 1 and found["lengths"].max() == 5
    np.savez(tmp_path / "arrays.npz", **found)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as read:
        np.testing.assert_array_equal(read["returns"], found["returns"])


def test_leaves_of_a_task_go_by_their_paths(healthy):
    keys = jax.random.split(jax.random.key(0), 6)
    found = dataclasses.replace(healthy, tasks={"reset": keys, "goal": (jnp.ones(6), jnp.zeros(6))})
    arrays = found.arrays()
    assert {name for name in arrays if name.startswith("task")} == {
        "task/reset",
        "task/goal/0",
        "task/goal/1",
    }
    np.testing.assert_array_equal(arrays["task/reset"], jax.random.key_data(keys))


def test_success_counts_once_an_episode(healthy):
    success = healthy.episode_measures["success"]
    assert set(np.unique(success)) <= {0.0, 1.0}
    np.testing.assert_allclose(healthy.measure_means["success"], success.mean((0, 2)), rtol=1e-6)


# -- compilation, modes, devices, keys ----------------------------------------------------------------


def test_a_second_evaluation_compiles_nothing(maml, healthy):
    with small.compilations() as compiled:
        again = evaluate(small.family(), maml, seed=1)
    assert "jit(program)" not in compiled
    assert not np.isin(again.returns, healthy.returns).any()


def test_no_nan_is_made_on_purpose(maml):
    family = small.family()._replace(optimal_return=None)
    with jax.debug_nans(True):
        found = evaluate(family, maml)
    assert found.optimal_mean is None and "optimal_returns" not in found.arrays()


@pytest.mark.parametrize("devices", [1, 2])
def test_any_number_of_tasks_runs_on_any_devices(maml, healthy, devices):
    with jax.set_mesh(parallel.task_mesh(jax.devices()[:devices])):
        found = evaluate(small.family(), maml, num_tasks=5)
    # The first five tasks are those of an evaluation on six.
    np.testing.assert_allclose(found.returns, healthy.returns[:5], rtol=1e-5, atol=1e-5)


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_no_key_of_an_evaluation_is_one_of_training():
    """The keys that `training` and `evaluation` derive from the same seed, in the first iterations."""
    key_init, key_run = jax.random.split(jax.random.key(3))
    training = [key_init, key_run]
    for iteration in range(20):
        training += [*jax.random.split(jax.random.fold_in(key_run, iteration))]
        training += [jax.random.fold_in(key_run, iteration)]
    training += [jax.random.fold_in(key, index) for key in training[:20] for index in range(20)]
    kinds = [{*map(data, training)}]
    for evaluated in (evaluation.evaluation_key(3), key_while_training(3)):
        halves = jax.random.split(evaluated)
        inner = [jax.random.fold_in(key, index) for key in halves for index in range(20)]
        kinds.append({*map(data, [evaluated, *halves, *inner])})
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    # It is not so by itself: without the offset the episodes would have the keys of the iterations.
    plain = [jax.random.fold_in(jax.random.split(jax.random.key(3))[1], index) for index in range(20)]
    assert {*map(data, training)} & {*map(data, plain)}


# -- the command --------------------------------------------------------------------------------------

COMMAND = ("--tasks", "4", "--steps", "1", "--episodes", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; only its evaluation may change."""
    path = tmp_path_factory.mktemp("run") / "run"
    sizes = {"iterations": 2, "tasks": 2, "log-every": 1, "checkpoint-every": 1, "num-episodes": 2}
    sizes |= {"family.horizon": 5, "policy.hidden": 4}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    assert cli.main(["train", "scratch", "point-goal", *flags, "--run-dir", str(path)]) == 0
    return path


def test_the_command_writes_every_episode_beside_the_table(run, capsys):
    assert cli.main(["evaluate", str(run), *COMMAND, "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    assert "95 % interval over tasks" in printed and "success" in printed and "lost" not in printed
    written = json.loads((run / "evaluation.json").read_text())
    with np.load(run / "evaluation.npz", allow_pickle=False) as arrays:
        assert arrays["returns"].shape == (4, 2, 2) and arrays["task"].shape == (4, 2)
        np.testing.assert_allclose(arrays["returns"].mean((0, 2)), written["return_mean"], rtol=1e-6)
        np.testing.assert_allclose(
            arrays["measures/success"].mean((0, 2)), written["measures"]["success"], rtol=1e-6
        )
    assert written["tasks_lost"] == 0 and written["deterministic"] is False
    # The command's key is the one that keeps off those of training.
    opened = RunFolder.open(run)
    family, _, algorithm = build(opened.config)
    params = training.restore(opened, algorithm, "last").tree.meta.params
    expected = evaluation.evaluate(
        algorithm,
        family,
        params,
        evaluation.evaluation_key(5),
        num_tasks=4,
        num_steps=1,
        num_episodes=2,
    )
    np.testing.assert_allclose(written["return_mean"], expected.return_mean, rtol=1e-5)


def test_a_checkpoint_can_be_chosen(run, capsys):
    assert cli.main(["evaluate", str(run), *COMMAND, "--checkpoint", "1", "--deterministic"]) == 0
    written = json.loads((run / "evaluation.json").read_text())
    assert written["iteration"] == 1 and written["deterministic"] is True
    for word, message in (("7", "7"), ("newest", "--checkpoint must be last, best or an iteration")):
        assert cli.main(["evaluate", str(run), *COMMAND, "--checkpoint", word]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_table_is_printed_though_nothing_can_be_written(run, capsys):
    (run / "evaluation.npz").unlink(missing_ok=True)
    (run / "evaluation.npz").mkdir()
    try:
        assert cli.main(["evaluate", str(run), *COMMAND]) == 2
    finally:
        (run / "evaluation.npz").rmdir()
    printed = capsys.readouterr()
    assert "mean return" in printed.out
    assert printed.err.startswith("jmeta: error: ") and printed.err.count("\n") == 1


@pytest.mark.parametrize("lost", [1, 4])
def test_lost_tasks_are_shown_and_written(run, capsys, monkeypatch, lost):
    measure = evaluation._summarize

    def summarize(returns, lengths, measures, tasks, none, optimal):
        returns = np.array(returns)
        returns[:lost] = np.nan
        return measure(returns, lengths, measures, tasks, np.isnan(returns).any((1, 2)), optimal)

    monkeypatch.setattr(evaluation, "_summarize", summarize)
    assert cli.main(["evaluate", str(run), *COMMAND]) == 0
    printed = capsys.readouterr().out
    assert f"{lost} of 4 tasks were lost" in printed
    text = (run / "evaluation.json").read_text()
    written = json.loads(text)
    assert written["tasks_lost"] == lost and "NaN" not in text
    assert (written["return_mean"] == [None, None]) == (lost == 4)
