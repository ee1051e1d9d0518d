"""Exact meta-gradients on a two-state MDP, by enumeration, in plain NumPy and by hand-derived formulas.

Nothing here uses automatic differentiation or any estimator of the library. The policy is a softmax of
logits theta [S, A]; for one step, with e the unit vector and pi the probabilities of the row of the state,

    grad log pi(a | s) = e_a - pi          Hessian log pi(a | s) = -(diag(pi) - pi pi^T)

in the row of s, and 0 elsewhere. Gradients and Hessians of expectations follow from those of log p(tau).
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmeta import distributions
from jmeta.envs.tabular_mdp import TabularTask, tabular_mdp
from jmeta.estimators.surrogates import PolicyGradientBatch
from jmeta.types import Policy, PolicyInput, PolicyOutput, TaskFamily

HORIZON, STATES, ACTIONS = 3, 2, 2
TRANSITION = np.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
REWARD = np.array([[0.3, -0.5], [1.0, 0.4]])
THETA = np.array([[0.2, -0.4], [-0.3, 0.6]])


class Trajectory(NamedTuple):
    """One of all possible episodes."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: np.ndarray  # [T]
    probability: float  # under some theta


def family() -> TaskFamily:
    """The MDP as a family with one task."""
    env = tabular_mdp(num_states=STATES, num_actions=ACTIONS, horizon=HORIZON)

    def sample(key):
        del key
        return TabularTask(jnp.asarray(TRANSITION), jnp.asarray(REWARD))

    return TaskFamily("two-state", env, sample, sample)


def softmax_policy() -> Policy:
    """Logits theta [S, A] of a one-hot observation."""

    def apply(params, carry, inputs):
        logits = inputs.obs @ params
        return carry, PolicyOutput(logits, jnp.zeros(logits.shape[:-1]))

    return Policy(lambda key: jnp.asarray(THETA), lambda: (), apply, apply, distributions.Categorical)


def probabilities(theta: np.ndarray) -> np.ndarray:
    """Action probabilities [S, A]."""
    exp = np.exp(theta)
    return exp / exp.sum(1, keepdims=True)


def trajectories(theta: np.ndarray) -> list[Trajectory]:
    """Every episode with its probability."""
    pi, found = probabilities(theta), []
    for actions in itertools.product(range(ACTIONS), repeat=HORIZON):
        for later in itertools.product(range(STATES), repeat=HORIZON - 1):
            states, probability = (0, *later), 1.0
            for t in range(HORIZON):
                probability *= pi[states[t], actions[t]]
                if t + 1 < HORIZON:
                    probability *= TRANSITION[states[t], actions[t], states[t + 1]]
            rewards = np.array([REWARD[s, a] for s, a in zip(states, actions, strict=True)])
            found.append(Trajectory(states, actions, rewards, probability))
    return found


def score(theta: np.ndarray, state: int, action: int) -> np.ndarray:
    """grad log pi(action | state) [S A]."""
    gradient = np.zeros((STATES, ACTIONS))
    gradient[state] = np.eye(ACTIONS)[action] - probabilities(theta)[state]
    return gradient.ravel()


def score_hessian(theta: np.ndarray, state: int) -> np.ndarray:
    """Hessian of log pi(. | state) [S A, S A]: the same for every action."""
    pi = probabilities(theta)[state]
    hessian = np.zeros((STATES, ACTIONS, STATES, ACTIONS))
    hessian[state, :, state, :] = -(np.diag(pi) - np.outer(pi, pi))
    return hessian.reshape(STATES * ACTIONS, STATES * ACTIONS)


def value(theta: np.ndarray) -> float:
    """J: the expected return / T."""
    return sum(t.probability * t.rewards.sum() for t in trajectories(theta)) / HORIZON


def gradient(theta: np.ndarray) -> np.ndarray:
    """grad J [S A] = E[R sum_t score_t] / T."""
    total = np.zeros(STATES * ACTIONS)
    for t in trajectories(theta):
        scores = sum(score(theta, s, a) for s, a in zip(t.states, t.actions, strict=True))
        total += t.probability * t.rewards.sum() * scores
    return total / HORIZON


def hessian(theta: np.ndarray, surrogate: str) -> np.ndarray:
    """Second derivative [S A, S A] that a surrogate gives at the behaviour policy, in expectation.

    `dice`, `loaded-dice`: that of J itself, E[R (score score^T + Hessian)] with the scores of the episode.
    `ratio`, `ppo-clip`: the sum over steps of the return to come times (score_t score_t^T + Hessian_t).
    `reinforce`: the same without the outer product.
    """
    total = np.zeros((STATES * ACTIONS,) * 2)
    for t in trajectories(theta):
        steps = list(zip(t.states, t.actions, strict=True))
        scores = [score(theta, s, a) for s, a in steps]
        hessians = [score_hessian(theta, s) for s, _ in steps]
        if surrogate in ("dice", "loaded-dice"):
            outer = np.outer(sum(scores), sum(scores))
            total += t.probability * t.rewards.sum() * (outer + sum(hessians))
            continue
        to_come = np.cumsum(t.rewards[::-1])[::-1]
        for step in range(HORIZON):
            outer = np.outer(scores[step], scores[step]) * (surrogate != "reinforce")
            total += t.probability * to_come[step] * (outer + hessians[step])
    return total / HORIZON


def adapted(theta: np.ndarray, step_size: float, num_steps: int) -> np.ndarray:
    """theta after exact gradient-ascent steps on J."""
    for _ in range(num_steps):
        theta = theta + step_size * gradient(theta).reshape(theta.shape)
    return theta


def meta_gradient(step_size: float, num_steps: int, surrogate: str, *, first_order: bool) -> np.ndarray:
    """d J(adapted(theta)) / d theta [S, A] by the chain rule over the inner steps, at THETA."""
    jacobian, theta = np.eye(STATES * ACTIONS), THETA
    for _ in range(num_steps):
        if not first_order:
            jacobian = (np.eye(STATES * ACTIONS) + step_size * hessian(theta, surrogate)) @ jacobian
        theta = adapted(theta, step_size, 1)
    return (jacobian.T @ gradient(theta)).reshape(THETA.shape)


def enumerated_batch(theta: np.ndarray) -> PolicyGradientBatch:
    """Every episode once, weighted in `mask` by its probability: a surrogate's mean is its expectation."""
    every = trajectories(theta)
    states = jnp.array([t.states for t in every])
    actions = jnp.array([t.actions for t in every])
    rewards = jnp.array([t.rewards for t in every])
    zeros = jnp.zeros_like(rewards)
    weight = jnp.array([t.probability for t in every])[:, None] * len(every)
    to_come = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    return PolicyGradientBatch(
        inputs=PolicyInput(jax.nn.one_hot(states, STATES), zeros[..., None], zeros, zeros > 1, zeros > 1),
        action=actions,
        log_prob=jnp.log(jnp.asarray(probabilities(theta)))[states, actions],
        advantage=to_come,
        target=to_come,
        reward=rewards,
        value=zeros,
        mask=weight * jnp.ones_like(rewards),
    )
