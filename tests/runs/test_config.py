import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from typing import Literal

import jax
import optax
import pytest

from jmeta.presets import preset
from jmeta.runs import config as configs
from jmeta.runs.config import RunConfig, Training, build, hyperparameters, registry, resolve, to_json_value

PAIRS = list(itertools.product(registry("algorithm"), registry("family")))


def small(**changes):
    parts = {
        "algorithm": {"name": "maml", "optimizer": {"name": "adam"}},
        "family": {"name": "point-goal"},
        "policy": {"name": "mlp"},
        "training": {"iterations": 2, "num_tasks": 4},
    }
    return {name: {**part, **changes.get(name, {})} for name, part in parts.items()}


def test_resolve_fills_every_argument_of_every_factory():
    config = resolve(**small())
    for kind in ("algorithm", "family", "policy"):
        component = getattr(config, kind)
        assert set(component) == {"name", *hyperparameters(registry(kind)[component["name"]])}
    assert set(config.algorithm["optimizer"]) == {"name", *hyperparameters(registry("optimizer")["adam"])}
    assert config.algorithm["inner_optimizer"] == "sgd"
    assert config.training == Training(iterations=2, num_tasks=4, seed=0, log_every=10, checkpoint_every=50)


def test_json_round_trip_is_equal_and_plain_json():
    config = resolve(**small(policy={"hidden": (8, 16)}))
    text = config.to_json()
    assert json.loads(text)["policy"]["hidden"] == [8, 16]
    assert RunConfig.from_json(text) == config
    assert resolve(**dataclasses.asdict(RunConfig.from_json(text))) == config


def test_build_passes_the_values_on(monkeypatch):
    seen = {}

    def algorithm(family, policy, *, optimizer: optax.GradientTransformation, rate: float = 1.0,
                  sizes: tuple[int, ...] = (1,), mode: Literal["a", "b"] = "a", limit: float | None = None,
                  inner: Callable[[float], optax.GradientTransformation] = optax.sgd):  # fmt: skip
        seen.update(locals())
        return "algorithm"

    monkeypatch.setitem(registry("algorithm"), "fake", algorithm)
    given = {"name": "fake", "rate": 2, "sizes": [3, 4], "optimizer": {"name": "sgd", "learning_rate": 0.5}}
    parts = {**small(policy={"hidden": [5]}), "algorithm": given}
    config = RunConfig.from_json(resolve(**parts).to_json())
    family, policy, made = build(config)

    assert made == "algorithm" and seen["family"] is family and seen["policy"] is policy
    assert (seen["rate"], seen["sizes"], seen["mode"], seen["limit"]) == (2.0, (3, 4), "a", None)
    params = policy.init(jax.random.key(0))
    assert any(5 in leaf.shape for leaf in jax.tree.leaves(params))
    for optimizer in (seen["optimizer"], seen["inner"](0.5)):
        updates, _ = optimizer.update(1.0, optimizer.init(1.0), 1.0)
        assert updates == -0.5  # gradient descent: -0.5 * 1


def test_the_largest_seed_is_one():
    config = resolve(**small(training={"seed": 2**31 - 1}))
    assert jax.random.key_data(jax.random.key(config.training.seed))[-1] == 2**31 - 1


@pytest.mark.parametrize("inner_optimizer", configs.learning_rate_optimizers())
def test_an_inner_step_size_of_0_is_allowed(inner_optimizer):
    *_, algorithm = build(
        resolve(**small(algorithm={"inner_optimizer": inner_optimizer, "inner_learning_rate": 0}))
    )
    assert algorithm.policy is not None


@functools.cache
def family_of(options):
    """From its options as JSON: the check of a robot traces its physics several times."""
    return build(resolve(**small() | {"family": json.loads(options)}))[0]


@pytest.mark.unmeasured
@pytest.mark.parametrize(("algorithm", "family"), PAIRS)
def test_every_preset_builds(algorithm, family):
    config = preset(algorithm, family)
    assert (config.algorithm["name"], config.family["name"]) == (algorithm, family)
    made_family, policy, made = build(config, family_of(json.dumps(config.family)))
    assert made_family.name == family
    assert made.policy.initial_carry is policy.initial_carry  # that policy, perhaps extended


