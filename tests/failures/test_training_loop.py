"""Training in parts, from a given state, with evaluations and a callback that gets the state."""

import itertools
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import evaluation, training
from jmeta.runs import RunFolder, Training
from tests import small

ALGORITHM = small.drifting()  # one object: everything is compiled once
SIZES = {"num_tasks": 4, "log_every": 2, "checkpoint_every": 4}


def train(iterations=8, **options):
    return training.train(ALGORITHM, small.NUMBERS, iterations=iterations, **(SIZES | options))


def contents(run):
    """What does not depend on when it was written."""
    names = ("metrics.jsonl", "evaluations.jsonl", "best.json")
    return {name: (run.path / name).read_bytes() for name in names if (run.path / name).exists()}


# -- a given state ------------------------------------------------------------------------------------


def test_training_in_parts_ends_as_training_at_once():
    state = train(3)
    before = small.bits(state)
    parts = train(8, state=state)
    assert small.bits(parts) == small.bits(train())
    assert small.bits(state) == before  # its memory was not reused
    assert small.bits(train(8, state=parts)) == small.bits(parts)


def test_a_state_of_another_kind_is_refused_by_the_name_of_the_leaf():
    state = train(0)
    for other, message in (
        (state._replace(params=jnp.zeros(4)), r"state\.params must be float32\[3\], got float32\[4\]"),
        (state._replace(params=jnp.zeros(3, int)), r"state\.params must be float32\[3\], got int32\[3\]"),
        (
            state._replace(opt_state={"a": jnp.zeros(3)}),
            r"state\.opt_state must be float32\[3\], got nothing",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(state=other)


def test_a_state_that_has_done_more_is_refused(new_run):
    state = train(4)
    with pytest.raises(ValueError, match="state must have done at most 3 iterations, got 4"):
        train(3, state=state)
    with pytest.raises(ValueError, match="at most 0 iterations to start a run folder, got 4"):
        train(8, state=state, run=new_run())


def test_a_run_that_starts_from_other_parameters_goes_on_from_them(new_run):
    state = train(0)._replace(params=jnp.arange(3.0))
    runs = [new_run(), new_run()]
    expected = train(state=state, run=runs[0])
    assert small.bits(expected) == small.bits(train(state=state)) != small.bits(train())

    def interrupt(progress):
        if progress.iteration == 2:  # before the first checkpoint of an iteration
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(state=state, run=runs[1], callback=interrupt)
    assert small.bits(train(run=runs[1])) == small.bits(expected)
    assert contents(runs[1]) == contents(runs[0])


# -- the callback -------------------------------------------------------------------------------------


def test_a_callback_gets_states_that_stay_valid():
    states = []
    end = train(5, callback=lambda progress: states.append(progress.state))
    assert [int(state.step) for state in states] == [1, 2, 4, 5]
    assert small.bits(states[-1]) == small.bits(end)
    assert small.bits(states[1]) == small.bits(train(2))


def test_a_state_that_is_asked_for_too_late_says_so():
    seen = []
    train(5, callback=seen.append)
    with pytest.raises(RuntimeError, match="state must be asked for within the callback"):
        _ = seen[0].state


def test_a_callback_gets_the_metrics_of_every_iteration(new_run):
    seen, run = [], new_run()
    train(5, run=run, callback=lambda progress: seen.extend(progress.records))
    assert seen == run.read_metrics()


# -- evaluations --------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(monkeypatch):
    """Evaluations whose results are given: the return after each iteration."""
    returns = {2: 1.0, 4: 3.0, 6: 2.0, 8: float("nan"), 10: 3.0, 12: 0.0, 13: 4.0}
    asked = []

    def record(algorithm, family, params, seed, iteration):
        asked.append((seed, iteration, float(params[0])))
        return {"iteration": iteration, "return": returns[iteration]}

    monkeypatch.setattr("jmeta.training.loop.evaluation_record", record)
    return asked


def test_evaluations_are_written_and_the_best_is_kept_beside_the_last_three(new_run, evaluated):
    run, seen = new_run(), []
    train(12, evaluate_every=2, run=run, callback=lambda progress: seen.append(progress.evaluation))
    assert [iteration for _, iteration, _ in evaluated] == [2, 4, 6, 8, 10, 12]
    records = run.read_evaluations()
    assert [(r["iteration"], r["return"]) for r in records if r["iteration"] != 8] == [
        *((2, 1.0), (4, 3.0), (6, 2.0), (10, 3.0), (12, 0.0))
    ]
    assert np.isnan(records[3]["return"])
    assert [record and record["iteration"] for record in seen] == [None, 2, 4, 6, 8, 10, 12]
    assert run.best_checkpoint() == (4, 3.0)  # the first of equals
    assert sorted(int(path.name) for path in (run.path / "checkpoints").iterdir()) == [4, 8, 10, 12]


def test_the_last_iteration_is_evaluated(new_run, evaluated):
    run = new_run()
    train(13, evaluate_every=4, run=run)
    assert [iteration for _, iteration, _ in evaluated] == [4, 8, 12, 13]
    assert run.best_checkpoint() == (13, 4.0)


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("name", ["append_evaluations", "save_checkpoint", "mark_best"])
def test_an_interrupted_run_has_the_evaluations_of_one_that_was_not(
    new_run, evaluated, monkeypatch, name, call
):
    """Whether it ends before an evaluation is written, its checkpoint, or the best is marked."""
    reference, run = new_run(), new_run()
    train(12, evaluate_every=2, run=reference)
    original, calls = getattr(RunFolder, name), itertools.count(1)

    def fail(self, *arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, name, fail)
        train(12, evaluate_every=2, run=run)
    train(12, evaluate_every=2, run=run)
    assert contents(run) == contents(reference)


def test_an_evaluation_is_of_heldout_tasks_always_the_same_and_of_no_others():
    """With as many steps as training takes, and the keys neither of training nor of the command line."""
    algorithm, family = small.algorithm("maml"), small.family()
    params = algorithm.init(jax.random.key(0)).params
    first = training.evaluation_record(algorithm, family, params, 0, 2)
    with small.compilations() as compiled:
        second = training.evaluation_record(algorithm, family, params, 0, 4)
    assert compiled == []
    assert second == first | {"iteration": 4}
    assert (first["split"], first["steps"], first["num_tasks"]) == ("heldout", [0, 1], 100)
    assert first["return"] == first["return_mean"][-1]
    for number in (2**31 - 1, 0):
        key = jax.random.fold_in(jax.random.key(0), number)
        other = evaluation.evaluate(algorithm, family, params, key, num_steps=1, heldout=True)
        assert other.return_mean != first["return_mean"]
    alone = family._replace(sample_heldout=family.sample)
    assert training.evaluation_record(algorithm, alone, params, 0, 2)["split"] == "train"


@pytest.mark.parametrize("value", [0, 3, -2])
def test_the_distance_of_evaluations_is_checked(value):
    with pytest.raises(ValueError, match=f"evaluate_every must be a multiple of log_every=2, got {value}"):
        train(evaluate_every=value)


# -- stopping -----------------------------------------------------------------------------------------


def test_a_run_that_is_asked_to_stop_saves_where_it_is(new_run):
    reference, run = new_run(), new_run()
    expected = train(run=reference)
    settings = Training(iterations=8, **SIZES)
    answers = iter([False, False, False, True])
    with run.lock:
        start = training.begin(ALGORITHM, settings)
        end = training.train_from(
            start, ALGORITHM, small.NUMBERS, settings, run=run, stop=lambda: next(answers)
        )
    assert int(end.meta.step) == 4 == run.latest_checkpoint() and len(run.read_metrics()) == 4
    assert small.bits(train(run=run)) == small.bits(expected)
    assert contents(run) == contents(reference)


def test_a_run_that_is_asked_to_stop_between_checkpoints_loses_nothing(new_run):
    run = new_run()
    settings = Training(iterations=8, **SIZES)
    answers = iter([False, False, True])
    with run.lock:
        start = training.begin(ALGORITHM, settings)
        training.train_from(start, ALGORITHM, small.NUMBERS, settings, run=run, stop=lambda: next(answers))
    assert run.latest_checkpoint() == 2
    seen = []
    assert small.bits(train(run=run, callback=seen.append)) == small.bits(train())
    assert seen[0].iteration == 3


# -- damage -------------------------------------------------------------------------------------------


def test_the_checkpoint_that_was_gone_back_to_is_named(new_run, caplog):
    run = new_run()
    expected = train(run=run)
    (run.path / "checkpoints" / "8" / "arrays.bin").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert small.bits(train(run=run)) == small.bits(expected)
    assert len(caplog.messages) == 1
    assert "goes on from iteration 4: checkpoint 8 is damaged" in caplog.messages[0]


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b'{"iteration": 6, "return": "high"}\n', b'{"iteration": 6}\n', b'{"iter']
)
def test_damaged_evaluations_do_not_keep_a_run_from_going_on(new_run, evaluated, line):
    run = new_run()
    train(6, evaluate_every=2, run=run)
    path = run.path / "evaluations.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + line)
    train(10, evaluate_every=2, run=run)
    assert [record["iteration"] for record in run.read_evaluations()][-2:] == [8, 10]
    assert run.best_checkpoint() == (4, 3.0)


def test_a_best_checkpoint_that_is_gone_is_chosen_again(new_run, evaluated, caplog):
    run = new_run()
    train(10, evaluate_every=2, run=run)
    shutil.rmtree(run.path / "checkpoints" / "4")
    with caplog.at_level(logging.WARNING):
        train(12, evaluate_every=2, run=run)
    assert "best.json names checkpoint 4, which is gone" in caplog.messages[0]
    assert run.best_checkpoint() == (10, 3.0)
