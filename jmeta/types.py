"""Every interface and carrier of the library. Imports nothing from jmeta.

Function bundles are `NamedTuple`s of pure functions; everything that varies is a pytree argument.
Shapes are those of ONE task, ONE sequence or ONE step; callers `vmap`. Axis letters: `B` tasks,
`K` adaptation steps, `N` episodes, `T` time steps, `D` observation, `A` action.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array  # a new-style key, `jax.random.key`
PyTree = Any
Params = PyTree
Task = PyTree  # arrays only: tasks are vmapped and never cause a recompile
Metrics = dict[str, Array]  # name -> scalar []


@dataclasses.dataclass(frozen=True)
class Continuous:
    """An action vector of `size` floats [A].

    Attributes:
      size: A.
      low: lower end of the range in which actions have a meaning, -inf if there is none. Agents do not clip
        actions: an environment takes any number, and clips it itself if it must.
      high: upper end, or inf.
    """

    size: int
    low: float = -1.0
    high: float = 1.0


@dataclasses.dataclass(frozen=True)
class Discrete:
    """One of `num` actions, an int32 scalar []."""

    num: int


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What is static about an environment.

    Attributes:
      obs_size: D, length of the observation vector.
      action: the action space.
      horizon: T, environment steps in an episode; reaching it is a time limit, not a termination.
      trial_episodes: E, episodes of one task that make a trial, for methods with a memory.
      terminates: whether an episode may end before the horizon. Where it cannot, `TimeStep.terminated` is
        ignored and nothing is masked, which spares a policy with a large memory a copy of it at every step.
    """

    obs_size: int
    action: Continuous | Discrete
    horizon: int
    trial_episodes: int = 2
    terminates: bool = True


class TimeStep(NamedTuple):
    """What the agent is shown after `reset` or `step`, and what else is measured."""

    obs: Array  # [D] float
    reward: Array  # [] float; 0 after `reset`
    terminated: Array  # [] bool; the time limit is never `terminated`
    # Name -> scalar []; the same names after `reset` and `step`. No agent sees them. A bool is something that
    # happens, such as "success", and counts once an episode; a float is averaged over an episode's steps.
    measures: dict[str, Array] = {}


class Env(NamedTuple):
    """An environment: pure functions of a key, a state, an action and a task."""

    reset: Callable[[Key, Task], tuple[PyTree, TimeStep]]
    step: Callable[[Key, PyTree, Array, Task], tuple[PyTree, TimeStep]]
    spec: EnvSpec


class TaskFamily(NamedTuple):
    """A distribution over tasks of one environment.

    A family that has no held-out tasks sets `sample_heldout` to its `sample` and says so in its docstring.
    """

    name: str
    env: Env
    sample: Callable[[Key], Task]
    sample_heldout: Callable[[Key], Task]
    optimal_return: Callable[[Task], Array] | None = None  # task -> [] expected undiscounted return


class Distribution(NamedTuple):
    """A family of action distributions. `params` have no batch axis; results are summed over A."""

    sample: Callable[[Key, PyTree], Array]  # key, params -> action
    log_prob: Callable[[PyTree, Array], Array]  # params, action -> []
    entropy: Callable[[PyTree], Array]  # params -> []
    kl: Callable[[PyTree, PyTree], Array]  # p, q -> [], KL(p || q)
    mode: Callable[[PyTree], Array]  # params -> action


class PolicyInput(NamedTuple):
    """What a policy sees at one step; memoryless policies read `obs` alone."""

    obs: Array  # [D] float
    # Of the last step, of the episode before at the first of an episode; 0 at the first of a trial.
    prev_action: Array  # [A] float; one-hot when actions are discrete
    prev_reward: Array  # [] float
    prev_done: Array  # [] bool: it ended an episode
    first: Array  # [] bool: this is the first step of an episode


class PolicyOutput(NamedTuple):
    """A policy's answer at one step."""

    distribution: PyTree  # parameters of `Policy.distribution`
    value: Array  # [] float, the critic's estimate; 0 where the policy has no critic


def _observe_nothing(params: Params, obs: Array, mask: Array) -> Params:
    del obs, mask
    return params


class Policy(NamedTuple):
    """A policy: parameters apart from carry, so that adaptation may change either."""

    init: Callable[[Key], Params]
    initial_carry: Callable[[], PyTree]
    step: Callable[[Params, PyTree, PolicyInput], tuple[PyTree, PolicyOutput]]
    # The same over a leading [T]; equals scanning `step`.
    unroll: Callable[[Params, PyTree, PolicyInput], tuple[PyTree, PolicyOutput]]
    distribution: Distribution
    # params, obs [..., D], mask [...] -> params with updated observation statistics, where it keeps any.
    observe: Callable[[Params, Array, Array], Params] = _observe_nothing
    has_critic: bool = False  # whether `PolicyOutput.value` estimates anything
    differentiable: bool = True  # whether probabilities of actions have derivatives by the parameters
    max_steps: int | None = None  # longest trial that the carry can hold
    # name -> (params -> bools like params, True in that part): what methods that adapt a part may ask for.
    parts: Mapping[str, Callable[[Params], PyTree]] = types.MappingProxyType({})


