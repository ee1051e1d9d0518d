"""Exact meta-gradients on a two-state MDP, by enumeration, in plain NumPy and by hand-derived formulas.

Nothing here uses automatic differentiation or any estimator of the library. The policy is a softmax of
logits theta [S, A]; for one step, with e the unit vector and pi the probabilities of the row of the state,

    grad log pi(a | s) = e_a - pi          Hessian log pi(a | s) = -(diag(pi) - pi pi^T)

in the row of s, and 0 elsewhere. Gradients and Hessians of expectations follow from those of log p(tau).
"""

import itertools
from collections.abc import Callable
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


def episode_gradient(theta: np.ndarray, trajectory: Trajectory) -> np.ndarray:
    """Estimate of grad J [S A] from one episode: sum over steps of the return to come times score, / T."""
    steps = zip(trajectory.states, trajectory.actions, strict=True)
    scores = [score(theta, s, a) for s, a in steps]
    return returns_to_come(trajectory) @ np.array(scores) / HORIZON


def episode_hessian(theta: np.ndarray, trajectory: Trajectory, surrogate: str) -> np.ndarray:
    """Second derivative [S A, S A] that a surrogate gives at the behaviour policy, on one episode.

    `dice`, `loaded-dice`: sum over steps of reward_t times (S_t S_t^T + sum of Hessians until t), with S_t
    the sum of the scores until t: p''/p of the probability p of getting there. Its expectation is that of J.
    `ratio`, `ppo-clip`, `low-variance-curvature`: sum over steps of the return to come times
    (score_t score_t^T + Hessian_t).
    `reinforce`: the same without the outer product: the derivative of `episode_gradient`.
    """
    steps = list(zip(trajectory.states, trajectory.actions, strict=True))
    scores = np.array([score(theta, s, a) for s, a in steps])
    hessians = np.array([score_hessian(theta, s) for s, _ in steps])
    if surrogate in ("dice", "loaded-dice"):
        weights, scores, hessians = trajectory.rewards, scores.cumsum(0), hessians.cumsum(0)
    else:
        weights = returns_to_come(trajectory)
    outer = np.einsum("ti,tj->tij", scores, scores) * (surrogate != "reinforce")
    return np.einsum("t,tij->ij", weights, outer + hessians) / HORIZON


def returns_to_come(trajectory: Trajectory) -> np.ndarray:
    """[T]."""
    return np.cumsum(trajectory.rewards[::-1])[::-1]


def value(theta: np.ndarray) -> float:
    """J: the expected return / T."""
    return sum(t.probability * t.rewards.sum() for t in trajectories(theta)) / HORIZON


def gradient(theta: np.ndarray) -> np.ndarray:
    """grad J [S A]."""
    return np.sum([t.probability * episode_gradient(theta, t) for t in trajectories(theta)], axis=0)


def hessian(theta: np.ndarray, surrogate: str) -> np.ndarray:
    """Second derivative [S A, S A] that a surrogate gives in expectation; for `dice` that of J."""
    return np.sum([t.probability * episode_hessian(theta, t, surrogate) for t in trajectories(theta)], axis=0)


def adapted(theta: np.ndarray, step_size: float, num_steps: int) -> np.ndarray:
    """theta after exact gradient-ascent steps on J."""
    for _ in range(num_steps):
        theta = theta + step_size * gradient(theta).reshape(theta.shape)
    return theta


def meta_gradient(
    step_size: float,
    num_steps: int,
    surrogate: str,
    *,
    first_order: bool,
    sampling_term: bool = False,
    theta: np.ndarray = THETA,
) -> np.ndarray:
    """d J(adapted(theta)) / d theta [S, A], with the Hessian of a surrogate: exact with that of `dice`.

    What estimators of many episodes approach. The chain rule multiplies the Jacobians I + step_size H of the
    steps. With the sampling term every step adds what its samples' dependence on the parameters gives,
    step_size (H - H_reinforce), passed on by the exact Jacobians of the later steps, whose samples respond
    too. So with `reinforce` the sum is exact, and with `dice` part of the Hessian counts twice.
    """
    identity = np.eye(STATES * ACTIONS)
    jacobians, responses, unsampled = [], [], []
    for _ in range(num_steps):
        exact, without = hessian(theta, "dice"), hessian(theta, "reinforce")
        jacobians.append(identity + step_size * hessian(theta, surrogate) * (not first_order))
        responses.append(identity + step_size * exact)
        unsampled.append(step_size * (exact - without) * sampling_term)
        theta = adapted(theta, step_size, 1)
    total, response = gradient(theta), gradient(theta)
    for jacobian, exact, missing in reversed(list(zip(jacobians, responses, unsampled, strict=True))):
        total = jacobian.T @ total + missing.T @ response
        response = exact.T @ response
    return total.reshape(theta.shape)


