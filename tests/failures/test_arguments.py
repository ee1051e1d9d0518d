"""Hyperparameters and optimizers: what cannot work is refused by name, and what is right works."""

import dataclasses
import inspect
import json
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, inner, optimizers, parallel, policies, tasks
from jmeta.presets import preset
from jmeta.runs.config import RunConfig, build, hyperparameters, resolve

UNMEASURED = pytest.mark.unmeasured
BANDIT = tasks.bandit(num_arms=2, num_pulls=2)
POLICY = policies.mlp(BANDIT.env.spec, hidden=(4,), critic=True, context_size=2)
SMALL = {"num_episodes": 2, "num_perturbations": 1, "minibatches": 2, "epochs": 1, "cg_iterations": 1}


def make(name, *, policy=POLICY, **arguments):
    factory = algorithms.REGISTRY[name]
    known = inspect.signature(factory).parameters
    given = {"optimizer": optimizers.adam()} | SMALL
    return factory(BANDIT, policy, **{k: v for k, v in given.items() if k in known} | arguments)


def bandits(num=4):
    return jax.vmap(BANDIT.sample)(parallel.task_keys(jax.random.key(1), num))


def update(algorithm, iterations=1):
    """The parameters and the metrics after some iterations, jitted."""

    @jax.jit
    def run(key):
        def iterate(state, key):
            return algorithm.update(state, bandits(), key)

        return jax.lax.scan(iterate, algorithm.init(key), jax.random.split(key, iterations))

    return run(jax.random.key(0))


def metrics_of(algorithm):
    """The names of the metrics, nothing compiled."""
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    return set(jax.eval_shape(algorithm.update, state, bandits(), jax.random.key(0))[1])


# -- ranges -------------------------------------------------------------------------------------------


def arguments_of(registry, kind):
    for name, factory in registry.items():
        hints = typing.get_type_hints(factory)
        for argument in inspect.signature(factory).parameters:
            if kind in (hints[argument], *typing.get_args(hints[argument])):
                yield name, argument


@pytest.mark.parametrize("name, argument", list(arguments_of(algorithms.REGISTRY, float)))
def test_every_real_number_of_every_algorithm_is_finite_and_not_negative(name, argument):
    for value in (math.nan, math.inf, -math.inf, -1.0, "1", None if argument != "proximal_weight" else "a"):
        with pytest.raises(ValueError, match=f"{argument} must"):
            make(name, **{argument: value})


@pytest.mark.parametrize("name, argument", list(arguments_of(optimizers.REGISTRY, float)))
def test_every_real_number_of_every_optimizer_is_finite_and_not_negative(name, argument):
    for value in (math.nan, math.inf, -1.0, "1"):
        with pytest.raises(ValueError, match=f"{argument} must"):
            optimizers.REGISTRY[name](**{argument: value})


@pytest.mark.parametrize("name, argument", list(arguments_of(algorithms.REGISTRY, int)))
def test_every_count_of_every_algorithm_is_an_integer(name, argument):
    for value in (-1, 1.5, math.nan, True, "1", 2**31):
        with pytest.raises(ValueError, match=f"{argument} must"):
            make(name, **{argument: value})


@pytest.mark.parametrize("name, argument", list(arguments_of(algorithms.REGISTRY, bool)))
def test_every_switch_of_every_algorithm_is_true_or_false(name, argument):
    with pytest.raises(ValueError, match=f"{argument} must be True or False, got 'yes'"):
        make(name, **{argument: "yes"})


@pytest.mark.parametrize("optimizer", ["adam", optax.adam, None])
def test_an_optimizer_is_a_transformation(optimizer):
    for name in ("maml", "rl2"):
        with pytest.raises(ValueError, match="optimizer must be an optax.GradientTransformation, got"):
            make(name, optimizer=optimizer)


