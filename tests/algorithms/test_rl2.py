"""RL²: what a trial's advantages hold, the loss written out in full, and learning a bandit."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jmeta import parallel, policies, rollouts, tasks
from jmeta.algorithms import rl2
from jmeta.algorithms.memory.rl2 import _minibatches, with_advantages
from jmeta.estimators.surrogates import PolicyGradientBatch
from jmeta.optimizers import adam, trpo
from jmeta.presets import preset
from jmeta.runs.config import build
from jmeta.types import Adapted, Key, Params, Policy, PolicyInput, Rollout, Task, TaskFamily
from tests.policies.test_sequence import randomised
from tests.small import assert_trees_close
from tests.test_rollouts import countdown

# Two trials of two episodes of at most three steps. Of the first trial both end after two, of the second one.
EARLY, WHOLE = ((2, 2), (2, 3)), ((3, 3), (3, 3))
REWARD = np.array([[1.0, 2, 1, 2, 0, 0], [3, 0, 1, 0, 4, 0]])
TAKEN = np.array([[1.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
# Discounted by a half, backwards, and once more where an episode ended early: 2, 1 + 2 / 2 = 2,
# 2 + 2 / 4 = 2.5, 1 + 2.5 / 2 = 2.25; and 4, 2, 1 + 2 / 2 = 2, 2 / 4 = 0.5, 3 + 0.5 / 2 = 3.25.
RETURNS = np.array([[2.25, 2.5, 2, 2, 0, 0], [3.25, 0.5, 2, 2, 4, 0]])
# Of the other trial from the same time on. The last step of the second trial is taken while the first waits
# for the end, so it is compared with a return of 0.
MEAN = np.array([[3.25, 0.5, 2, 2, 0, 0], [2.25, 2.5, 2, 2, 0, 0]])
SPREAD = np.sqrt((1 + 2**2 + 1 + 2**2 + 4**2) / 9)  # of the nine steps


def two_trials(value=0.0, reward=REWARD, lengths=EARLY):
    """With one value for everything, also for what comes after the last step."""
    steps = [[step for length in trial for step in range(length)] for trial in lengths]
    taken = jnp.array([[1.0] * len(trial) + [0.0] * (6 - len(trial)) for trial in steps])
    first = jnp.array([[step == 0 for step in trial] + [False] * (6 - len(trial)) for trial in steps])
    zeros = jnp.zeros((2, 6))
    return Rollout(
        inputs=PolicyInput(zeros[..., None], zeros[..., None], zeros, first, first),
        action=jnp.zeros((2, 6), jnp.int32),
        reward=reward * taken,
        terminated=zeros > 0,
        mask=taken,
        log_prob=zeros,
        value=jnp.full((2, 6), value),
        last_obs=jnp.zeros((2, 2, 1)),
        last_value=jnp.full((2, 2), value),
    )


def test_returns_run_across_episodes_and_stop_at_the_end_of_the_trial():
    steps = with_advantages(two_trials(), horizon=3, discount=0.5, gae_lambda=1.0)
    above = TAKEN * (RETURNS - MEAN)
    np.testing.assert_allclose(steps.advantage, above, atol=1e-6)
    np.testing.assert_allclose(steps.target, above / SPREAD, atol=1e-5)
    assert not steps.terminated.any()


def test_the_critic_is_asked_within_the_trial_and_not_after_it():
    steps = with_advantages(two_trials(4.0), horizon=3, discount=0.5, gae_lambda=0.0)
    value = TAKEN * (MEAN + 4 * SPREAD)
    following = np.append(value[:, 1:], [[0], [0]], axis=1)  # through an episode's end, not after the trial's
    aim = REWARD + following * [0.5, 0.25, 0.5, 0.5, 0.5, 0]  # later by a step where an episode ends early
    np.testing.assert_allclose(steps.advantage, TAKEN * (aim - value), rtol=1e-5)
    np.testing.assert_allclose(steps.target, TAKEN * (aim - MEAN) / SPREAD, rtol=1e-5)
    np.testing.assert_allclose(steps.value, value, rtol=1e-5)  # in units of the reward


def test_returns_do_not_depend_on_the_critic_if_it_is_not_trusted():
    steps = with_advantages(two_trials(4.0), horizon=3, discount=0.5, gae_lambda=1.0)
    np.testing.assert_allclose(steps.advantage + steps.value, RETURNS, atol=1e-5)


def test_an_episode_that_ends_early_keeps_its_time():
    """As if it had gone on without a reward."""
    early = two_trials(0.3, np.array([[1.0, 2, 1, 2, 0, 0], [3, 0, 1, 0, 0, 0]]), ((2, 2), (2, 2)))
    going_on = two_trials(0.3, np.array([[1.0, 2, 0, 1, 2, 0], [3, 0, 0, 1, 0, 0]]), WHOLE)
    found, waited = (
        with_advantages(steps, horizon=3, discount=0.5, gae_lambda=1.0) for steps in (early, going_on)
    )
    to_go = [np.asarray(steps.advantage + steps.value) for steps in (found, waited)]
    np.testing.assert_allclose(to_go[0][:, :4], to_go[1][:, [0, 1, 3, 4]], rtol=1e-5)


def test_a_constant_reward_changes_no_advantage():
    reward = np.append(REWARD[:, :5], [[2], [1]], axis=1)
    plain, more = (  # of trials of the same length
        with_advantages(two_trials(0.3, reward + plus, WHOLE), horizon=3, discount=0.9, gae_lambda=0.3)
        for plus in (0, 10)
    )
    np.testing.assert_allclose(more.advantage, plain.advantage, atol=1e-4)
    np.testing.assert_allclose(more.target, plain.target, atol=1e-4)
    assert np.abs(plain.advantage).max() > 0.1


def test_trials_that_are_alike_teach_nothing():
    alike = two_trials(0.0, np.tile([1.1, 2.2, 0.3, 0.7, 0.9, 0.4], (2, 1)), WHOLE)
    steps = with_advantages(alike, horizon=3, discount=0.9, gae_lambda=1.0)
    np.testing.assert_allclose(steps.advantage, 0, atol=1e-5)
    assert np.abs(steps.target).max() < 0.1


def make(**options):
    family = tasks.bandit(num_arms=3, num_pulls=6)
    policy = policies.gru(family.env.spec, size=8)
    return family, rl2(family, policy, **{"optimizer": adam(learning_rate=0.01)} | options)


def sampled(family, num):
    return jax.vmap(family.sample)(jax.random.split(jax.random.key(5), num))


# -- the loss -----------------------------------------------------------------------------------------

SETTINGS = {  # the last three are numbers in `loss_in_full`
    "num_episodes": 2,
    "discount": 0.9,
    "gae_lambda": 0.7,
    "clip": 0.02,
    "entropy_weight": 0.3,
    "value_weight": 0.7,
}
VARIED = np.arange(1, 7)  # steps of an episode, at most six


class Countdowns(NamedTuple):
    """A family whose episodes end early, and its trials as they are played before the first epoch."""

    family: TaskFamily
    policy: Policy
    params: Params
    key: Key  # of the update
    play: Callable[[Task], PolicyGradientBatch]  # tasks [6] -> steps [6, 12, ...]


@pytest.fixture(scope="module")
def countdowns():
    def sample(key):
        return jax.random.randint(key, (), 1, 7)

    family = TaskFamily("countdown", countdown(), sample, sample)
    policy = policies.gru(family.env.spec, size=3)
    # Away from its initialisation, where the entropy is at its maximum and has no gradient.
    params, key = randomised(policy), jax.random.key(1)
    keys = parallel.task_keys(jax.random.split(key)[0], 6)
    empty = Adapted(params, policy.initial_carry())

    @jax.jit
    def play(batch):
        episodes = SETTINGS["num_episodes"]
        run = jax.vmap(lambda task, key: rollouts.trial(family.env, policy, empty, task, key, episodes)[1])
        options = {name: SETTINGS[name] for name in ("discount", "gae_lambda")}
        return with_advantages(run(batch, keys), horizon=family.env.spec.horizon, **options)

    return Countdowns(family, policy, params, key, play)


def normalised(steps):
    """With advantages of mean 0 and deviation 1 over all steps that were taken."""
    taken = np.asarray(steps.mask) > 0
    advantage = np.asarray(steps.advantage)
    advantage = (advantage - advantage[taken].mean()) / (advantage[taken].std() + 1e-5)
    return steps._replace(advantage=jnp.asarray(advantage))


def loss_in_full(countdowns, unroll_length):
    """PPO's loss of every trial, (params, steps) -> [6], derived through `unroll_length` steps."""
    policy = countdowns.policy

    def output_of(params, inputs):
        carry, parts = policy.initial_carry(), []
        for t in range(0, 12, unroll_length):
            part = jax.tree.map(lambda x, t=t: x[t : t + unroll_length], inputs)
            parts.append(policy.unroll(params, carry, part)[1])
            carry, _ = policy.unroll(countdowns.params, carry, part)  # of the policy that played: a constant
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def losses(params, steps):
        output = jax.vmap(output_of, in_axes=(None, 0))(params, steps.inputs)
        log_probs = jax.nn.log_softmax(output.distribution)
        log_prob = (log_probs * jax.nn.one_hot(steps.action, 3)).sum(-1)
        ratio = jnp.exp(log_prob - steps.log_prob)
        gain = jnp.minimum(ratio * steps.advantage, jnp.clip(ratio, 0.98, 1.02) * steps.advantage)
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
        error = (output.value - steps.target) ** 2
        # A mean over the steps that were not taken too, which add nothing to it.
        return jnp.where(steps.mask > 0, 0.7 * error - gain - 0.3 * entropy, 0).mean(1)

    return losses


