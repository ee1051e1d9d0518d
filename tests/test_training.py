"""The host loop: what it logs, saves, compiles, and that an interruption leaves no trace."""

import gc
import json
import pathlib
import resource
import weakref

import jax
import numpy as np
import pytest

from jmeta import training
from tests import small

ALGORITHM = small.drifting()  # one object, whose programs are compiled once


def train(iterations=8, *, algorithm=ALGORITHM, **options):
    options = {"num_tasks": 4, "log_every": 2, "checkpoint_every": 4} | options
    return training.train(algorithm, small.NUMBERS, iterations=iterations, **options)


def metrics_bytes(run):
    return (run.path / "metrics.jsonl").read_bytes()


@pytest.fixture
def straight(new_run):
    """8 iterations without an interruption: the run and its final state."""
    run = new_run()
    return run, train(run=run)


# -- what is compiled, reported and logged ------------------------------------------------------------


def test_a_run_compiles_once_with_a_shorter_last_chunk():
    seen = []
    with small.compilations() as compiled:
        train(
            7,
            algorithm=small.drifting(),
            log_every=3,
            checkpoint_every=3,
            callback=lambda p: seen.append((p.iteration, len(compiled))),
        )
    assert [iteration for iteration, _ in seen] == [1, 3, 6, 7]
    assert len({count for _, count in seen}) == 1  # nothing after the first chunk
    assert len([name for name in compiled if "chunk" in name]) == 1


def test_a_second_call_for_the_same_algorithm_and_sizes_compiles_nothing():
    algorithm = small.drifting()
    options = {"num_tasks": 4, "log_every": 2, "checkpoint_every": 4}
    states = [training.train(algorithm, small.NUMBERS, iterations=3, **options)]
    with small.compilations() as compiled:
        for iterations in (3, 5):
            states.append(training.train(algorithm, small.NUMBERS, iterations=iterations, **options))
    assert compiled == []
    assert small.bits(states[0]) == small.bits(states[1]) != small.bits(states[2])


def test_nothing_of_an_algorithm_outlives_it():
    algorithm = small.drifting()
    training.train(algorithm, small.NUMBERS, iterations=1, num_tasks=4)
    update = weakref.ref(algorithm.update)
    del algorithm
    gc.collect()
    assert update() is None


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_a_thousand_iterations_neither_compile_again_nor_grow(new_run):
    """Of MAML, each a call of its own, with records."""
    seen = []

    def look(progress):
        resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        seen.append((len(compiled), len(jax.live_arrays()), resident))

    options = {"num_tasks": small.NUM_TASKS, "log_every": 1, "checkpoint_every": 1000}
    with small.compilations() as compiled:
        training.train(
            small.algorithm("maml"), small.family(), iterations=1000, run=new_run(), callback=look, **options
        )
    programs, arrays, resident = np.transpose(seen[200:-1])  # before the checkpoint
    assert len(set(programs)) == 1 and len(set(arrays)) == 1
    assert np.mean(resident[-100:]) - np.mean(resident[:100]) < 2**20  # bytes


def test_the_callback_sees_the_progress():
    seen = []
    train(5, callback=seen.append)
    assert [(p.iteration, p.iterations) for p in seen] == [(1, 5), (2, 5), (4, 5), (5, 5)]
    for progress in seen:
        assert set(progress.metrics) == {"iteration", "return_before", "return_after", "env_steps"}
        assert all(isinstance(value, int | float) for value in progress.metrics.values())
        assert progress.metrics["iteration"] == progress.iteration
        assert progress.env_steps_per_second > 0
    # At its own rate, what is left: 1 iteration, where 2 took 14 steps / rate.
    np.testing.assert_allclose(seen[2].seconds_left, 7 / seen[2].env_steps_per_second, rtol=1e-6)
    assert seen[-1].seconds_left == 0