def test_an_inner_optimizer_makes_a_transformation_of_a_step_size():
    for wrong in (optax.sgd(0.1), lambda rate: rate, "sgd", optimizers.adam):
        with pytest.raises(ValueError, match="inner_optimizer must be a function of the step size"):
            make("maml", inner_optimizer=wrong)


def test_rl2_refuses_a_policy_without_derivatives():
    with pytest.raises(ValueError, match="policy of rl2 must have probabilities with derivatives"):
        make("rl2", policy=policies.tabular(BANDIT.env.spec))


# -- traced hyperparameters ---------------------------------------------------------------------------


def test_a_learning_rate_and_an_entropy_weight_can_be_mapped():
    def train(learning_rate, entropy_weight):
        optimizer = optimizers.adam(learning_rate=learning_rate, max_grad_norm=1.0)
        return update(make("rl2", optimizer=optimizer, entropy_weight=entropy_weight))[0].params

    rates, weights = jnp.array([0.0, 0.01, 0.01]), jnp.array([0.1, 0.1, 0.5])
    start = POLICY.init(jax.random.key(0))
    moved = jax.tree.map(lambda new, old: new - old, jax.jit(jax.vmap(train))(rates, weights), start)
    none, low, high = (np.concatenate([m[i].ravel() for m in jax.tree.leaves(moved)]) for i in range(3))
    assert not none.any() and low.any() and np.isfinite(high).all() and (low != high).any()


@UNMEASURED
@pytest.mark.parametrize("name", ["maml", "meta-gradient", "imaml", "es-maml"])
def test_inner_hyperparameters_can_be_mapped(name):
    own = {"entropy_weight": 0.1} if name == "meta-gradient" else {}

    def train(rate):
        scaled = {argument: rate * value for argument, value in own.items()}
        optimizer = optimizers.sgd(learning_rate=rate, momentum=0.5 * rate)
        algorithm = make(name, optimizer=optimizer, inner_learning_rate=rate, discount=rate, **scaled)
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        jax.eval_shape(algorithm.update, state, bandits(), jax.random.key(0))
        return rate

    jax.vmap(train)(jnp.array([0.1, 0.2]))


@pytest.mark.parametrize("name", ["maml", "rl2", "scratch", "pretrain", "cavia"])
def test_the_number_of_steps_is_told_to_be_static(name):
    algorithm = make(name)
    params = POLICY.init(jax.random.key(0))
    task, key = jax.tree.map(lambda x: x[0], bandits()), jax.random.key(0)
    with pytest.raises(ValueError, match="num_steps must be known before compilation.*static_argnames"):
        jax.jit(algorithm.adapt)(params, task, key, 2)
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="num_steps must be"):
            algorithm.adapt(params, task, key, wrong)
    _, info = jax.eval_shape(jax.jit(algorithm.adapt, static_argnames="num_steps"), params, task, key)
    assert len(info.returns) == 1


# -- optimizers ---------------------------------------------------------------------------------------


def test_an_inner_adam_without_eps_root_is_refused():
    kin = (optax.adam, optax.adamw, optax.nadam, lambda r: optax.rmsprop(r, eps_in_sqrt=False))
    for make_optimizer in kin:
        for name in ("maml", "anil", "promp", "e-maml", "cavia"):
            with pytest.raises(ValueError, match="inner_optimizer must .*eps_root > 0"):
                make(name, inner_optimizer=make_optimizer)


def test_an_inner_adam_works_with_eps_root_or_where_it_is_not_differentiated():
    make("maml", inner_optimizer=lambda rate: optax.adam(rate, eps_root=1e-16))
    make("maml", inner_optimizer=lambda rate: optimizers.adam(learning_rate=rate, max_grad_norm=1.0))
    make("maml", inner_optimizer=optax.rmsprop)
    make("maml", inner_optimizer=optax.adam, first_order=True)
    make("maml", inner_optimizer=optax.adam, num_inner_steps=0)
    for name in ("fomaml", "reptile", "imaml", "es-maml", "scratch"):
        make(name, inner_optimizer=optax.adam)
    with pytest.raises(ValueError, match="eps_root"):  # its divergence is differentiated through the steps
        make("reptile", inner_optimizer=optax.adam, optimizer=optimizers.trpo())