@pytest.mark.parametrize("unroll_length", [12, 4])
def test_every_epoch_descends_the_clipped_loss(countdowns, unroll_length):
    """Two epochs of one minibatch: at the policy that played the trials, and at one that has moved."""
    algorithm = rl2(
        countdowns.family,
        countdowns.policy,
        optimizer=optax.sgd(1.0),
        epochs=2,
        minibatches=1,
        unroll_length=unroll_length,
        **SETTINGS,
    )
    update = jax.jit(algorithm.update)
    losses = loss_in_full(countdowns, unroll_length)
    value_and_grad = jax.jit(jax.value_and_grad(lambda *args: losses(*args).mean()))
    steps = normalised(countdowns.play(VARIED))
    np.testing.assert_array_equal(steps.mask.sum(1), 2 * VARIED)
    params, expected = countdowns.params, []
    for _ in range(2):
        value, gradient = value_and_grad(params, steps)
        expected.append(value)
        params = jax.tree.map(jnp.subtract, params, gradient)
    state = jax.jit(algorithm.init)(jax.random.key(0))._replace(params=countdowns.params)
    new, metrics = update(state, VARIED, countdowns.key)
    np.testing.assert_allclose(metrics["loss"], expected[0], rtol=1e-5)
    assert_trees_close(new.params, params, rtol=1e-4, atol=1e-5)


