"""One declaration of the hyperparameters that algorithms share, and what each algorithm refuses."""

import inspect
import re
import typing

import jax
import numpy as np
import optax
import pytest

from jmeta import algorithms, optimizers, parallel, policies, tasks
from jmeta.hyperparameters import hyperparameters_of
from jmeta.types import MetaAlgorithm
from tests import oracle, small


def source(family: int, policy: int, *, rate: float = 0.5, steps: int = 3, name: str = "a") -> MetaAlgorithm:
    """Declares them.

    Args:
      family: the family.
      policy: the policy.
      rate: how fast, a description
        of two lines: with a colon.
      steps: how many.
      name: what it is called.

    Raises:
      ValueError: never.
    """
    raise AssertionError("only its signature is wanted")


@hyperparameters_of(source, without=("name",))
def derived(family: int, policy: int, *, extra: bool = False, steps: int = 7, rate: float, **others):
    """Has one of its own, overrides one, picks out one and leaves out one.

    More about it.

    Args:
      extra: its own.

    Raises:
      ValueError: sometimes.
    """
    return {"family": family, "policy": policy, "extra": extra, "steps": steps, "rate": rate, **others}


@hyperparameters_of(derived, without=("extra",))
def twice(family: int, policy: int, *, rate: float = 0.25, **others):
    """Takes over what was taken over.

    Args:
      rate: another meaning.
    """
    return derived(family, policy, rate=rate, **others)


