"""Learning from a loss that is differentiated through the environment."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jmeta import rollouts
from jmeta.checks import at_least
from jmeta.inner.loop import Learner, mean_return
from jmeta.types import Adapted, Array, Continuous, Key, Params, Policy, PolicyInput, Task, TaskFamily


class SupervisedBatch(NamedTuple):
    """Episodes of one task, and all that repeats them with other parameters."""

    task: Task
    key: Key  # []
    inputs: PolicyInput  # [N, T, ...]
    reward: Array  # [N, T]
    mask: Array  # [N, T]


def learner(family: TaskFamily, policy: Policy, *, num_episodes: int) -> Learner:
    """Descends minus the return, whose derivative goes through rewards, transitions and sampled actions.

    Where an episode is one prediction and the reward minus its loss, as in `sinusoid`, this is supervised
    learning on `num_episodes` examples (Finn et al., 2017, algorithm 2). The environment must be
    differentiable and actions reparametrised, so continuous.

    Args:
      family: tasks and their environment.
      policy: the policy; it predicts by its action.
      num_episodes: N, examples in a batch.

    Raises:
      ValueError: a value is out of its range, or actions are discrete.
    """
    at_least(1, num_episodes=num_episodes)
    if not isinstance(family.env.spec.action, Continuous):
        raise ValueError("inner 'supervised' needs continuous actions: discrete ones have no derivative")

    def sample(params: Params, task: Task, key: Key) -> SupervisedBatch:
        adapted = Adapted(params, policy.initial_carry())
        rollout = rollouts.batch(family.env, policy, adapted, task, key, num_episodes)
        return SupervisedBatch(task, key, rollout.inputs, rollout.reward, rollout.mask)

    def collect(adapted: Adapted, task: Task, key: Key) -> SupervisedBatch:
        return sample(adapted.params, task, key)

    def loss(params: Params, batch: SupervisedBatch) -> Array:
        return -mean_return(sample(params, batch.task, batch.key))

    return Learner(collect, jax.grad(loss), loss)