def recording(num):
    """Keeps the first `num` gradients in its state [num, ...], and does not move."""

    def init(params):
        return 0, jax.tree.map(lambda x: jnp.zeros((num, *x.shape)), params)

    def update(gradients, state, params=None):
        del params
        count, kept = state
        kept = jax.tree.map(lambda rows, gradient: rows.at[count].set(gradient), kept, gradients)
        return jax.tree.map(jnp.zeros_like, gradients), (count + 1, kept)

    return optax.GradientTransformation(init, update)


def test_every_epoch_shuffles_the_trials_into_minibatches(countdowns):
    """Which trials a minibatch holds is read off its gradient, the mean of theirs."""
    algorithm = rl2(
        countdowns.family,
        countdowns.policy,
        optimizer=recording(6),
        epochs=2,
        minibatches=3,
        unroll_length=4,
        normalize_advantages=False,
        **SETTINGS,
    )
    state = jax.jit(algorithm.init)(jax.random.key(0))._replace(params=countdowns.params)
    new, _ = jax.jit(algorithm.update)(state, VARIED, countdowns.key)
    steps = countdowns.play(VARIED)
    gradients = jax.jit(jax.jacobian(loss_in_full(countdowns, 4)))(countdowns.params, steps)
    of_trials, of_minibatches = (
        np.concatenate([np.reshape(leaf, (6, -1)) for leaf in jax.tree.leaves(tree)], axis=1)
        for tree in (gradients, new.opt_state.inner[1])
    )
    shares = np.linalg.lstsq(of_trials.T, of_minibatches.T)[0].T  # [minibatch, trial]
    np.testing.assert_allclose(shares @ of_trials, of_minibatches, atol=1e-5)
    held = shares > 0.25
    np.testing.assert_allclose(shares, held / 2, atol=1e-3)
    epochs = held.reshape(2, 3, 6)
    np.testing.assert_array_equal(epochs.sum(1), 1)  # every trial is in one minibatch of an epoch
    together = np.einsum("emi,emj->eij", epochs, epochs)
    assert not np.array_equal(*together)  # and with others in the next