def test_every_iteration_is_logged(straight):
    run, _ = straight
    records = run.read_metrics()
    assert [record["iteration"] for record in records] == list(range(1, 9))
    assert len({record["return_after"] for record in records}) == 8
    # return_before is that of the parameters before the update, so that it starts at the initial ones.
    key_init, _ = jax.random.split(jax.random.key(0))
    np.testing.assert_allclose(records[0]["return_before"], ALGORITHM.init(key_init).params.sum(), rtol=1e-6)


def test_tasks_are_fresh_in_every_iteration():
    drawn = []
    train(
        4,
        log_every=1,
        callback=lambda p: drawn.append(p.metrics["return_after"] - p.metrics["return_before"]),
    )
    assert len(set(drawn)) == 4 and np.isfinite(drawn).all()


@pytest.mark.parametrize("log_every", [3, 20])
def test_the_length_of_a_chunk_changes_nothing(new_run, log_every):
    runs = [new_run(), new_run()]
    reference = train(7, run=runs[0], log_every=2, checkpoint_every=2)
    state = train(7, run=runs[1], log_every=log_every, checkpoint_every=log_every)
    assert small.bits(state) == small.bits(reference)
    assert metrics_bytes(runs[1]) == metrics_bytes(runs[0])


def test_a_run_folder_changes_nothing(straight):
    _, state = straight
    assert small.bits(train()) == small.bits(state)


def test_a_seed_decides_everything():
    assert small.bits(train(3)) == small.bits(train(3))
    assert small.bits(train(3, seed=1)) != small.bits(train(3))


def test_no_iterations_give_the_initial_state(new_run):
    run, seen = new_run(), []
    state = train(0, run=run, callback=seen.append)
    assert state.step == 0 and seen == [] and run.read_metrics() == []
    key_init, _ = jax.random.split(jax.random.key(0))
    assert small.bits(state) == small.bits(jax.jit(ALGORITHM.init)(key_init))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"checkpoint_every": 3}, "checkpoint_every must be a multiple of log_every=2, got 3"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a multiple of log_every=2, got 0"),
        ({"num_tasks": 0}, "num_tasks must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


# -- resuming -----------------------------------------------------------------------------------------


def test_checkpoints_are_written_on_time(new_run):
    run, saved = new_run(), []
    train(10, run=run, callback=lambda progress: saved.append(run.latest_checkpoint()))
    assert saved == [None, None, 4, 4, 8, 10]


def test_a_second_call_goes_on_bit_for_bit(straight, new_run):
    reference, state = straight
    run = new_run()
    train(4, run=run)
    with (run.path / "metrics.jsonl").open("a") as file:  # as a killed process leaves it
        file.write(json.dumps({"iteration": 5, "return_before": -1.0}) + "\n")
        file.write('{"iteration": 6, "retu')
    assert small.bits(train(8, run=run)) == small.bits(state)
    assert metrics_bytes(run) == metrics_bytes(reference)
    like = training.TrainState(state, jax.random.key(0))
    saved = [small.bits(r.restore(8, like).tree) for r in (run, reference)]
    assert saved[0] == saved[1]


class Interrupted(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize("at", [2, 4, 6])
def test_an_interrupted_run_goes_on_bit_for_bit(straight, new_run, at):
    """Also before its first checkpoint, at 4, and between two."""
    reference, state = straight
    run = new_run()

    def interrupt(progress):
        if progress.iteration == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(run=run, callback=interrupt)
    assert len(run.read_metrics()) == at
    assert small.bits(train(run=run)) == small.bits(state)
    assert metrics_bytes(run) == metrics_bytes(reference)


def test_resuming_off_the_grid_goes_back_to_it(straight, new_run):
    reference, state = straight
    run, seen = new_run(), []
    train(3, run=run)
    train(8, run=run, callback=lambda p: seen.append((p.iteration, run.latest_checkpoint())))
    assert seen == [(4, 4), (6, 4), (8, 8)]
    assert metrics_bytes(run) == metrics_bytes(reference)


def test_a_finished_run_is_left_as_it_is(straight):
    run, state = straight
    before = metrics_bytes(run)
    assert small.bits(train(run=run, callback=pytest.fail)) == small.bits(state)
    assert metrics_bytes(run) == before
