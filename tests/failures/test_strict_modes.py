"""Training and adaptation under JAX's strict modes: no silent promotion of ranks or types, no NaN."""

import jax
import jax.numpy as jnp
import pytest

from jmeta import algorithms, optimizers, parallel, policies, rollouts, tasks

STRICT = {
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "types": lambda: jax.numpy_dtype_promotion("strict"),
}


def maml(family, policy, **arguments):
    return algorithms.maml(
        family, policy, optimizer=optimizers.adam(max_grad_norm=1.0), num_episodes=2, **arguments
    )


def case(name):
    if name == "maml bandit":
        family = tasks.bandit(num_arms=2, num_pulls=2)
        return family, maml(family, policies.mlp(family.env.spec, hidden=(4,)))
    if name == "maml point-goal":
        family = tasks.point_goal(horizon=3)
        policy = policies.mlp(family.env.spec, hidden=(4,))
        return family, algorithms.maml(family, policy, optimizer=optimizers.trpo(), num_episodes=2)
    if name == "es-maml":
        family = tasks.bandit(num_arms=2, num_pulls=2)
        policy = policies.mlp(family.env.spec, hidden=(4,))
        sizes = {"num_perturbations": 2, "num_episodes": 2}
        return family, algorithms.es_maml(family, policy, optimizer=optimizers.sgd(), **sizes)
    if name == "rl2 bandit":
        family = tasks.bandit(num_arms=2, num_pulls=2)
        policy = policies.gru(family.env.spec, size=4)
        return family, algorithms.rl2(family, policy, optimizer=optimizers.adam(), minibatches=2, epochs=1)
    if name == "q-learning":
        family = tasks.random_mdp(num_states=2, num_actions=2, horizon=2)
        return family, maml(family, policies.tabular(family.env.spec), inner="q-learning")
    if name in policies.REGISTRY:
        family = tasks.point_goal(horizon=3)
        policy = policies.REGISTRY[name](family.env.spec)
        return family, algorithms.rl2(family, policy, optimizer=optimizers.sgd(), minibatches=1, epochs=1)
    family = tasks.sinusoid()
    return family, maml(family, policies.mlp(family.env.spec, hidden=(4,)), inner="supervised")


CASES = ["maml bandit", "maml point-goal", "rl2 bandit", "q-learning", "supervised"]


def everything(name):
    """Training for one iteration, adaptation and a batch of episodes, as one function of a key."""
    family, algorithm = case(name)

    def run(key):
        batch = jax.vmap(family.sample)(parallel.task_keys(key, 2))
        state, metrics = algorithm.update(algorithm.init(key), batch, key)
        task = jax.tree.map(lambda x: x[0], batch)
        adapted, info = algorithm.adapt(state.params, task, key)
        rollout = rollouts.batch(family.env, algorithm.policy, adapted, task, key, 2)
        optimal = family.optimal_return(task) if family.optimal_return else ()
        return state, metrics, info, rollout, optimal

    return run


@pytest.mark.unmeasured
@pytest.mark.parametrize("mode", STRICT)
@pytest.mark.parametrize("name", [*CASES, "es-maml", "lstm", "mann", "snail", "transformer"])
def test_nothing_is_promoted_silently(name, mode):
    with STRICT[mode]():
        jax.eval_shape(everything(name), jax.random.key(0))


@pytest.mark.parametrize("name", CASES)
def test_no_nan_is_made_on_the_way(name):
    with jax.debug_nans(True):
        _, metrics, *_ = jax.jit(everything(name))(jax.random.key(0))
    assert jnp.isfinite(metrics["return_after"])