@pytest.mark.parametrize(
    "name", ["maml", "rl2", *(pytest.param(name, marks=UNMEASURED) for name in ("reptile", "es-maml"))]
)
@pytest.mark.parametrize("kind", ["plateau", "line search"])
def test_optimizers_get_the_value_of_the_loss(name, kind):
    optimizer = {
        "plateau": optax.chain(optimizers.adam(), optax.contrib.reduce_on_plateau()),
        "line search": optax.lbfgs(),
    }[kind]
    assert "outer_learning_rate" in metrics_of(make(name, optimizer=optimizer))


def test_a_line_search_finds_a_smaller_loss():
    optimizer = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5))
    state, metrics = update(make("maml", optimizer=optimizer), iterations=2)
    assert metrics["skipped"][-1] == 0 and metrics["outer_learning_rate"].min() > 0
    moved = jax.tree.map(
        lambda new, old: jnp.abs(new - old).max(), state.params, make("maml").init(jax.random.key(0)).params
    )
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("surrogate", ["dice", "loaded-dice", "low-variance-curvature", "reinforce"])
def test_what_compares_losses_is_refused_where_their_value_means_nothing(surrogate):
    for optimizer in (
        optimizers.trpo(),
        optax.lbfgs(),
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    ):
        with pytest.raises(
            ValueError, match=f"outer_surrogate must be one of ratio, ppo-clip .*, got '{surrogate}'"
        ):
            make("maml", outer_surrogate=surrogate, optimizer=optimizer)
    make("maml", outer_surrogate=surrogate)


def test_trpo_does_not_train_a_critic():
    with pytest.raises(ValueError, match="baseline must be linear or none with trpo, got 'value'"):
        make("maml", baseline="value", optimizer=optimizers.trpo())
    make("maml", baseline="value")


@UNMEASURED
@pytest.mark.parametrize("name", ["maml", "reptile", "promp"])
def test_rejected_updates_are_reported(name):
    settings = {"outer_surrogate": "ratio"} | ({"outer_epochs": 1} if name == "promp" else {})
    metrics = metrics_of(make(name, optimizer=optimizers.trpo(), **settings))
    assert "rejected" in metrics and "outer_learning_rate" not in metrics


# -- the length of a run ------------------------------------------------------------------------------


def configured(iterations, **arguments):
    optimizer = {"name": "sgd", "learning_rate": 0.4, "decay": True}
    return resolve(
        algorithm={"name": "rl2", "optimizer": optimizer, **arguments},
        family={"name": "bandit", "num_arms": 2, "num_pulls": 2},
        policy={"name": "mlp", "hidden": [4], "critic": True},
        training={"iterations": iterations, "num_tasks": 4},
    )


@pytest.mark.parametrize("arguments", [{"epochs": 1}, {"epochs": 3, "minibatches": 2}])
def test_a_step_size_decays_over_the_run_whatever_its_length(arguments):
    family, _, algorithm = build(configured(4, **arguments))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    step = jax.jit(algorithm.update)
    state, rates = algorithm.init(jax.random.key(0)), []
    for _ in range(4):
        state, metrics = step(state, bandits(), jax.random.key(1))
        rates.append(metrics["outer_learning_rate"])
    np.testing.assert_allclose(rates, [0.4, 0.3, 0.2, 0.1], rtol=1e-6)


def test_presets_decay_over_the_run_whatever_its_length():
    for family in ("ant-direction", "random-mdp"):
        config = preset("rl2", family)
        assert config.algorithm["optimizer"]["decay"] is True
        longer = dataclasses.replace(
            config, training=dataclasses.replace(config.training, iterations=2 * config.training.iterations)
        )
        assert RunConfig.from_json(longer.to_json()) == longer
        assert "num_iterations" not in hyperparameters(optimizers.adam)


