"""Episodes: what the policy is shown, what is masked, and what bootstraps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import distributions, policies, rollouts, tasks
from jmeta.envs import probes
from jmeta.envs.point_mass import point_mass
from jmeta.inner import policy_gradient as pg
from jmeta.types import (
    Adapted,
    Discrete,
    Env,
    EnvSpec,
    Policy,
    PolicyInput,
    PolicyOutput,
    TaskFamily,
    TimeStep,
)

HORIZON = 6


def countdown():
    """Reward 1, 2, 3, ... a step; terminates at the end of step number `task`. Shows the steps taken."""

    def observe(taken, reward, terminated):
        return TimeStep(taken[None].astype(float), reward, terminated)

    def reset(key, task):
        del key, task
        taken = jnp.zeros((), jnp.int32)
        return taken, observe(taken, jnp.zeros(()), jnp.array(False))

    def step(key, state, action, task):
        del key, action
        taken = state + 1
        return taken, observe(taken, taken.astype(float), taken == task)

    return Env(reset, step, EnvSpec(obs_size=1, action=Discrete(3), horizon=HORIZON))


def counting_policy(value=lambda params, obs: obs[0]):
    """Counts its calls in the carry; uniform over three actions."""

    def step(params, carry, inputs):
        return carry + 1, PolicyOutput(jnp.zeros(3), value(params, inputs.obs))

    def unroll(params, carry, inputs):
        return jax.lax.scan(lambda carry, one: step(params, carry, one), carry, inputs)

    return Policy(lambda key: (), lambda: jnp.int32(0), step, unroll, distributions.Categorical)


@pytest.fixture(scope="module")
def episode():
    env, policy = countdown(), counting_policy()
    adapted = Adapted((), policy.initial_carry())
    return jax.jit(lambda task, key: rollouts.episode(env, policy, adapted, task, key))


def test_nothing_counts_after_a_terminal_step(episode):
    _, rollout = episode(3, jax.random.key(0))
    np.testing.assert_array_equal(rollout.mask, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(rollout.reward, [1, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(rollout.terminated, [0, 0, 1, 0, 0, 0])
    assert rollouts.returns(rollout) == 1 + 2 + 3


def test_the_time_limit_is_not_terminated(episode):
    _, rollout = episode(100, jax.random.key(0))
    np.testing.assert_array_equal(rollout.mask, np.ones(HORIZON))
    assert not rollout.terminated.any()
    assert rollouts.returns(rollout) == 1 + 2 + 3 + 4 + 5 + 6


def test_a_terminal_step_at_the_time_limit_is_terminated(episode):
    _, rollout = episode(HORIZON, jax.random.key(0))
    np.testing.assert_array_equal(rollout.terminated, [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(rollout.mask, np.ones(HORIZON))


def test_the_policy_is_shown_what_happened_the_step_before(episode):
    _, rollout = episode(3, jax.random.key(1))
    inputs, one_hot = rollout.inputs, np.eye(3)[np.asarray(rollout.action)]
    np.testing.assert_array_equal(inputs.obs[:, 0], [0, 1, 2, 2, 2, 2])  # nothing beyond the terminal step
    np.testing.assert_array_equal(inputs.prev_action[0], np.zeros(3))
    np.testing.assert_array_equal(inputs.prev_action[1:4], one_hot[:3])
    np.testing.assert_array_equal(inputs.prev_reward[:4], [0, 1, 2, 3])
    # Step 2 ends the episode: `terminated` says so at 2, `prev_done` at 3, and `first` is true at 0 alone.
    np.testing.assert_array_equal(inputs.prev_done[:4], [0, 0, 0, 1])
    np.testing.assert_array_equal(inputs.first, [1, 0, 0, 0, 0, 0])


def test_continuous_actions_are_shown_as_they_are():
    env = point_mass(horizon=3, reward=lambda position, task: position[0])
    policy = Policy(
        lambda key: (),
        lambda: (),
        lambda params, carry, inputs: (
            carry,
            PolicyOutput(distributions.NormalParams(jnp.zeros(2), jnp.zeros(2)), jnp.zeros(())),
        ),
        None,
        distributions.DiagonalNormal,
    )
    _, rollout = rollouts.episode(env, policy, Adapted((), ()), (), jax.random.key(0))
    assert rollout.action.shape == (3, 2)
    np.testing.assert_array_equal(rollout.inputs.prev_action, np.vstack([np.zeros(2), rollout.action[:2]]))


def test_the_behaviour_log_probability_is_stored(episode):
    _, rollout = episode(100, jax.random.key(0))
    np.testing.assert_allclose(rollout.log_prob, np.full(HORIZON, np.log(1 / 3)), rtol=1e-6)


def test_nonsense_after_a_terminal_step_is_not_seen():
    env = countdown()

    def step(key, state, action, task):
        state, timestep = env.step(key, state, action, task)
        return state, jax.tree.map(lambda x: jnp.where(state >= task, jnp.nan, x), timestep)._replace(
            reward=jnp.where(state > task, jnp.nan, timestep.reward), terminated=timestep.terminated
        )

    policy = counting_policy()
    _, rollout = rollouts.episode(
        env._replace(step=step), policy, Adapted((), jnp.int32(0)), 3, jax.random.key(0)
    )
    np.testing.assert_array_equal(rollout.reward, [1, 2, 3, 0, 0, 0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rollout))


@pytest.mark.parametrize(("terminal_step", "calls"), [(1, 1), (3, 3), (HORIZON, HORIZON), (100, HORIZON)])
def test_the_carry_stops_with_the_episode(episode, terminal_step, calls):
    adapted, _ = episode(terminal_step, jax.random.key(0))
    assert adapted.carry == calls


def test_an_episode_starts_from_the_carry_it_is_given():
    adapted = Adapted((), jnp.int32(40))
    after, _ = rollouts.episode(countdown(), counting_policy(), adapted, 2, jax.random.key(0))
    assert after.carry == 42


def test_last_value_is_that_of_the_observation_after_the_last_step(episode):
    _, rollout = episode(100, jax.random.key(0))
    np.testing.assert_array_equal(rollout.value, [0, 1, 2, 3, 4, 5])  # the critic reads off the time
    assert rollout.last_value == 6


def test_last_observation_is_the_one_after_the_last_step(episode):
    _, rollout = episode(100, jax.random.key(0))
    np.testing.assert_array_equal(rollout.last_obs, [6])  # the observation is the number of steps taken
    assert rollout.last_obs.shape == rollout.inputs.obs.shape[1:]


def test_every_episode_of_a_batch_has_its_last_observation():
    """A walk by the action, so that the observations tell what the actions were."""
    env = countdown()

    def step(key, state, action, task):
        del key, task
        return state + action, TimeStep((state + action)[None].astype(float), jnp.zeros(()), jnp.array(False))

    policy = counting_policy()
    adapted = Adapted((), policy.initial_carry())
    batch = rollouts.batch(env._replace(step=step), policy, adapted, 0, jax.random.key(0), 4)
    np.testing.assert_array_equal(batch.last_obs[:, 0], batch.action.sum(1))
    assert len(set(batch.last_obs[:, 0].tolist())) > 1


def test_keys_make_the_episode(episode):
    actions = [np.asarray(episode(100, jax.random.key(seed))[1].action) for seed in (0, 0, 1, 2)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])
    assert not np.array_equal(actions[2], actions[3])


def test_a_batch_is_episodes_one_by_one(episode):
    env, policy = countdown(), counting_policy()
    adapted = Adapted((), policy.initial_carry())
    batch = rollouts.batch(env, policy, adapted, 4, jax.random.key(3), 5)
    one_by_one = [episode(4, key)[1] for key in jax.random.split(jax.random.key(3), 5)]
    jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda *x: np.stack(x), *one_by_one))
    np.testing.assert_array_equal(rollouts.returns(batch), np.full(5, 10))
    assert len({np.asarray(actions).tobytes() for actions in batch.action}) > 1


# -- what bootstraps ----------------------------------------------------------------------------------


def collect(env, critic, *, num_episodes=2, discount=0.9, gae_lambda=1.0):
    policy = Policy(
        lambda key: (),
        lambda: (),
        lambda params, carry, inputs: (carry, PolicyOutput(jnp.zeros(2), critic(inputs.obs))),
        None,
        distributions.Categorical,
        has_critic=True,
    )
    family = TaskFamily("probe", env, lambda key: (), lambda key: ())
    source = pg.estimator(
        family,
        policy,
        num_episodes=num_episodes,
        discount=discount,
        gae_lambda=gae_lambda,
        baseline="value",
        normalize_advantages=False,
    )
    return source.collect(Adapted((), ()), (), jax.random.key(0))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_a_true_critic_has_no_advantage_at_the_time_limit(gae_lambda):
    # Reward 1 for ever: the value is 1 / (1 - 0.9) = 10 at every step, and 1 + 0.9 * 10 = 10.
    batch = collect(probes.time_limit(horizon=4), lambda obs: jnp.full((), 10.0), gae_lambda=gae_lambda)
    np.testing.assert_allclose(batch.advantage, np.zeros((2, 4)), atol=1e-5)
    np.testing.assert_allclose(batch.target, np.full((2, 4), 10.0), rtol=1e-6)


def test_the_time_limit_bootstraps_from_the_critic():
    # A critic that says 2: 1 + 0.9 * 2 = 2.8, 1 + 0.9 * 2.8 = 3.52, 1 + 0.9 * 3.52 = 4.168.
    batch = collect(probes.time_limit(horizon=3), lambda obs: jnp.full((), 2.0))
    np.testing.assert_allclose(batch.target[0], [4.168, 3.52, 2.8], rtol=1e-6)


def test_a_terminal_state_does_not_bootstrap():
    # Reward 1 and the end: the target is 1, whatever the critic says of the state after it.
    batch = collect(probes.time_limit(horizon=3, terminal=True), lambda obs: jnp.full((), 2.0))
    np.testing.assert_allclose(batch.target[0], [1, 0, 0])
    np.testing.assert_allclose(batch.advantage[0], [1 - 2, 0, 0])


def test_a_terminal_state_at_the_time_limit_does_not_bootstrap():
    # Rewards 0 and 1, then the end at the horizon; the critic says 5 throughout: targets 0.9 and 1.
    batch = collect(probes.delayed_reward(), lambda obs: jnp.full((), 5.0))
    np.testing.assert_allclose(batch.target[0], [0.9, 1], rtol=1e-6)


def test_inputs_are_of_the_declared_shapes(episode):
    _, rollout = episode(100, jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, rollout.inputs)
    assert shapes == PolicyInput((HORIZON, 1), (HORIZON, 3), (HORIZON,), (HORIZON,), (HORIZON,))
    assert rollout.inputs.first.dtype == rollout.inputs.prev_done.dtype == bool


# -- trials -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial():
    """Three episodes of three steps each, out of six that there is room for."""
    env, policy = countdown(), counting_policy()
    adapted = Adapted((), policy.initial_carry())
    run = jax.jit(lambda key: rollouts.trial(env, policy, adapted, 3, key, 3))
    return jax.tree.map(np.asarray, run(jax.random.key(0)))


def test_the_steps_of_a_trial_come_first_and_in_order(trial):
    _, rollout, returns = trial
    np.testing.assert_array_equal(rollout.mask, [1] * 9 + [0] * 9)
    np.testing.assert_array_equal(rollout.reward, [1, 2, 3] * 3 + [0] * 9)
    np.testing.assert_array_equal(rollout.inputs.obs[:9, 0], [0, 1, 2] * 3)
    np.testing.assert_array_equal(rollout.inputs.first[:9], [1, 0, 0] * 3)
    np.testing.assert_array_equal(rollout.terminated[:9], [0, 0, 1] * 3)
    np.testing.assert_array_equal(returns, [6, 6, 6])


def test_the_last_transition_of_an_episode_reaches_the_next(trial):
    adapted, rollout, _ = trial
    inputs, one_hot = rollout.inputs, np.eye(3)[rollout.action]
    np.testing.assert_array_equal(inputs.prev_reward[:9], [0, 1, 2, 3, 1, 2, 3, 1, 2])
    np.testing.assert_array_equal(inputs.prev_done[:9], [0, 0, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(inputs.prev_action[1:9], one_hot[:8])
    np.testing.assert_array_equal(inputs.prev_action[0], np.zeros(3))
    assert adapted.previous.reward == 3 and adapted.previous.done
    np.testing.assert_array_equal(adapted.previous.action, one_hot[8])


def test_the_carry_is_kept_over_the_episodes_of_a_trial(trial):
    assert trial[0].carry == 9


def test_a_time_limit_ends_an_episode_of_a_trial():
    env, policy = countdown(), counting_policy()
    _, rollout, returns = rollouts.trial(env, policy, Adapted((), jnp.int32(0)), 100, jax.random.key(0), 2)
    np.testing.assert_array_equal(rollout.inputs.prev_done, [0] * 6 + [1] + [0] * 5)
    assert not rollout.terminated.any()
    np.testing.assert_array_equal(returns, [21, 21])


def test_a_trial_goes_on_where_another_ended():
    env, policy = countdown(), counting_policy()
    first, _, _ = rollouts.trial(env, policy, Adapted((), jnp.int32(0)), 3, jax.random.key(0), 2)
    second, rollout, _ = rollouts.trial(env, policy, first, 3, jax.random.key(1), 1)
    assert second.carry == 9 and rollout.inputs.prev_reward[0] == 3 and rollout.inputs.prev_done[0]


def test_an_episode_sees_what_the_trial_before_it_ended_with():
    env, policy = countdown(), counting_policy()
    adapted, _, _ = rollouts.trial(env, policy, Adapted((), jnp.int32(0)), 3, jax.random.key(0), 1)
    batch = rollouts.batch(env, policy, adapted, 3, jax.random.key(1), 2)
    np.testing.assert_array_equal(batch.inputs.prev_reward[:, 0], [3, 3])
    np.testing.assert_array_equal(batch.inputs.prev_done[:, 0], [True, True])


def test_no_episodes_leave_the_policy_as_it_was():
    env, policy = countdown(), counting_policy()
    adapted, rollout, returns = rollouts.trial(
        env, policy, Adapted((), jnp.int32(7)), 3, jax.random.key(0), 0
    )
    assert adapted.carry == 7 and returns.shape == (0,) and rollout.reward.shape == (0,)


def test_where_nothing_terminates_nothing_changes():
    """The grid's goal ends no episode: with and without masks a trial is the same."""
    family = tasks.grid_goal(horizon=5)
    policy = policies.gru(family.env.spec, size=4)
    adapted = Adapted(policy.init(jax.random.key(0)), policy.initial_carry())
    task = family.sample(jax.random.key(1))
    found = []
    for terminates in (False, True):
        env = family.env._replace(spec=dataclasses.replace(family.env.spec, terminates=terminates))
        run = jax.jit(lambda key, env=env: rollouts.trial(env, policy, adapted, task, key, 2))
        found.append(run(jax.random.key(2)))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_more_steps_than_a_memory_holds_are_refused():
    """Its rows would be written over, without a word."""
    family = tasks.grid_goal(horizon=5)
    policy = policies.transformer(family.env.spec, size=4, num_heads=1, max_steps=9)
    adapted = Adapted(policy.init(jax.random.key(0)), policy.initial_carry())
    task, key = jnp.zeros(2, jnp.int32), jax.random.key(1)
    with pytest.raises(ValueError, match="max_steps of the policy must be at least 10, got 9"):
        rollouts.trial(family.env, policy, adapted, task, key, 2)
    with pytest.raises(ValueError, match="max_steps of the policy must be at least 5, got 4"):
        rollouts.episode(family.env, policy._replace(max_steps=4), adapted, task, key)