# -- trials -------------------------------------------------------------------------------------------


def test_adapting_is_playing_episodes():
    family = tasks.grid_goal(horizon=5)
    algorithm = rl2(family, policies.gru(family.env.spec, size=8), optimizer=adam())
    params = jax.jit(algorithm.init)(jax.random.key(0)).params
    task = family.sample(jax.random.key(1))
    adapted, info = jax.jit(lambda key: algorithm.adapt(params, task, key))(jax.random.key(2))
    assert info.returns.shape == (3,)  # of the family's four episodes, all but the last
    assert np.abs(adapted.carry).max() > 0 and adapted.previous.done
    again, _ = jax.jit(lambda key: algorithm.adapt(params, task, key, 0))(jax.random.key(2))
    np.testing.assert_array_equal(again.carry, 0)


def test_no_more_episodes_than_the_memory_holds():
    family = tasks.grid_goal(horizon=5)
    policy = policies.snail(family.env.spec, size=2, max_steps=20)
    algorithm = rl2(family, policy, optimizer=adam())
    assert (algorithm.trial_steps, algorithm.max_adapt_steps) == (3, 3)  # and one more to act
    key = jax.random.key(0)
    state, task = jax.eval_shape(algorithm.init, key), jax.eval_shape(family.sample, key)
    with pytest.raises(ValueError, match="num_steps must be at most 3, got 4"):
        jax.eval_shape(functools.partial(algorithm.adapt, num_steps=4), state.params, task, key)
    unbounded = rl2(family, policies.gru(family.env.spec, size=2), optimizer=adam())
    assert (unbounded.trial_steps, unbounded.max_adapt_steps) == (3, None)


@functools.cache
def of_preset(family):
    """The configuration for a family, and the family, whose check traces it several times."""
    config = preset("rl2", family)
    return config, build(config)[0]


def build_with(family, policy):
    config, made = of_preset(family)
    return build(dataclasses.replace(config, policy={"name": policy}), made)[2]


def trace_an_update(family, policy):
    """From the preset; traced, not run."""
    (config, made), algorithm = of_preset(family), build_with(family, policy)

    def one_update(key):
        state = algorithm.init(key)
        batch = jax.vmap(made.sample)(jax.random.split(key, config.training.num_tasks))
        return state, algorithm.update(state, batch, key)

    state, (new, metrics) = jax.eval_shape(one_update, jax.random.key(0))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert metrics["return_trial"].shape == ()


@pytest.mark.unmeasured
@pytest.mark.parametrize("family", tasks.REGISTRY)
def test_every_family_is_taken(family):
    trace_an_update(family, "gru")


MEMORIES = [name for name in policies.REGISTRY if name not in ("mlp", "tabular")]


@pytest.mark.unmeasured
@pytest.mark.parametrize("family", tasks.REGISTRY)
def test_every_memory_holds_the_trials_of_a_preset(family):
    for policy in MEMORIES:
        build_with(family, policy)  # else an error names the room


