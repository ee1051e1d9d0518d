"""An environment is checked when it is handed over, and cast where nothing is lost."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import algorithms, evaluate, policies, tasks, training
from jmeta.conformance import FamilyError, conform
from jmeta.types import Continuous, Discrete, Env, EnvSpec, TaskFamily, TimeStep
from tests import small

SPEC = EnvSpec(2, Continuous(2), horizon=3)


def sample(key):
    return jax.random.uniform(key, (2,))


def make(**changes):
    """A point that is asked to go somewhere; `changes` are fields of the family, the environment or the spec.

    `obs`, `reward`, `terminated` and `measures` are functions of position and task: what a time step shows.
    """

    def shown(name, value, position, task):
        return changes[name](position, task) if name in changes else value

    def show(position, task, reward):
        return TimeStep(
            shown("obs", position, position, task),
            shown("reward", reward, position, task),
            shown("terminated", jnp.array(False), position, task),
            shown("measures", {}, position, task),
        )

    def reset(key, task):
        return jnp.zeros(2), show(jnp.zeros(2), task, jnp.zeros(()))

    def step(key, state, action, task):
        position = state + 0.1 * action
        return position, show(position, task, -jnp.square(position - task).sum())

    def chosen(type_):
        return {name: value for name, value in changes.items() if name in type_}

    spec = dataclasses.replace(SPEC, **chosen(SPEC.__dataclass_fields__))
    env = Env(reset, step, spec)._replace(**chosen(Env._fields))
    return TaskFamily("mine", env, sample, sample)._replace(**chosen(TaskFamily._fields))


def shown_by(family):
    """What `reset` and `step` show of one task."""
    task = family.sample(jax.random.key(0))
    state, start = family.env.reset(jax.random.key(1), task)
    _, after = family.env.step(jax.random.key(2), state, jnp.ones(2), task)
    return start, after


def returns(value):
    return lambda *args: value


NUMBERS = itertools.count()


class Remembers:
    """Keeps its position in itself."""

    position = 0.0

    def step(self, key, state, action, task):
        self.position = self.position + action
        return state, TimeStep(self.position, jnp.zeros(()), jnp.array(False))


STEP = make().env.step
MISTAKES = [
    (3, "family must be a jmeta.types.TaskFamily, got an object of type int"),
    (make(name=None), "name of a family must be a str, got None"),
    (make(env=lambda: 0), "env must be a jmeta.types.Env, got an object of type function"),
    (make(sample=None), "sample must be a function, got an object of type NoneType"),
    (make(step=jnp.zeros(2)), "env.step must be a function, got an array"),
    (make(spec={"obs_size": 2}), "env.spec must be a jmeta.types.EnvSpec, got an object of type dict"),
    (make(action=2), "env.spec.action must be Continuous or Discrete, got an object of type int"),
    (make(action=Discrete(0)), "env.spec.action.num must be at least 1, got 0"),
    (make(action=Continuous(1.5)), "env.spec.action.size must be an integer, got 1.5"),
    (make(action=Continuous(2, low=1.0)), "env.spec.action: low must be below high, got low=1.0, high=1.0"),
    (make(obs_size=0), "env.spec.obs_size must be at least 1, got 0"),
    (make(horizon=0), "env.spec.horizon must be at least 1, got 0"),
    (make(horizon=10.0), "env.spec.horizon must be an integer, got 10.0"),
    (make(horizon=True), "env.spec.horizon must be an integer, got True"),
    (make(trial_episodes=-1), "env.spec.trial_episodes must be at least 1, got -1"),
    (make(terminates="no"), "env.spec.terminates must be True or False, got 'no'"),
    (make(sample=returns(None)), "sample returned None; a pytree of arrays is expected, or () if"),
    (make(sample=returns("left")), "sample returned 'left'; an array is expected"),
    (
        make(sample=returns({"goal": {"x": object}})),
        "returned <class 'object'> as goal.x; an array is expected",
    ),
    (make(sample=returns(np.array(["a"]))), "an array is expected"),
    (make(sample=lambda key: key + 1.5), "sample failed: TypeError: "),
    (make(sample=lambda key: np.random.normal() * jnp.ones(2)), "sample computes another result when"),
    (
        make(sample_heldout=returns({"goal": jnp.zeros(2)})),
        "sample_heldout returned a task of structure PyTreeDef({'goal': *}); sample has PyTreeDef(*)",
    ),
    (
        make(sample_heldout=lambda key: jnp.zeros(3)),
        "sample_heldout returned a task of shape (3,) and dtype float32; sample has shape (2,)",
    ),
    (
        make(optimal_return=lambda task: task),
        "optimal_return returned a value of shape (2,) and dtype float32",
    ),
    (make(reset=lambda key, task: jnp.zeros(2)), "reset returned an array; a tuple (state, TimeStep) is"),
    (
        make(reset=returns((0, 0.0, False))),
        "reset returned a tuple of 3; a tuple (state, TimeStep) is expected",
    ),
    (
        make(step=returns(None)),
        "step returned an object of type NoneType; a tuple (state, TimeStep) is expected",
    ),
    (
        make(step=lambda key, state: state),
        "step failed with an action of shape (2,) and dtype float32: TypeError",
    ),
    (
        make(reset=returns(("start", TimeStep(jnp.zeros(2), 0.0, False)))),
        "reset returned 'start' as 0; an array is expected",
    ),
    (
        make(obs=lambda x, task: x[:1]),
        "reset returned obs of shape (1,) and dtype float32; an array of shape (2,)",
    ),
    (
        make(obs=lambda x, task: {"x": x}),
        "reset returned obs of type dict; an array of shape (2,) is expected",
    ),
    (make(obs=lambda x, task: x + 1j), "obs of shape (2,) and dtype complex64; real numbers are expected"),
    (
        make(reward=lambda x, task: x[:1]),
        "reset returned reward of shape (1,) and dtype float32; a scalar is expected",
    ),
    (
        make(terminated=lambda x, task: x < task),
        "reset returned terminated of shape (2,) and dtype bool; a scalar is expected",
    ),
    (
        make(terminated=lambda x, task: None),
        "reset returned terminated of type NoneType; a scalar is expected",
    ),
    (
        make(measures=lambda x, task: x),
        "reset returned measures ShapeDtypeStruct(shape=(2,), dtype=float32); a",
    ),
    (
        make(measures=lambda x, task: {"success": x > 0}),
        "reset returned the measure 'success' of shape (2,) and dtype bool; a scalar is expected",
    ),
    (
        make(step=lambda key, state, action, task: (state[None], STEP(key, state, action, task)[1])),
        "step returned the state of shape (1, 2) and dtype float32; reset has shape (2,) and dtype float32",
    ),
    (
        make(step=lambda key, state, action, task: ((state,), STEP(key, state, action, task)[1])),
        "step returned the state of structure PyTreeDef((*,)); reset has PyTreeDef(*)",
    ),
    (
        make(action=Continuous(3)),
        "step failed with an action of shape (3,) and dtype float32: TypeError: add got",
    ),
    (
        make(action=Discrete(3), step=lambda key, state, action, task: STEP(key, state, action[0], task)),
        "step failed with an action of shape () and dtype int32: IndexError",
    ),
    (make(reward=lambda x, task: 1.0 if x[0] > task[0] else 0.0), "failed: TracerBoolConversionError: "),
    (make(reward=lambda x, task: float(x[0])), "failed: ConcretizationTypeError: "),
    (
        make(reward=lambda x, task: np.random.normal() * x[0]),
        "reset computes another result when it is called",
    ),
    (make(reward=lambda x, task: float(next(NUMBERS))), "reset computes another result when it is called"),
    (make(step=Remembers().step), "step computes another result when it is called again"),
]


@pytest.mark.parametrize("family, message", MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_named_in_one_line_before_anything_is_compiled(family, message):
    with small.compilations() as compiled, pytest.raises(FamilyError) as caught:
        conform(family)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("family 'mine': ", "family must", "name of a family must"))
    assert not compiled


def test_a_mistake_is_found_by_whatever_takes_a_family():
    family = make(reward=lambda x, task: x[:1])
    message = re.escape(
        "family 'mine': reset returned reward of shape (1,) and dtype float32; a scalar is expected"
    )
    good = make()
    policy = policies.gru(SPEC, size=2)
    algorithm = algorithms.rl2(good, policy, optimizer=optax.adam(0.1))
    with pytest.raises(FamilyError, match=message):
        algorithms.maml(family, policies.mlp(SPEC), optimizer=optax.adam(0.1))
    with pytest.raises(FamilyError, match=message):
        algorithms.rl2(family, policy, optimizer=optax.adam(0.1))
    with pytest.raises(FamilyError, match=message):
        evaluate(algorithm, family, None, jax.random.key(0))
    with pytest.raises(FamilyError, match=message):
        training.train(algorithm, family, iterations=1)


ROBOTS = ("ant", "half-cheetah", "hopper", "humanoid", "walker2d")  # slow to trace


@pytest.mark.parametrize("name", [name for name in tasks.REGISTRY if not name.startswith(ROBOTS)])
def test_the_families_of_the_library_need_no_cast(name):
    family = tasks.REGISTRY[name]()
    assert conform(family) is family


CASTS = {
    "obs": [jnp.int32, jnp.uint8, bool, jnp.float16, jnp.bfloat16],
    "reward": [jnp.int32, jnp.uint8, bool, jnp.float16, jnp.bfloat16],
    "terminated": [jnp.float32, jnp.int32, jnp.uint8, jnp.bfloat16],
}


@pytest.mark.parametrize("field, dtype", [(field, dtype) for field in CASTS for dtype in CASTS[field]])
def test_what_is_exact_is_cast(field, dtype):
    def show(position, task):
        value = jnp.array([1, 0]) if field == "obs" else jnp.ones(())
        return value.astype(dtype)

    family = make(**{field: show})
    conformed = conform(family)
    for given, seen in zip(shown_by(family), shown_by(conformed), strict=True):
        assert getattr(given, field).dtype == dtype
        assert getattr(seen, field).dtype == (bool if field == "terminated" else jnp.float32)
        assert (getattr(seen, field) == getattr(given, field).astype(float)).all()
    assert conform(family) is conformed
    assert conform(conformed) is conformed


@pytest.mark.parametrize(
    "field, value", [("reward", 1), ("reward", 0.5), ("terminated", False), ("obs", np.ones(2))]
)
def test_python_numbers_become_arrays(field, value):
    for seen in shown_by(conform(make(**{field: returns(value)}))):
        assert isinstance(getattr(seen, field), jax.Array) and not getattr(seen, field).weak_type
        assert (getattr(seen, field) == value).all()


def test_measures_are_floats_or_bools():
    family = conform(make(measures=lambda x, task: {"success": False, "steps": 3, "distance": x[0]}))
    for seen in shown_by(family):
        types = {name: value.dtype for name, value in seen.measures.items()}
        assert types == {"success": bool, "steps": jnp.float32, "distance": jnp.float32}


def test_float64_stays():
    with jax.enable_x64(True):
        family = make()
        assert conform(family) is family
        assert shown_by(family)[1].obs.dtype == jnp.float64
        narrow = conform(make(obs=lambda x, task: x.astype(jnp.float32)))
        assert [seen.obs.dtype for seen in shown_by(narrow)] == [jnp.float64] * 2


def test_a_state_has_one_type_from_reset_on():
    def reset(key, task):
        return {"x": jnp.zeros(2, jnp.int32), "time": 0, "key": key}, TimeStep(jnp.zeros(2), 0, False)

    def step(key, state, action, task):
        key, _ = jax.random.split(state["key"])
        state = {"x": state["x"] + 0.5 * action, "time": state["time"] + 1, "key": key}
        return state, TimeStep(state["x"], state["time"], state["time"] == 3)

    family = conform(make(reset=reset, step=step))
    start, _ = family.env.reset(jax.random.key(0), None)
    state, shown = family.env.step(jax.random.key(1), start, jnp.ones(2), None)
    for tree in (start, state):
        assert {name: leaf.dtype for name, leaf in tree.items() if name != "key"} == {
            "x": jnp.float32,
            "time": jnp.int32,
        }
    assert shown.obs.tolist() == [0.5, 0.5] and shown.reward == 1.0
    # A state of numbers that are only turned on and off keeps its type in both.
    flags = make(
        reset=lambda key, task: (jnp.zeros(2, bool), TimeStep(jnp.zeros(2), 0.0, False)),
        step=lambda key, state, action, task: (state + 1, TimeStep(action, 0.0, False)),
    )
    assert conform(flags).env.reset(None, None)[0].dtype == jnp.int32


def test_a_state_whose_types_share_no_wider_one_is_refused():
    family = make(
        reset=lambda key, task: (jnp.zeros(2, jnp.uint32), TimeStep(jnp.zeros(2), 0.0, False)),
        step=lambda key, state, action, task: (state.astype(jnp.int32), TimeStep(action, 0.0, False)),
    )
    with pytest.raises(
        FamilyError, match=r"step returned the state of shape \(2,\) and dtype int32; reset has"
    ):
        conform(family)


def test_tasks_of_both_splits_have_one_type():
    family = make(
        sample=lambda key: (0.0, jnp.zeros(2, jnp.int32)),
        sample_heldout=lambda key: (1, np.ones(2)),
        reward=returns(0.0),
        step=lambda key, state, action, task: (state, TimeStep(state, 0.0, False)),
    )
    task, heldout = (draw(None) for draw in (conform(family).sample, conform(family).sample_heldout))
    assert [leaf.dtype for leaf in (*task, *heldout)] == [jnp.float32] * 4


def test_a_family_without_heldout_tasks_stays_one():
    for heldout in (returns(np.ones(2)), returns(np.zeros(2))):
        family = make(sample=returns(np.zeros(2)), sample_heldout=heldout)
        assert conform(family).sample_heldout is not conform(family).sample
        family = family._replace(sample=heldout)
        assert conform(family).sample_heldout is conform(family).sample
