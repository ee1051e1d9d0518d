"""Q-learning as an inner loop, in float64: differences by hand, its derivative, what it converges to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import policies, tasks
from jmeta.algorithms import maml, reptile
from jmeta.envs.tabular_mdp import TabularTask, tabular_mdp
from jmeta.inner import q_learning
from jmeta.inner.loop import DIFFERENTIATIONS, inner_loop
from jmeta.types import Adapted, Discrete, Env, EnvSpec, PolicyInput, TaskFamily, TimeStep

S, A = 3, 2
VALUES = np.array([[1.0, 3.0], [2.0, 0.0], [5.0, 4.0]])


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def chain(*, terminal):
    """States 0, 1, 2 in turn whatever the action, reward 1 and then 2; state 2 may be terminal."""

    def observe(state, reward):
        return TimeStep(jax.nn.one_hot(state, S), reward, (state == 2) & terminal)

    def reset(key, task):
        del key, task
        return jnp.int32(0), observe(jnp.int32(0), jnp.zeros(()))

    def step(key, state, action, task):
        del key, action, task
        return state + 1, observe(state + 1, (state + 1).astype(float))

    return Env(reset, step, EnvSpec(obs_size=S, action=Discrete(A), horizon=2))


def of(env, *, num_episodes=1, discount=0.5, epsilon=0.5):
    """Family, policy and learner."""
    family = TaskFamily("test", env, lambda key: (), lambda key: ())
    policy = policies.tabular(env.spec, epsilon=epsilon)
    return policy, q_learning.learner(family, policy, num_episodes=num_episodes, discount=discount)


def batch(states, actions, rewards, *, terminated=None, mask=None):
    """One episode as data [1, T]; `states` is one longer than the others."""
    one_hot = jnp.eye(S)[jnp.array(states)][None]
    reward = jnp.array([rewards], float)
    terminated = jnp.zeros(reward.shape, bool) if terminated is None else jnp.array([terminated])
    mask = jnp.ones_like(reward) if mask is None else jnp.array([mask], float)
    inputs = PolicyInput(one_hot[:, :-1], jnp.zeros((*reward.shape, A)), reward, terminated, terminated)
    return q_learning.Transitions(inputs, jnp.array([actions]), reward, one_hot[:, 1:], terminated, mask)


def increments(data):
    """What a step of size 1 adds to VALUES; discount 0.5."""
    _, learner = of(chain(terminal=False))
    return -learner.gradient(jnp.asarray(VALUES), data)


def test_temporal_differences_by_hand():
    # State 0, action 1, reward 1 -> state 1: 1 + 0.5 max(2, 0) - 3 = -1.
    # State 1, action 0, reward 2 -> state 2, the time limit, which bootstraps: 2 + 0.5 max(5, 4) - 2 = 2.5.
    data = batch([0, 1, 2], [1, 0], [1.0, 2.0])
    np.testing.assert_allclose(increments(data), [[0, -1], [2.5, 0], [0, 0]], atol=1e-6)


def test_a_terminal_state_does_not_bootstrap():
    # The same, but for the second difference: 2 + 0 - 2 = 0.
    data = batch([0, 1, 2], [1, 0], [1.0, 2.0], terminated=[False, True])
    np.testing.assert_allclose(increments(data), [[0, -1], [0, 0], [0, 0]], atol=1e-6)


def test_a_pair_visited_twice_moves_twice():
    # Twice state 0, action 0, reward 1 -> state 0: 1 + 0.5 * 3 - 1 = 1.5 each, both from the values before.
    data = batch([0, 0, 0], [0, 0], [1.0, 1.0])
    np.testing.assert_allclose(increments(data), [[3, 0], [0, 0], [0, 0]], atol=1e-6)


def test_what_comes_after_the_end_does_not_count():
    data = batch([0, 1, 2], [1, 0], [1.0, 99.0], terminated=[True, False], mask=[1, 0])
    # 1 + 0 - 3 = -2, and nothing of the second step.
    np.testing.assert_allclose(increments(data), [[0, -2], [0, 0], [0, 0]], atol=1e-6)
    _, learner = of(chain(terminal=False))
    np.testing.assert_allclose(learner.loss(jnp.asarray(VALUES), data), 0.5 * (4 + 0) / 2)


def test_a_batch_moves_by_the_mean_of_its_episodes():
    _, learner = of(chain(terminal=False), num_episodes=2)
    first, second = batch([0, 1, 2], [1, 0], [1.0, 2.0]), batch([0, 0, 0], [0, 0], [1.0, 1.0])
    both = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
    moved = -learner.gradient(jnp.asarray(VALUES), both)
    # The mean of the increments above: (0 + 3) / 2, (-1 + 0) / 2 and (2.5 + 0) / 2.
    np.testing.assert_allclose(moved, [[1.5, -0.5], [1.25, 0], [0, 0]], atol=1e-6)
    # Four differences in all, 0.5 * (1 + 6.25 + 2.25 + 2.25) / 4.
    np.testing.assert_allclose(learner.loss(jnp.asarray(VALUES), both), 0.5 * 11.75 / 4, rtol=1e-6)


@pytest.mark.parametrize("terminal", [False, True])
def test_episodes_become_transitions(terminal):
    _, learner = of(chain(terminal=terminal), num_episodes=3)
    data = learner.collect(Adapted(jnp.asarray(VALUES), ()), (), jax.random.key(0))
    np.testing.assert_array_equal(data.inputs.obs.argmax(-1), np.tile([0, 1], (3, 1)))
    np.testing.assert_array_equal(data.next_obs[:, 0].argmax(-1), [1, 1, 1])
    np.testing.assert_array_equal(data.reward, np.tile([1, 2], (3, 1)))
    np.testing.assert_array_equal(data.terminated, np.tile([False, terminal], (3, 1)))
    np.testing.assert_array_equal(data.mask, np.ones((3, 2)))
    if not terminal:  # a terminal state is not shown
        np.testing.assert_array_equal(data.next_obs[:, 1].argmax(-1), [2, 2, 2])


# -- its derivative -----------------------------------------------------------------------------------

NUM_STEPS, STEP_SIZE, DISCOUNT = 3, 0.3, 0.8


@pytest.fixture(scope="module")
def learned(float64):
    """Q-learning for three steps of two episodes on a random MDP, from a table without ties."""
    family = tasks.random_mdp(num_states=S, num_actions=A, horizon=4)
    policy = policies.tabular(family.env.spec, epsilon=0.5)
    learner = q_learning.learner(family, policy, num_episodes=2, discount=DISCOUNT)

    def make(**options):
        return inner_loop(policy=policy, learner=learner, optimizer=optax.sgd(STEP_SIZE), **options)

    task, params = family.sample(jax.random.key(0)), jnp.asarray(VALUES)
    adapt = jax.jit(make().adapt, static_argnums=3)
    adapted, info = adapt(params, task, jax.random.key(1), NUM_STEPS)
    post = learner.collect(adapted, task, jax.random.key(2))
    return learner, make, params, adapted.params, info, post


def jacobian(function, params):
    """d function(params) / d params by central differences."""
    columns = []
    for index in np.ndindex(*params.shape):
        shift = jnp.zeros_like(params).at[index].set(1e-6)
        columns.append((function(params + shift) - function(params - shift)) / 2e-6)
    return np.stack(columns, axis=-1).reshape(*params.shape, *params.shape)


def test_adaptation_is_the_textbook_update(learned):
    """Loops in plain NumPy over the transitions that were stored."""
    _, _, params, adapted, info, _ = learned
    data = jax.tree.map(np.asarray, info.data)
    values = np.array(params)
    for step in range(NUM_STEPS):
        before, episodes = values.copy(), range(2)
        for episode in episodes:
            for t in range(4):
                at = (step, episode, t)
                state, following = data.inputs.obs[at].argmax(), data.next_obs[at].argmax()
                target = data.reward[at] + DISCOUNT * before[following].max()
                action = data.action[at]
                values[state, action] += STEP_SIZE * (target - before[state, action]) / len(episodes)
    np.testing.assert_allclose(adapted, values, rtol=1e-12)
    assert np.abs(values - VALUES).max() > 0.1
    np.testing.assert_allclose(info.returns, data.reward.sum(-1).mean(-1), rtol=1e-12)


def test_replay_repeats_adapt(learned):
    _, make, params, adapted, info, _ = learned
    np.testing.assert_allclose(make().replay(params, info.data), adapted, rtol=1e-12)


@pytest.mark.parametrize("differentiation", DIFFERENTIATIONS)
def test_derivatives_of_the_steps_equal_finite_differences(learned, differentiation):
    _, make, params, _, info, _ = learned
    inner = make(differentiation=differentiation)
    expected = jacobian(lambda p: inner.replay(p, info.data), params)
    identity = np.eye(params.size).reshape(*params.shape, *params.shape)
    assert np.abs(expected - identity).max() > 0.1  # first order would have the identity
    np.testing.assert_allclose(
        jax.jit(jax.jacrev(inner.replay))(params, info.data), expected, rtol=1e-6, atol=1e-8
    )
    tangent = jnp.array([[1.0, -0.5], [0.2, 0.7], [-0.3, 0.4]])
    _, change = inner.replay_jvp(params, info.data, tangent)
    np.testing.assert_allclose(change, np.einsum("abcd,cd->ab", expected, tangent), rtol=1e-6, atol=1e-8)


def test_a_step_is_no_gradient():
    """The Jacobian of a step is not symmetric, so forward over reverse would be wrong."""
    _, learner = of(chain(terminal=False))
    data = batch([0, 1, 2], [1, 0], [1.0, 2.0])
    slope = jax.jacobian(learner.gradient)(jnp.asarray(VALUES), data).reshape(S * A, S * A)
    # Q(1, 0) is in the target of Q(0, 1) with the discount 0.5, and Q(0, 1) is in no target.
    assert slope[1, 2] == -0.5 and slope[2, 1] == 0
    assert not learner.conservative


def test_meta_gradient_is_that_of_the_loss_through_the_steps(learned):
    learner, make, params, adapted, info, post = learned
    inner = make()
    meta_gradient = jax.grad(lambda p: learner.loss(inner.replay(p, info.data), post))(params)
    # The target of the loss is constant, so its slope is that of a step over the 4 steps of an episode.
    slope = learner.gradient(adapted, post) / 4
    np.testing.assert_allclose(jax.grad(learner.loss)(adapted, post), slope, rtol=1e-12)
    expected = np.einsum("abcd,ab->cd", jacobian(lambda p: inner.replay(p, info.data), params), slope)
    np.testing.assert_allclose(meta_gradient, expected, rtol=1e-6, atol=1e-8)
    first_order = make(first_order=True)
    np.testing.assert_allclose(
        jax.grad(lambda p: learner.loss(first_order.replay(p, info.data), post))(params), slope, rtol=1e-12
    )


# -- what it converges to -----------------------------------------------------------------------------


def learn(task, step_size, num_steps, *, horizon, reward_std=0.0):
    """Values [2, 2] after random exploration, discount 0.5."""
    env = tabular_mdp(num_states=2, num_actions=2, horizon=horizon, reward_std=reward_std)
    policy, learner = of(env, epsilon=1.0)
    inner = inner_loop(policy=policy, learner=learner, optimizer=optax.sgd(step_size))
    adapt = jax.jit(inner.adapt, static_argnums=3)
    return adapt(jnp.zeros((2, 2)), task, jax.random.key(0), num_steps)[0].params


def test_small_steps_find_the_discounted_optimum():
    """Behaving at random, and with episodes of three steps: the time limit is no end."""
    # Action 0 goes to or stays in state 0, action 1 state 1; rewards 1 and 0 in state 0, 0 and 3 in state 1.
    task = TabularTask(jnp.tile(jnp.eye(2), (2, 1, 1)), jnp.array([[1.0, 0.0], [0.0, 3.0]]))
    # To stay in state 1 is worth 3 / (1 - 0.5) = 6, so to go there 0.5 * 6 = 3. To stay in state 0 once and
    # then go there, 1 + 0.5 * 3 = 2.5; to leave state 1 once, 0.5 * 3 = 1.5.
    values = learn(task, 0.1, 1000, horizon=3)
    np.testing.assert_allclose(values, [[2.5, 3.0], [1.5, 6.0]], rtol=1e-3)


def test_decaying_steps_average_the_noise_out():
    transition = jnp.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
    task = TabularTask(transition, jnp.array([[0.3, -0.5], [1.0, 0.4]]))
    optimum = np.zeros((2, 2))
    for _ in range(60):  # value iteration: 0.5^60 is left
        optimum = np.asarray(task.reward) + 0.5 * np.asarray(transition) @ optimum.max(1)
    values = learn(task, lambda count: 0.2 / (1 + count / 50), 5000, horizon=10, reward_std=1.0)
    # The last step size is 0.002 and a pair is visited 2.5 times an episode, so what is left of noise of
    # standard deviation 1.1 is about 1.1 * sqrt(0.002 / 2) = 0.035; four of them.
    np.testing.assert_allclose(values, optimum, atol=0.14)
    assert np.abs(optimum).max() > 1


# -- in a meta-learner --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [maml, reptile])
def test_a_meta_update_moves_the_table(method):
    family = tasks.random_mdp(num_states=S, num_actions=A, horizon=4)
    algorithm = method(
        family,
        policies.tabular(family.env.spec),
        optimizer=optax.sgd(0.1),
        inner="q-learning",
        num_inner_steps=2,
        num_episodes=3,
        inner_learning_rate=0.2,
    )
    batch = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 4))
    state = algorithm.init(jax.random.key(1))
    new, metrics = jax.jit(algorithm.update)(state, batch, jax.random.key(2))
    assert new.params.shape == (S, A) and np.isfinite(new.params).all()
    assert np.abs(new.params).max() > 1e-3
    assert metrics["env_steps"] == 4 * 3 * 3 * 4  # tasks, batches, episodes, steps
    assert metrics["skipped"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_episodes": 0}, "num_episodes.*at least 1.*0"), ({"discount": 1.5}, r"discount.*\[0, 1\].*1.5")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        of(chain(terminal=False), **options)


def test_another_policy_is_refused():
    env = chain(terminal=False)
    family = TaskFamily("test", env, lambda key: (), lambda key: ())
    with pytest.raises(ValueError, match="'q-learning' needs a policy whose parameters are a matrix"):
        q_learning.learner(family, policies.mlp(env.spec), num_episodes=1, discount=0.9)