def smoothed_meta_gradient(step_size: float, num_steps: int, std: float) -> np.ndarray:
    """The exact meta-gradient [S, A] of J(adapted) averaged over theta + std times normal noise.

    By Gauss-Hermite quadrature over the two directions that change the policy: within a row of logits.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    total = np.zeros_like(THETA)
    for (x, p), (y, q) in itertools.product(zip(nodes, weights, strict=True), repeat=2):
        shift = std * np.outer([x, y], [1, -1]) / np.sqrt(2)
        total += p * q * meta_gradient(step_size, num_steps, "dice", first_order=False, theta=THETA + shift)
    return total


def batches(theta: np.ndarray, num_episodes: int) -> list[tuple[float, list[Trajectory]]]:
    """Every ordered batch of episodes, with its probability."""
    every = itertools.product(trajectories(theta), repeat=num_episodes)
    return [(float(np.prod([t.probability for t in batch])), list(batch)) for batch in every]


def finite_value(theta: np.ndarray, step_size: float, num_episodes: int) -> float:
    """Expected J after one inner step that is estimated from `num_episodes` episodes."""
    return sum(
        probability * value(theta + step_size * _mean(episode_gradient, theta, batch).reshape(theta.shape))
        for probability, batch in batches(theta, num_episodes)
    )


def finite_meta_gradient(
    step_size: float, num_episodes: int, surrogate: str, *, sampling_term: bool
) -> np.ndarray:
    """Expected estimate [S, A] of one inner step on `num_episodes` episodes, at THETA.

    Per batch, with step the adapted parameters phi: (I + step_size H) grad J(phi), and with the sampling term
    J(phi) times the scores of all its actions. With the derivative of the step itself, which is that of
    `reinforce`, and the sampling term it is the gradient of `finite_value`.
    """
    total = np.zeros(STATES * ACTIONS)
    for probability, batch in batches(THETA, num_episodes):
        phi = THETA + step_size * _mean(episode_gradient, THETA, batch).reshape(THETA.shape)
        curvature = _mean(lambda theta, t: episode_hessian(theta, t, surrogate), THETA, batch)
        slope = gradient(phi)
        total += probability * (slope + step_size * curvature @ slope)
        if sampling_term:
            actions = [step for t in batch for step in zip(t.states, t.actions, strict=True)]
            total += probability * value(phi) * sum(score(THETA, s, a) for s, a in actions)
    return total.reshape(THETA.shape)


def proximal(step_size: float, weight: float, num_steps: int) -> np.ndarray:
    """THETA after exact ascent steps on J(phi) - weight/2 |phi - THETA|^2."""
    phi = THETA
    for _ in range(num_steps):
        phi = phi + step_size * (gradient(phi).reshape(phi.shape) - weight * (phi - THETA))
    return phi


def proximal_optimum(weight: float, theta: np.ndarray = THETA) -> np.ndarray:
    """The maximum of J(phi) - weight/2 |phi - theta|^2, by Newton's method."""
    phi = theta
    for _ in range(8):
        slope = gradient(phi) - weight * (phi - theta).ravel()
        curvature = hessian(phi, "dice") - weight * np.eye(STATES * ACTIONS)
        phi = phi - np.linalg.solve(curvature, slope).reshape(phi.shape)
    return phi


def implicit_gradient(phi: np.ndarray, weight: float) -> np.ndarray:
    """(I - H/weight)^-1 grad J [S, A] at phi: exact, at the optimum, for d J(optimum) / d theta."""
    system = np.eye(STATES * ACTIONS) - hessian(phi, "dice") / weight
    return np.linalg.solve(system, gradient(phi)).reshape(phi.shape)


def _mean(of: Callable[..., np.ndarray], theta: np.ndarray, batch: list[Trajectory]) -> np.ndarray:
    return np.mean([of(theta, trajectory) for trajectory in batch], axis=0)


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
        terminated=zeros > 1,
        last_value=zeros[:, 0],
    )