class Rollout(NamedTuple):
    """One episode. Callers vmap to [N, T, ...] and [B, N, T, ...]."""

    inputs: PolicyInput  # [T, ...]
    action: Array  # [T, A] float or [T] int32
    log_prob: Array  # [T] of the behaviour policy
    reward: Array  # [T]; 0 where not `mask`
    terminated: Array  # [T] bool: this step reached a terminal state
    mask: Array  # [T] float: 1 up to and including the terminal step, 0 after it
    value: Array  # [T] the critic's estimates while sampling
    last_obs: Array  # [D] the observation after the last step; no use if terminated
    last_value: Array  # [] the critic's estimate of it
    measures: dict[str, Array] = {}  # `TimeStep.measures` after each step, [T] each; 0 where not `mask`


class LastTransition(NamedTuple):
    """What the next episode's first input says of the last step of the episode before it."""

    action: Array  # [A] float, as `PolicyInput.prev_action`
    reward: Array  # []
    done: Array  # [] bool


class Adapted(NamedTuple):
    """A policy adapted to one task: gradient methods change `params`, memory methods the rest."""

    params: Params
    carry: PyTree
    previous: LastTransition | None = None  # of the trial so far; None before its first episode


class AdaptInfo(NamedTuple):
    """What adaptation saw.

    Attributes:
      returns: [K] mean undiscounted return of the episodes collected before each adaptation step.
      data: what `InnerLoop.replay` needs, leading axis [K].
      path: the policy before each step, as `Adapted`, leading axis [K]. Evaluation plays from each of them.
    """

    returns: Array
    data: PyTree
    path: Adapted


class InnerLoop(NamedTuple):
    """Adaptation, twice: stepping the environment, and differentiably on stored data.

    `adapt(params, task, key, num_steps, step_scale=None)`; see `AdaptFn`. `replay(params, data)` repeats
    the same parameter updates on `AdaptInfo.data`: for equal params it returns what `adapt` returned. `path`
    returns beside them the parameters [K, ...] before each step, which collected its data. Both are for
    reverse mode; `replay_jvp(params, data, tangent)` is the forward derivative of `replay`, (adapted params,
    tangent).
    """

    adapt: Callable[..., tuple[Adapted, AdaptInfo]]
    replay: Callable[[Params, PyTree], Params]
    path: Callable[[Params, PyTree], tuple[Params, Params]]
    replay_jvp: Callable[[Params, PyTree, Params], tuple[Params, Params]]


class MetaState(NamedTuple):
    """Everything that a resume needs of an algorithm. A pytree."""

    params: Params
    opt_state: PyTree
    step: Array  # [] int32, meta-iterations done


class AdaptFn(Protocol):
    """Type of `MetaAlgorithm.adapt`: (params, task, key, num_steps, step_scale) -> (Adapted, AdaptInfo)."""

    def __call__(
        self,
        params: Params,
        task: Task,
        key: Key,
        num_steps: int | None = None,
        step_scale: float | Array | None = None,
    ) -> tuple[Adapted, AdaptInfo]:
        """Adapts to one task.

        Args:
          params: meta-parameters.
          task: one task.
          key: consumed.
          num_steps: static; None means as many as in training.
          step_scale: factor on every change of the parameters, so that adaptation can be tried with other
            step sizes than those of training, learned ones included; it may be traced. None means 1. Methods
            that adapt by their memory have no such steps, and refuse a number.
        """
        ...


class MetaAlgorithm(NamedTuple):
    """A meta-learner under the one interface that training, evaluation and the CLI see.

    Every `update` reports at least the metrics `return_before` and `return_after` (mean undiscounted return
    before and after the adaptation that it trains; equal where it trains none), `env_steps` (environment
    steps taken by this update) and `tasks_lost` (tasks of this update that were left out of everything,
    because something of theirs was not finite).
    """

    init: Callable[[Key], MetaState]
    update: Callable[[MetaState, Task, Key], tuple[MetaState, Metrics]]  # tasks [B]
    adapt: AdaptFn
    policy: Policy
    # Of methods that adapt by playing a trial (None for others):
    trial_steps: int | None = None  # episodes of adaptation before the trial's last
    max_adapt_steps: int | None = None  # after which the policy's memory still has room for an episode
