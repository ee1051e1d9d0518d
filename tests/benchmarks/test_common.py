"""What the benchmarks share."""

import dataclasses
import importlib
import json

import pytest

from benchmarks import common
from jmeta import runtime
from jmeta.presets import preset


def test_a_plot_is_of_a_known_format():
    pytest.importorskip("matplotlib")
    common.check_plot(common.pathlib.Path("out.PNG"))
    for name in ("out", "out.nonsense"):
        with pytest.raises(SystemExit, match=f"plot must end in one of .*, got {name}"):
            common.check_plot(common.pathlib.Path(name))


def test_a_number_too_small_is_named():
    common.at_least(1, seeds=1, tasks=2)
    with pytest.raises(SystemExit, match="seeds must be at least 1, got 0"):
        common.at_least(1, tasks=1, seeds=0)


@pytest.mark.parametrize(
    "shared, tasks", [([(2000, 1), (400, 1), (1024, 4)], 2000), ([(3, 4)], 1), ([], None)]
)
def test_the_cores_taken_are_those_that_the_most_tasks_give_work_to(monkeypatch, shared, tasks):
    asked = []
    monkeypatch.setattr(runtime, "configure", lambda *, num_tasks: asked.append(num_tasks))
    common.start(*shared)
    assert asked == [tasks]


def test_the_presets_policy_keeps_its_settings_and_another_has_its_defaults(monkeypatch):
    known = preset("rl2", "grid-goal")
    assert common.rl2_config("grid-goal", "gru") == known
    tuned = known.policy | {"size": 17}
    changed = common.dataclasses.replace(known, policy=tuned)
    monkeypatch.setattr("jmeta.presets.preset", lambda *names: changed)
    assert common.rl2_config("grid-goal", "gru").policy == tuned
    other = common.rl2_config("grid-goal", "lstm", iterations=3, horizon=7)
    shared = {"separate_critic": False, "reward_scale": 1.0, "normalize_observations": False}
    assert other.policy == {"name": "lstm", "size": 64} | shared
    assert other.family == {"name": "grid-goal", "horizon": 7} and other.training.iterations == 3
    assert other.algorithm == known.algorithm


def test_a_preset_can_be_run_for_other_iterations():
    known = preset("rl2", "random-mdp")
    short = common.rl2_config("random-mdp", "gru", iterations=7)
    assert short == common.dataclasses.replace(
        known, training=common.dataclasses.replace(known.training, iterations=7)
    )
    assert common.rl2_config("random-mdp", "gru") == known


@pytest.mark.parametrize("module", ["compare", "scaling", "throughput"])
def test_the_record_of_flags_can_be_written(module, tmp_path):
    """Without the files, which are paths."""
    flags = importlib.import_module(f"benchmarks.{module}").Flags
    written = {"json", "results"} & {field.name for field in dataclasses.fields(flags)}
    common.write_json(tmp_path / "record.json", common.settings(flags(**dict.fromkeys(written, tmp_path))))
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["repeats"] == flags().repeats and not written & record.keys()