# -- measures -----------------------------------------------------------------------------------------


def test_measures_of_an_episode_are_events_and_means_of_the_steps_taken():
    plain = countdown()

    def step(key, state, action, task):
        state, timestep = plain.step(key, state, action, task)
        measures = {"success": state == 2, "late": state == 5, "steps": state.astype(float)}
        return state, timestep._replace(measures=measures)

    env, policy = plain._replace(step=step), counting_policy()
    run = jax.jit(lambda key: rollouts.batch(env, policy, Adapted((), jnp.int32(0)), 3, key, 2))
    found = rollouts.measures(run(jax.random.key(0)))  # three steps of six
    np.testing.assert_array_equal(found["success"], [1, 1])
    np.testing.assert_array_equal(found["late"], [0, 0])
    np.testing.assert_array_equal(found["steps"], [2, 2])
    np.testing.assert_array_equal(rollouts.lengths(run(jax.random.key(0))), [3, 3])


def test_success_is_near_the_goal():
    family = tasks.sparse_point_goal(horizon=12)
    policy = policies.mlp(family.env.spec, hidden=(2,), init_log_std=-20, min_log_std=-20)
    params = policy.init(jax.random.key(0))
    hidden, last = params["policy"]
    straight_up = params | {"policy": (hidden, last._replace(bias=jnp.array([0.0, 1.0])))}
    goals = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    reached = jax.vmap(
        lambda goal: rollouts.measures(
            rollouts.batch(family.env, policy, Adapted(straight_up, ()), goal, jax.random.key(0), 1)
        )
    )(goals)
    np.testing.assert_array_equal(reached["success"], [[1], [0]])