def test_family_and_algorithm_override_the_defaults():
    assert preset("maml", "half-cheetah-direction").training.iterations == 120
    assert preset("maml", "ant-direction").training.iterations == 100
    assert "optimizer" not in preset("scratch", "ant-direction").algorithm


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("algorithm", {"name": "mamll"}, "unknown algorithm 'mamll'; did you mean 'maml'?"),
        ("family", {"name": "point-gaol"}, "unknown family 'point-gaol'; did you mean 'point-goal'?"),
        ("policy", {"name": "zzz"}, "unknown policy 'zzz'; known: .*mlp"),
        ("algorithm", {"optimizer": {"name": "adm"}}, "unknown optimizer 'adm'; did you mean 'adam'?"),
        ("algorithm", {"optimizer": {"name": "adam", "max_kl": 1.0}}, "unknown argument of optimizer 'adam'"),
        ("algorithm", {"optimizer": {}}, "optimizer has no name"),
        ("algorithm", {"optimizer": "adam"}, "optimizer must be an object"),
        ("algorithm", {"inner_optimizer": "trpo"}, "unknown inner_optimizer 'trpo'"),
        ("algorithm", {"num_iner_steps": 1}, "'num_iner_steps'; did you mean 'num_inner_steps'?"),
        ("algorithm", {"num_inner_steps": 1.5}, "num_inner_steps must be of type int, not 1.5"),
        ("algorithm", {"num_inner_steps": True}, "num_inner_steps must be of type int, not True"),
        ("algorithm", {"first_order": 1}, "first_order must be of type bool, not 1"),
        ("algorithm", {"discount": "0.9"}, "discount must be of type float, not '0.9'"),
        ("policy", {"hidden": 64}, "hidden must be a list, not 64"),
        ("policy", {"hidden": [64, 0.5]}, "every item of hidden must be of type int, not 0.5"),
        ("training", {"iterations": -1}, "iterations must be at least 0, got -1"),
        ("training", {"num_tasks": 0}, "num_tasks must be at least 1, got 0"),
        ("training", {"num_tasks": True}, "num_tasks must be of type int, not True"),
        ("training", {"seed": -1}, "seed must be at least 0, got -1"),
        ("training", {"seed": 2**31}, "seed must be below 2147483648, got 2147483648"),
        ("training", {"log_every": 3}, "checkpoint_every must be a multiple of log_every=3, got 50"),
        ("training", {"iteration": 1}, "did you mean 'iterations'?"),
    ],
)
def test_what_cannot_be_is_refused(part, change, message):
    with pytest.raises(ValueError, match=message):
        resolve(**small(**{part: change}))


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [({"name": "maml"}, "algorithm 'maml' needs optimizer"), ({"optimizer": {}}, "algorithm has no name")],
)
def test_what_is_missing_is_named(algorithm, message):
    with pytest.raises(ValueError, match=message):
        resolve(**{**small(), "algorithm": algorithm})


def test_training_needs_its_counts():
    with pytest.raises(ValueError, match="training needs num_tasks"):
        resolve(**{**small(), "training": {"iterations": 1}})


@pytest.mark.parametrize(
    ("annotation", "value", "stored"),
    [
        (int | None, None, None),
        (int | None, 3, 3),
        (float, 3, 3.0),
        (tuple[float, ...], (1, 2), [1.0, 2.0]),
        (Literal["x", "y"], "y", "y"),
    ],
)
def test_values_are_stored_as_json_has_them(annotation, value, stored):
    result = to_json_value(value, annotation, "argument")
    assert result == stored and type(result) is type(stored)


def test_literals_offer_the_nearest():
    with pytest.raises(ValueError, match="unknown value of mode 'heldut'; did you mean 'heldout'?"):
        to_json_value("heldut", Literal["train", "heldout"], "mode")


def test_an_annotation_that_no_configuration_can_hold_is_a_mistake_of_the_factory():
    with pytest.raises(TypeError, match="cannot hold"):
        to_json_value(1, complex, "argument")


@pytest.mark.parametrize("kind", ["algorithm", "family", "policy", "optimizer"])
def test_every_shipped_default_can_be_held(kind):
    for make in registry(kind).values():
        for name, (annotation, default) in hyperparameters(make).items():
            if default is not configs.REQUIRED:
                to_json_value(default, annotation, name)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"algorithm": {}, "family": {}, "policy": {}, "training": {}}', "\x00"]
)
def test_damaged_json_is_refused(text):
    with pytest.raises(ValueError):
        RunConfig.from_json(text)