def test_the_old_name_of_the_decay_is_refused_in_one_line():
    config = json.loads(configured(4).to_json())
    config["algorithm"]["optimizer"] = {"name": "adam", "learning_rate": 0.1, "decay_updates": 100}
    with pytest.raises(ValueError, match="must not be 'decay_updates': it was replaced by decay") as error:
        build(RunConfig.from_json(json.dumps(config)))
    assert "\n" not in str(error.value)


# -- settings that belong together --------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["maml", "promp", "imaml"])
def test_trpo_brings_its_own_settings(algorithm):
    config = preset(algorithm, "point-goal", optimizer="trpo").algorithm
    assert config["optimizer"] == {
        "name": "trpo",
        **{n: d for n, (_, d) in hyperparameters(optimizers.trpo).items()},
    }
    assert config["outer_surrogate"] == "ratio" and config.get("outer_epochs", 1) == 1
    adam = preset(algorithm, "point-goal").algorithm
    assert adam == preset(algorithm, "point-goal", optimizer="adam").algorithm
    assert adam["outer_surrogate"] == "ppo-clip"


def test_a_preset_for_another_learner_leaves_out_what_it_does_not_use():
    config = preset("maml", "random-mdp", inner="policy-gradient").algorithm
    assert config["gae_lambda"] == 0.95 and config["inner_learning_rate"] == 0.5
    for learner in ("q-learning", "supervised"):
        config = preset("maml", "point-goal", inner=learner).algorithm
        defaults = hyperparameters(algorithms.REGISTRY["maml"])
        assert all(config[name] == defaults[name][1] for name in inner.unused_by(learner) & set(config))
    with pytest.raises(ValueError, match="inner must be one of"):
        preset("maml", "point-goal", inner="dreaming")


@pytest.mark.parametrize(
    "arguments, argument",
    [
        ({"inner": "q-learning", "surrogate": "dice"}, "surrogate"),
        ({"inner": "q-learning", "gae_lambda": 0.5}, "gae_lambda"),
        ({"inner": "q-learning", "baseline": "none"}, "baseline"),
        ({"inner": "q-learning", "normalize_advantages": False}, "normalize_advantages"),
        ({"inner": "supervised", "outer_surrogate": "ppo-clip"}, "outer_surrogate"),
        ({"inner": "supervised", "discount": 0.5}, "discount"),
        ({"first_order": True, "differentiation": "reverse"}, "differentiation"),
    ],
)
def test_an_argument_without_effect_is_refused(arguments, argument):
    with pytest.raises(ValueError, match=f"{argument} must be its default, .*, because .*, got"):
        make("maml", **arguments)


@pytest.mark.parametrize("make", [lambda rate: optax.polyak_sgd(), lambda rate: optax.lbfgs(rate)])
@pytest.mark.parametrize("first_order", [False, True])
def test_an_inner_optimizer_that_needs_values_is_refused(make, first_order):
    family = tasks.point_goal(horizon=3)
    policy = policies.mlp(family.env.spec, hidden=(2,))
    with pytest.raises(ValueError, match="inner_optimizer must do with gradients and parameters"):
        algorithms.maml(
            family, policy, optimizer=optax.sgd(0.1), inner_optimizer=make, first_order=first_order
        )


@pytest.mark.parametrize("name", ["maml", "promp"])
def test_trpo_takes_one_epoch(name):
    family = tasks.point_goal(horizon=3)
    policy = policies.mlp(family.env.spec, hidden=(2,))
    with pytest.raises(ValueError, match="outer_epochs must be 1 with trpo, .* got 5"):
        algorithms.REGISTRY[name](family, policy, optimizer=optimizers.trpo(), outer_epochs=5)