@pytest.mark.unmeasured
@pytest.mark.parametrize("family", ["bandit", "sparse-point-goal"])  # discrete and continuous actions
@pytest.mark.parametrize("policy", MEMORIES)
def test_every_memory_is_taken(family, policy):
    trace_an_update(family, policy)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_episodes", 0, "num_episodes must be at least 1, got 0"),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("minibatches", 0, "minibatches must be at least 1, got 0"),
        ("clip", -0.1, "clip must be finite and not negative, got -0.1"),
        ("entropy_weight", -1.0, "entropy_weight must be finite and not negative, got -1.0"),
        ("discount", 1.5, r"discount must be in \[0, 1\], got 1.5"),
        ("unroll_length", 4, "unroll_length must divide the trial's 6 steps, got 4"),
        ("tasks_per_block", 0, "tasks_per_block must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{argument: value})


def test_one_device_equals_two_with_a_memory():
    family = tasks.grid_goal(horizon=4)
    policy = policies.gru(family.env.spec, size=4)
    algorithm = rl2(family, policy, optimizer=adam(), minibatches=2, unroll_length=8)
    start, states = jax.device_get(jax.jit(algorithm.init)(jax.random.key(0))), []
    for devices in (1, 2):
        mesh = parallel.task_mesh(jax.devices()[:devices])
        with jax.set_mesh(mesh):
            update = jax.jit(algorithm.update)
            states.append(update(parallel.replicate(start, mesh), sampled(family, 8), jax.random.key(1))[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states)


def test_policies_that_do_not_fit_are_refused():
    family = tasks.bandit(num_arms=3, num_pulls=6)
    with pytest.raises(ValueError, match="needs a policy with a critic"):
        rl2(family, policies.mlp(family.env.spec), optimizer=adam())
    with pytest.raises(ValueError, match="max_steps of the policy must be at least 6, got 5"):
        rl2(family, policies.snail(family.env.spec, size=2, max_steps=5), optimizer=adam())
    with pytest.raises(ValueError, match="optimizer of rl2 must do with gradients and values of the loss"):
        make(optimizer=trpo())


def test_one_trial_has_none_to_be_compared_with():
    family, algorithm = make(minibatches=1)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match="tasks must be at least 2, .* got 1"):
        jax.eval_shape(algorithm.update, state, sampled(family, 1), jax.random.key(1))


def test_every_minibatch_needs_a_task():
    family, algorithm = make(minibatches=4)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match="tasks must be at least 4, .* the 4 minibatches needs one, got 3"):
        jax.eval_shape(algorithm.update, state, sampled(family, 3), jax.random.key(1))


def test_minibatches_are_of_almost_equal_size():
    places, weight = _minibatches(5, 3)
    assert [places[row][weight[row] > 0].tolist() for row in range(3)] == [[0, 1], [2, 3], [4]]
    places, weight = _minibatches(6, 3)
    assert places.tolist() == [[0, 1], [2, 3], [4, 5]] and weight.all()


def test_learns_to_explore():
    """Two arms, one always pays and one never, six pulls: guessing gives 3, one look before choosing 5.5."""
    family = tasks.bandit(num_arms=2, num_pulls=6)

    def sample(key):
        return jnp.roll(jnp.array([0.0, 1.0]), jax.random.bernoulli(key).astype(int))

    family = family._replace(sample=sample)
    algorithm = rl2(
        family, policies.gru(family.env.spec, size=16), optimizer=adam(learning_rate=0.02), entropy_weight=0.0
    )

    def learn(key):
        def step(state, key):
            key_tasks, key_update = jax.random.split(key)
            batch = jax.vmap(sample)(jax.random.split(key_tasks, 64))
            return algorithm.update(state, batch, key_update)

        return jax.lax.scan(step, algorithm.init(key), jax.random.split(key, 60))[1]["return_trial"]

    returns = np.asarray(jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(0), 4)))
    np.testing.assert_allclose(returns[:, 0].mean(), 3.0, atol=0.4)
    last = returns[:, -10:].mean(1)
    low, _ = scipy.stats.t.interval(0.99, 3, last.mean(), scipy.stats.sem(last))
    assert low > 5.0, last
    assert last.mean() < 5.7  # nobody can do better than 5.5
