"""The only code that steps an environment: one episode, a batch of them, a trial of several in sequence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmeta.types import (
    Adapted,
    Array,
    Continuous,
    Env,
    Key,
    LastTransition,
    Policy,
    PolicyInput,
    PyTree,
    Rollout,
    Task,
)


def episode(env: Env, policy: Policy, adapted: Adapted, task: Task, key: Key) -> tuple[Adapted, Rollout]:
    """One episode of `env.spec.horizon` steps, from a fresh reset.

    The scan always runs to the horizon; steps after a termination are masked, carry and inputs frozen.

    Args:
      env: the environment.
      policy: the policy; its actions are sampled.
      adapted: its parameters, its carry at the start, and the last transition of the episode before.
      task: one task.
      key: consumed.

    Returns:
      The policy as it is after the last step, and the `Rollout` [T, ...].

    Raises:
      ValueError: if the policy's memory cannot hold an episode.
    """
    check_room(policy, env.spec.horizon)
    key_reset, key_steps = jax.random.split(key)
    env_state, start = env.reset(key_reset, task)
    false, true = jnp.zeros((), bool), jnp.ones((), bool)
    previous = adapted.previous
    if previous is None:
        previous = LastTransition(_no_action(env), jnp.zeros_like(start.reward), false)
    first_inputs = PolicyInput(start.obs, *previous, true)

    def while_alive(alive: Array, new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda n, o: jnp.where(alive, n, o), new, old) if env.spec.terminates else new

    def step(loop: PyTree, keys: Key) -> tuple[PyTree, Rollout]:
        env_state, inputs, carry, alive = loop
        new_carry, output = policy.step(adapted.params, carry, inputs)
        carry = while_alive(alive, new_carry, carry)
        action = policy.distribution.sample(keys[0], output.distribution)
        env_state, timestep = env.step(keys[1], env_state, action, task)
        reward = jnp.where(alive, timestep.reward, 0.0)
        terminated = timestep.terminated & alive if env.spec.terminates else false
        transition = Rollout(
            inputs=inputs,
            action=action,
            log_prob=policy.distribution.log_prob(output.distribution, action),
            reward=reward,
            terminated=terminated,
            mask=alive.astype(reward.dtype),
            value=output.value,
            last_obs=inputs.obs,
            last_value=output.value,
            measures=jax.tree.map(lambda x: jnp.where(alive, x, jnp.zeros_like(x)), timestep.measures),
        )
        # What comes after a terminal state may be anything, NaN too: nobody sees it.
        obs = jnp.where(terminated, inputs.obs, timestep.obs)
        new_inputs = PolicyInput(obs, _encode_action(env, action), reward, terminated, false)
        inputs = while_alive(alive, new_inputs, inputs)
        return (env_state, inputs, carry, alive & ~terminated), transition

    keys = jax.random.split(key_steps, (env.spec.horizon, 2))
    loop = (env_state, first_inputs, adapted.carry, true)
    (_, last, carry, _), rollout = jax.lax.scan(step, loop, keys)
    _, last_output = policy.step(adapted.params, carry, last)
    after = Adapted(adapted.params, carry, LastTransition(last.prev_action, last.prev_reward, true))
    return after, rollout._replace(last_obs=last.obs, last_value=last_output.value)


def batch(env: Env, policy: Policy, adapted: Adapted, task: Task, key: Key, num_episodes: int) -> Rollout:
    """`num_episodes` independent episodes, each from `adapted`.

    Returns:
      The `Rollout` [N, T, ...].
    """
    keys = jax.random.split(key, num_episodes)
    return jax.vmap(lambda key: episode(env, policy, adapted, task, key)[1])(keys)


def trial(
    env: Env, policy: Policy, adapted: Adapted, task: Task, key: Key, num_episodes: int
) -> tuple[Adapted, Rollout, jax.Array]:
    """Episodes of one task in sequence, the carry kept; each sees the last transition of the one before.

    Args:
      env: the environment.
      policy: the policy; its actions are sampled.
      adapted: the policy at the start of the trial.
      task: one task.
      key: consumed.
      num_episodes: E.

    Returns:
      The policy after the last episode, so that a trial can go on; the steps as one `Rollout` [E T, ...],
      those that were taken first, so that `policy.unroll` on its inputs repeats the trial (`last_obs` and
      `last_value` [E, ...] are of each episode); and the undiscounted return of each episode [E].

    Raises:
      ValueError: if the policy's memory cannot hold a trial. (How much it holds already is not looked at.)
    """
    check_room(policy, num_episodes * env.spec.horizon)

    def one(adapted: Adapted, key: Key) -> tuple[Adapted, Rollout]:
        return episode(env, policy, adapted, task, key)

    adapted, episodes = jax.lax.scan(one, begin_trial(env, adapted), jax.random.split(key, num_episodes))
    steps = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), episodes)
    last: dict[str, Any] = {"last_obs": episodes.last_obs, "last_value": episodes.last_value}
    if not env.spec.terminates:
        return adapted, steps._replace(**last), episodes.reward.sum(-1)
    taken = steps.mask > 0
    position = jnp.where(taken, jnp.cumsum(taken) - 1, taken.sum() + jnp.cumsum(~taken) - 1)
    order = jnp.zeros_like(position).at[position].set(jnp.arange(len(position)), unique_indices=True)
    fields = {name: field for name, field in steps._asdict().items() if name not in last}
    in_order = jax.tree.map(lambda x: x[order], fields)
    return adapted, Rollout(**in_order, **last), episodes.reward.sum(-1)


def begin_trial(env: Env, adapted: Adapted) -> Adapted:
    """A policy before its first episode, told of a previous transition that is all zeros.

    So its structure is that of a policy after an episode, as the carry of a scan must be.
    """
    if adapted.previous is not None:
        return adapted
    return adapted._replace(previous=LastTransition(_no_action(env), jnp.zeros(()), jnp.zeros((), bool)))


def check_room(policy: Policy, num_steps: int) -> None:
    """Raises ValueError unless the policy's memory can hold so many steps."""
    if policy.max_steps is not None and policy.max_steps < num_steps:
        raise ValueError(f"max_steps of the policy must be at least {num_steps}, got {policy.max_steps}")


def returns(rollout: Rollout) -> jax.Array:
    """Undiscounted return of each episode: reward [..., T] -> [...]."""
    return rollout.reward.sum(-1)


def lengths(rollout: Rollout) -> jax.Array:
    """Steps that each episode took: mask [..., T] -> [...] int32."""
    return rollout.mask.sum(-1).astype(jnp.int32)


def measures(rollout: Rollout) -> dict[str, jax.Array]:
    """Measures of each episode: [..., T] -> [...] float each.

    Of a bool measure, whether it was true after some step of the episode (0 or 1); of a float one, the mean
    over the steps that the episode took.
    """

    def of_episode(measure: jax.Array) -> jax.Array:
        if measure.dtype == bool:
            return measure.any(-1).astype(float)
        return measure.sum(-1) / rollout.mask.sum(-1)

    return {name: of_episode(measure) for name, measure in rollout.measures.items()}


def _no_action(env: Env) -> jax.Array:
    space = env.spec.action
    return jnp.zeros(space.size if isinstance(space, Continuous) else space.num)


def _encode_action(env: Env, action: jax.Array) -> jax.Array:
    """An action as `PolicyInput.prev_action` [A] shows it."""
    space = env.spec.action
    return action if isinstance(space, Continuous) else jax.nn.one_hot(action, space.num)
