"""The only code that steps an environment: one episode, and a batch of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmeta.types import Adapted, Continuous, Env, Key, Policy, PolicyInput, PyTree, Rollout, Task


def episode(env: Env, policy: Policy, adapted: Adapted, task: Task, key: Key) -> tuple[PyTree, Rollout]:
    """One episode of `env.spec.horizon` steps, from a fresh reset.

    The scan always runs to the horizon; steps after a termination are masked, carry and observation frozen.

    Args:
      env: the environment.
      policy: the policy; its actions are sampled.
      adapted: its parameters and its carry at the start.
      task: one task.
      key: consumed.

    Returns:
      The carry after the last step, and the `Rollout` [T, ...].
    """
    key_reset, key_steps = jax.random.split(key)
    env_state, start = env.reset(key_reset, task)
    false, true = jnp.zeros((), bool), jnp.ones((), bool)
    first_inputs = PolicyInput(start.obs, _no_action(env), jnp.zeros_like(start.reward), false, true)

    def step(loop: PyTree, keys: Key) -> tuple[PyTree, Rollout]:
        env_state, inputs, carry, alive = loop
        new_carry, output = policy.step(adapted.params, carry, inputs)
        carry = jax.tree.map(lambda new, old: jnp.where(alive, new, old), new_carry, carry)
        action = policy.distribution.sample(keys[0], output.distribution)
        env_state, timestep = env.step(keys[1], env_state, action, task)
        reward = jnp.where(alive, timestep.reward, 0.0)
        terminated = timestep.terminated & alive
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
        )
        # What comes after a terminal state may be anything, NaN too: nobody sees it.
        obs = jnp.where(alive & ~terminated, timestep.obs, inputs.obs)
        next_inputs = PolicyInput(obs, _encode_action(env, action), reward, terminated, false)
        return (env_state, next_inputs, carry, alive & ~terminated), transition

    keys = jax.random.split(key_steps, (env.spec.horizon, 2))
    loop = (env_state, first_inputs, adapted.carry, true)
    (_, last_inputs, carry, _), rollout = jax.lax.scan(step, loop, keys)
    _, last_output = policy.step(adapted.params, carry, last_inputs)
    return carry, rollout._replace(last_obs=last_inputs.obs, last_value=last_output.value)


def batch(env: Env, policy: Policy, adapted: Adapted, task: Task, key: Key, num_episodes: int) -> Rollout:
    """`num_episodes` independent episodes, each from `adapted.carry`.

    Returns:
      The `Rollout` [N, T, ...].
    """
    keys = jax.random.split(key, num_episodes)
    return jax.vmap(lambda key: episode(env, policy, adapted, task, key)[1])(keys)


def returns(rollout: Rollout) -> jax.Array:
    """Undiscounted return of each episode: reward [..., T] -> [...]."""
    return rollout.reward.sum(-1)


def _no_action(env: Env) -> jax.Array:
    space = env.spec.action
    return jnp.zeros(space.size if isinstance(space, Continuous) else space.num)


def _encode_action(env: Env, action: jax.Array) -> jax.Array:
    """An action as `PolicyInput.prev_action` [A] shows it."""
    space = env.spec.action
    return action if isinstance(space, Continuous) else jax.nn.one_hot(action, space.num)