def described(function):
    """Names of the entries of Args, and their text."""
    section = inspect.getdoc(function).split("Args:\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, re.MULTILINE)), section


def test_the_signature_has_its_own_first_then_the_inherited():
    parameters = inspect.signature(derived).parameters
    assert list(parameters) == ["family", "policy", "extra", "steps", "rate"]
    assert {name: p.default for name, p in list(parameters.items())[2:]} == {
        "extra": False,
        "steps": 7,
        "rate": 0.5,
    }
    assert {p.kind for p in list(parameters.values())[2:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert typing.get_type_hints(derived) == {
        "family": int, "policy": int, "extra": bool, "steps": int, "rate": float
    }  # fmt: skip


def test_the_factory_gets_every_argument():
    assert derived(1, 2) == {"family": 1, "policy": 2, "extra": False, "steps": 7, "rate": 0.5}
    assert derived(1, policy=2, rate=0.1, extra=True) == {
        "family": 1, "policy": 2, "extra": True, "steps": 7, "rate": 0.1
    }  # fmt: skip
    with pytest.raises(TypeError, match="name"):
        derived(1, 2, name="b")
    with pytest.raises(TypeError, match="policy"):
        derived(1)


def test_the_docstring_describes_every_argument_once():
    entries, section = described(derived)
    assert list(entries) == ["extra", "family", "policy", "rate", "steps"]
    assert entries["rate"] == "how fast, a description\n    of two lines: with a colon."
    assert section.count("steps:") == 1
    doc = inspect.getdoc(derived)
    assert doc.startswith("Has one of its own") and "More about it." in doc
    assert doc.endswith("Raises:\n  ValueError: sometimes.")


def test_it_nests():
    assert twice(1, 2) == {"family": 1, "policy": 2, "extra": False, "steps": 7, "rate": 0.25}
    parameters = inspect.signature(twice).parameters
    assert list(parameters) == ["family", "policy", "rate", "steps"]
    entries, _ = described(twice)
    assert sorted(entries) == sorted(parameters)
    assert entries["rate"] == "another meaning."


@pytest.mark.parametrize("name", algorithms.REGISTRY)
def test_every_algorithm_describes_every_argument_once(name):
    factory = algorithms.REGISTRY[name]
    section = inspect.getdoc(factory).split("Args:\n")[1].split("\n\n")[0]
    found = re.findall(r"^  (\w+):", section, re.MULTILINE)
    assert sorted(found) == sorted(inspect.signature(factory).parameters)


@pytest.mark.parametrize("name", algorithms.REGISTRY)
def test_every_algorithm_knows_the_types_of_its_arguments(name):
    factory = algorithms.REGISTRY[name]
    hints = typing.get_type_hints(factory)
    assert hints.keys() - {"return"} == inspect.signature(factory).parameters.keys()
    assert not any(hint is typing.Any for hint in hints.values())


def test_what_a_method_does_not_have_is_refused():
    for name, argument in (
        ("reptile", "first_order"),
        ("imaml", "differentiation"),
        ("es-maml", "outer_surrogate"),
        ("meta-sgd", "inner_optimizer"),
        ("promp", "surrogate"),
        ("e-maml", "inner"),
        ("scratch", "optimizer"),
    ):
        assert argument not in inspect.signature(algorithms.REGISTRY[name]).parameters
        with pytest.raises(TypeError, match=argument):
            algorithms.REGISTRY[name](
                small.family(), small.policy(), **{"optimizer": optax.sgd(1.0), argument: None}
            )


SHARED = [
    ("num_inner_steps", -1, "num_inner_steps must be at least 0, got -1"),
    (
        "inner_learning_rate",
        -0.1,
        "inner_learning_rate must be (finite and not negative|positive and finite), got -0.1",
    ),
    ("num_episodes", 0, "num_episodes must be at least 1, got 0"),
    ("outer_epochs", 0, "outer_epochs must be at least 1, got 0"),
    ("tasks_per_block", 0, "tasks_per_block must be at least 1, got 0"),
    ("inner", "telepathy", "inner must be one of policy-gradient, .*, got 'telepathy'"),
    ("differentiation", "forward", "differentiation must be one of mixed, .*, got 'forward'"),
    ("discount", 1.01, "discount must be .* got 1.01"),
    ("gae_lambda", -0.5, "gae_lambda must be .* got -0.5"),
    ("baseline", "mean", "baseline must be one of linear, value, none, got 'mean'"),
    ("surrogate", "trpo", "surrogate must be one of .*, got 'trpo'"),
    ("outer_surrogate", "Ratio", "surrogate must be one of .*, got 'Ratio'"),
]


@pytest.mark.parametrize("name", algorithms.REGISTRY)
def test_bad_values_of_shared_arguments_are_named(name):
    factory = algorithms.REGISTRY[name]
    known = inspect.signature(factory).parameters
    optimizer = {"optimizer": optax.sgd(1.0)} if "optimizer" in known else {}
    refused = [(argument, value, message) for argument, value, message in SHARED if argument in known]
    assert len(refused) >= 3
    for argument, value, message in refused:
        with pytest.raises(ValueError, match=message):
            factory(small.family(), small.policy(), **optimizer, **{argument: value})


@pytest.mark.parametrize(
    ("name", "argument", "value", "message"),
    [
        (
            "e-maml",
            "exploration_weight",
            -0.1,
            "exploration_weight must be finite and not negative, got -0.1",
        ),
        ("es-maml", "num_perturbations", 0, "num_perturbations must be at least 1, got 0"),
        ("es-maml", "perturbation_std", 0.0, "perturbation_std must be positive and finite, got 0.0"),
        ("imaml", "proximal_weight", 0.0, "proximal_weight must be positive and finite, got 0.0"),
        ("imaml", "cg_iterations", 0, "cg_iterations must be at least 1, got 0"),
        ("promp", "kl_penalty", -1.0, "kl_penalty must be finite and not negative, got -1.0"),
        ("meta-gradient", "entropy_weight", 0.0, "entropy_weight must be positive and finite, got 0.0"),
        (
            "meta-gradient",
            "inner_learning_rate",
            0.0,
            "inner_learning_rate must be positive and finite, got 0.0",
        ),
        ("meta-gradient", "discount", 1.0, r"discount must be in \(0, 1\), got 1.0"),
        ("meta-gradient", "discount", 0.0, r"discount must be in \(0, 1\), got 0.0"),
        ("meta-gradient", "gae_lambda", 1.0, r"gae_lambda must be in \(0, 1\), got 1.0"),
        ("meta-gradient", "baseline", "value", "baseline must be linear or none, got 'value'"),
        ("es-maml", "baseline", "value", "baseline must be linear or none, got 'value'"),
        ("es-maml", "optimizer", optimizers.trpo(), "es-maml must do with gradients and values of the loss"),
        ("meta-sgd", "inner", "q-learning", "inner of meta-sgd must not be 'q-learning'"),
        ("maml", "inner", "dreaming", "inner must be one of .*, got 'dreaming'"),
    ],
)
def test_bad_values_of_own_arguments_are_named(name, argument, value, message):
    with pytest.raises(ValueError, match=message):
        algorithms.REGISTRY[name](
            small.family(), small.policy(), **{"optimizer": optax.sgd(1.0), argument: value}
        )


@pytest.mark.parametrize(
    ("name", "inner", "message"),
    [
        ("maml", "policy-gradient", "probabilities have derivatives"),
        ("maml", "supervised", "'supervised' needs continuous actions"),
        ("imaml", "q-learning", "inner must not be 'q-learning'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(name, inner, message):
    family = tasks.random_mdp()
    policy = policies.tabular(family.env.spec)
    with pytest.raises(ValueError, match=message):
        algorithms.REGISTRY[name](family, policy, optimizer=optax.sgd(1.0), inner=inner)


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", sorted({*algorithms.REGISTRY} - {"es-maml", "rl2", "scratch"}))
def test_the_outer_optimiser_may_be_trpo(name):
    epochs = {"outer_epochs": 1} if name == "promp" else {}
    algorithm = algorithms.REGISTRY[name](
        small.family(), small.policy(), optimizer=optimizers.trpo(), num_episodes=3, **epochs
    )
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    new, _ = jax.eval_shape(algorithm.update, state, small.sample_tasks(jax.random.key(1)), jax.random.key(2))
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("family", "policy", "inner"),
    [(tasks.random_mdp, "tabular", "q-learning"), (tasks.sinusoid, "mlp", "supervised")],
)
def test_other_learners_run_on_several_devices_a_task_at_a_time(family, policy, inner):
    family = family()
    algorithm = algorithms.maml(
        family,
        policies.REGISTRY[policy](family.env.spec),
        optimizer=optimizers.adam(learning_rate=0.01),
        inner=inner,
        num_episodes=2,
        tasks_per_block=1,
    )
    batch = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 4))
    found = {}
    for devices in (1, 2):
        with jax.set_mesh(parallel.task_mesh(jax.devices()[:devices])):
            state = algorithm.init(jax.random.key(1))
            found[devices], metrics = jax.jit(algorithm.update)(state, batch, jax.random.key(2))
        assert np.isfinite(metrics["loss"])
    small.assert_trees_close(jax.device_get(found[1].params), jax.device_get(found[2].params), atol=1e-5)


@pytest.mark.parametrize("name", sorted({*algorithms.REGISTRY} - {"rl2"}))
def test_a_value_baseline_needs_a_critic_whatever_the_algorithm(name):
    factory = algorithms.REGISTRY[name]
    optimizer = {"optimizer": optax.sgd(1.0)} if name != "scratch" else {}
    policy = policies.mlp(oracle.family().env.spec, hidden=(4,), context_size=2)
    with pytest.raises(ValueError, match="'value' needs a policy with a critic|linear or none, got 'value'"):
        factory(oracle.family(), policy, baseline="value", **optimizer)
