import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

import jmeta as package
from jmeta import cli
from jmeta.cli import run, start, train
from jmeta.presets import preset
from jmeta.reporting.progress import ProgressReporter
from jmeta.runs import RunFolder
from jmeta.runs.config import registry
from tests import small

REPOSITORY = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
SMALL = [
    *("--iterations", "4", "--tasks", "4", "--log-every", "2", "--checkpoint-every", "2"),
    *("--num-episodes", "2", "--outer-epochs", "1", "--family.horizon", "5", "--policy.hidden", "4"),
]
EVALUATION = ["--tasks", "4", "--steps", "2", "--episodes", "3"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(path)
    return path


def jmeta(*words, **options):
    command = [sys.executable, "-m", "jmeta", *map(str, words)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def interrupt_once(monkeypatch):
    """Ctrl-C after the first checkpoint."""

    def interrupt(self, progress):
        if progress.iteration == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressReporter, "__call__", interrupt)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; do not change it."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "maml", "point-goal", *SMALL, "--run-dir", str(path)]) == 0
    return path


# -- runs ---------------------------------------------------------------------------------------------


def test_train_writes_the_run(trained):
    run = RunFolder.open(trained)
    assert [record["iteration"] for record in run.read_metrics()] == [1, 2, 3, 4]
    assert run.latest_checkpoint() == 4
    config = run.config
    assert (config.algorithm["num_episodes"], config.algorithm["outer_epochs"]) == (2, 1)
    assert (config.family["horizon"], config.policy["hidden"]) == (5, [4])
    assert config.algorithm["optimizer"] == preset("maml", "point-goal").algorithm["optimizer"]
    assert config.training.num_tasks == 4


def test_interrupted_and_resumed_equals_uninterrupted(trained, empty_folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_once(patch)
        assert cli.main(["train", "maml", "point-goal", *SMALL]) == 130
    run = RunFolder.open("runs/maml-point-goal-0")
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == f"jmeta: interrupted; go on with: jmeta train --resume --run-dir {run.path}"
    assert len(run.read_metrics()) == 2

    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "lo')  # killed while writing
    assert cli.main(["train", "--resume", "--run-dir", str(run.path)]) == 0
    assert (run.path / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


def test_evaluate_prints_a_table_and_writes_it(trained, capsys):
    assert cli.main(["evaluate", str(trained), *EVALUATION, "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((trained / "evaluation.json").read_text())
    assert written["steps"] == [0, 1, 2]
    assert {"num_tasks": 4, "split": "train", "seed": 1, "iteration": 4}.items() <= written.items()
    for low, mean, high in zip(
        written["return_low"], written["return_mean"], written["return_high"], strict=True
    ):
        assert low <= mean <= high
        assert f"{mean:.2f}" in printed


def test_a_trial_is_evaluated_by_the_episode(empty_folder, capsys):
    small = "--tasks 8 --iterations 1 --log-every 1 --checkpoint-every 1 --epochs 1 --family.horizon 3"
    policy = "--policy transformer --policy.size 4 --policy.num-heads 1 --policy.num-layers 1"
    assert cli.main(["train", "rl2", "grid-goal", *small.split(), *policy.split(), "--run-dir", "run"]) == 0
    assert cli.main(["evaluate", "run", "--tasks", "4", "--episodes", "1"]) == 0
    written = json.loads(pathlib.Path("run/evaluation.json").read_text())
    assert written["steps"] == [0, 1, 2, 3]  # a trial has four episodes
    assert f"{written['optimal_mean'] - written['return_mean'][0]:.2f}" in capsys.readouterr().out
    assert cli.main(["evaluate", "run", "--tasks", "4", "--steps", "4"]) == 2
    error = capsys.readouterr().err
    assert "num_steps must be at most 3" in error and error.count("\n") == 1


def test_heldout_tasks_are_others(trained):
    means = []
    for split in ("train", "heldout"):
        assert cli.main(["evaluate", str(trained), *EVALUATION, "--split", split]) == 0
        means.append(json.loads((trained / "evaluation.json").read_text())["return_mean"])
    assert means[0] != means[1]


def test_default_run_folders_are_fresh(empty_folder):
    config = preset("scratch", "point-goal")
    names = []
    for _ in range(3):
        path = run.numbered_path(pathlib.Path("runs"), config)
        names.append(path.name)
        path.mkdir(parents=True)
    assert names == ["scratch-point-goal-0", "scratch-point-goal-0-2", "scratch-point-goal-0-3"]


# -- flags --------------------------------------------------------------------------------------------


def configured(words):
    names, rest = words.split()[:2], words.split()[2:]
    config, options = train._configure_run(*names, rest)
    return config, options.run_dir


def test_flags_reach_every_part_of_the_configuration():
    config, run_dir = configured(
        "maml half-cheetah-direction --num-inner-steps 3 --first-order --inner-optimizer adam"
        " --optimizer.name trpo --optimizer.max-kl 0.02 --policy.name mlp --policy.hidden 32 16"
        " --family.backend generalized --family.horizon 50 --seed 7 --run-dir there --no-normalize-advantages"
    )
    assert run_dir == "there"
    algorithm = config.algorithm
    assert algorithm["num_inner_steps"] == 3
    assert algorithm["first_order"] is True
    assert algorithm["normalize_advantages"] is False
    assert algorithm["inner_optimizer"] == "adam"
    assert (algorithm["optimizer"]["name"], algorithm["optimizer"]["max_kl"]) == ("trpo", 0.02)
    assert config.policy["hidden"] == [32, 16]
    assert (config.family["backend"], config.family["horizon"]) == ("generalized", 50)
    assert config.training.seed == 7


@pytest.mark.parametrize("algorithm", registry("algorithm"))
def test_without_flags_the_preset_is_the_configuration(algorithm):
    for family in registry("family"):
        assert configured(f"{algorithm} {family}") == (preset(algorithm, family), None)


def test_a_component_alone_is_its_name():
    config, _ = configured("rl2 grid-goal --policy lstm --policy.size 8 --optimizer=sgd")
    assert (config.policy["name"], config.policy["size"]) == ("lstm", 8)
    assert config.algorithm["optimizer"]["name"] == "sgd"


def test_another_optimizer_has_its_own_defaults():
    config, _ = configured("maml point-goal --optimizer.name=sgd")
    assert config.algorithm["optimizer"]["learning_rate"] == 0.1  # the factory's, not the preset's


def test_help_shows_flags_with_defaults(capsys):
    assert cli.main(["train", "maml", "point-goal", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--num-inner-steps", "--optimizer.learning-rate", "--policy.hidden", "--family.horizon"):
        assert flag in text


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]])
def test_usage(words, capsys):
    assert cli.main(words) == 0
    assert "jmeta train ALGORITHM FAMILY" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_list_names_everything(capsys):
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for kind in ("algorithm", "family", "policy", "optimizer"):
        assert all(name in text for name in registry(kind))


# -- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian maml point-goal", "unknown command 'trian'; did you mean 'train'?"),
        ("train", "give ALGORITHM and FAMILY first"),
        ("train maml", "give ALGORITHM and FAMILY first"),
        ("train mam point-goal", "unknown algorithm 'mam'; did you mean 'maml'?"),
        ("train maml point-gaol", "unknown family 'point-gaol'; did you mean 'point-goal'?"),
        ("train maml point-goal --iteration 3", "unknown flag '--iteration'; did you mean '--iterations'?"),
        (
            "train maml point-goal --policy.hiden 3",
            "unknown flag '--policy.hiden'; did you mean '--policy.hi",
        ),
        ("train maml point-goal --policy.name mpl", "unknown policy 'mpl'; did you mean 'mlp'?"),
        ("train maml point-goal --optimizer.name adm", "unknown optimizer 'adm'; did you mean 'adam'?"),
        ("train scratch point-goal --optimizer.name adam", "unknown flag '--optimizer.name'"),
        ("train maml point-goal --inner-optimizer trpo", "invalid choice 'trpo'"),
        (
            "train maml point-goal --iterations ten",
            "--iterations: invalid literal for int() with base 10: 'ten'",
        ),
        ("train maml point-goal --seed", "Missing value for argument '--seed'"),
        ("train maml point-goal surplus", "surplus"),
        ("train maml point-goal --iterations -5", "iterations must be at least 0, got -5"),
        ("train maml point-goal --tasks -4", "num_tasks must be at least 1, got -4"),
        ("train maml point-goal --num-inner-steps -1", "num_inner_steps must be at least 0, got -1"),
        ("train maml point-goal --optimizer.learning-rate -1", "learning_rate"),
        (
            "train maml point-goal --inner-learning-rate -1",
            "inner_learning_rate must be finite and not negative, got -1",
        ),
        ("train maml point-goal --seed 99999999999999999999", "seed must be below 2147483648, got 9999"),
        ("train maml point-goal --seed 2147483648", "seed must be below 2147483648, got 2147483648"),
        ("train maml point-goal --outer-surrogate x", "surrogate"),
        ("train maml half-cheetah-direction --family.backend sprin", "backend"),
        ("train maml point-goal --family.horizon 0", "horizon"),
        ("train maml point-goal --policy.hidden 0", "hidden"),
        (
            "train maml point-goal --log-every 3",
            "checkpoint_every must be a multiple of log_every=3, got 50",
        ),
        (
            "train maml point-goal --policy snail --policy.max-steps 50",
            "max_steps of the policy must be at least 100, got 50",
        ),
        (
            "train rl2 grid-goal --optimizer trpo",
            "optimizer of rl2 must do with gradients",
        ),
        ("train maml point-goal --coordinator host:1", "--process-id need --distributed"),
        (
            "train maml point-goal --distributed --coordinator host:1",
            "all or none, not ('host:1', None, None)",
        ),
        (
            "train maml point-goal --distributed --coordinator host --num-processes 2 --process-id 0",
            "coordinator must be HOST:PORT, got 'host'",
        ),
        (
            "train maml point-goal --distributed --coordinator host:1 --num-processes 2 --process-id 2",
            "process_id must be 0 to 1, below num_processes, got 2",
        ),
        (
            "train maml point-goal --distributed --coordinator h:1 --num-processes 0 --process-id 0",
            "num_processes must be at least 1, got 0",
        ),
        (
            "train maml point-goal --distributed --heartbeat-timeout 0",
            "heartbeat_timeout must be at least 1, got 0",
        ),
        ("train --resume", "--run-dir"),
        ("train --resume --run-dir nowhere", "there is no run folder 'nowhere'"),
        ("train --resume --run-dir nowhere --seed 3", "unknown flag '--seed'"),
        ("evaluate", "RUN_DIR"),
        ("evaluate nowhere", "there is no run folder 'nowhere'"),
        ("evaluate nowhere --step 3", "unknown flag '--step'; did you mean '--steps'?"),
        ("evaluate nowhere --split heldut", "heldut"),
        ("list --all", "unknown flag '--all'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words, message, empty_folder, capsys):
    assert cli.main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jmeta: error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train maml point-goal --run-dir {run}", "already exists"),
        ("train --resume --run-dir {run} maml point-goal", "unknown|surplus|unrecognized"),
        ("train scratch point-goal --resume --run-dir {run}", "is of maml point-goal, not of scratch"),
        ("evaluate {run} --tasks -2", "got -2"),
        ("evaluate {run} --steps -1", "--steps must be at least 0, got -1"),
        ("evaluate {run} --episodes 0", "--episodes must be at least 1, got 0"),
        ("evaluate {run} --seed -1", "--seed must be at least 0, got -1"),
        ("evaluate {run} --seed 99999999999999999999", "--seed must be at most 2147483647, got 9999"),
    ],
)
def test_a_mistake_leaves_a_run_as_it_is(words, message, trained, capsys):
    before = files(trained)
    assert cli.main(words.format(run=trained).split()) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert any(part in line.lower() for part in message.lower().split("|")), line
    assert files(trained) == before


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "content", "commands"),
    [
        ("config.json", '{"algo', ("train --resume --run-dir", "evaluate")),
        ("checkpoints", "a file", ("train --resume --run-dir", "evaluate")),
        ("checkpoints", None, ("train --resume --run-dir", "evaluate")),
        ("metrics.jsonl", "{\n{}\n", ("train --resume --run-dir",)),
        ("metrics.jsonl", "5\n", ("train --resume --run-dir",)),
        ("metrics.jsonl", '{"iteration": 1}\n', ("train --resume --run-dir",)),
        ("metrics.jsonl", None, ("train --resume --run-dir",)),
    ],
)
def test_a_damaged_run_is_one_line(name, content, commands, trained, empty_folder, capsys):
    """Before anything is compiled, and without a change of what is left."""
    path = shutil.copytree(trained, empty_folder / "run") / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if content is not None:
        path.write_text(content)
    before = files(empty_folder)
    for command in commands:
        with small.compilations() as compiled:
            assert cli.main([*command.split(), "run"]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("jmeta: error: ") and captured.err.count("\n") == 1, captured.err
        assert captured.out == ""
        assert not any("init" in program or "chunk" in program for program in compiled)
        assert files(empty_folder) == before


def test_a_finished_run_is_not_compiled_again(trained, capsys):
    before = files(trained)
    with small.compilations() as compiled:
        assert cli.main(["train", "--resume", "--run-dir", str(trained)]) == 0
    assert not any("init" in program or "chunk" in program for program in compiled)
    assert files(trained) == before


def test_without_iterations_the_initial_policy_is_saved(empty_folder):
    assert cli.main(["train", "maml", "point-goal", *SMALL, "--iterations", "0", "--run-dir", "run"]) == 0
    run = RunFolder.open("run")
    assert (run.latest_checkpoint(), run.read_metrics()) == (0, [])
    before = files(empty_folder)
    assert cli.main(["train", "--resume", "--run-dir", "run"]) == 0
    assert files(empty_folder) == before


def test_a_run_without_checkpoint_cannot_be_evaluated(empty_folder, capsys):
    RunFolder.create("run", preset("maml", "point-goal"))
    assert cli.main(["evaluate", "run"]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_a_family_without_heldout_tasks_says_so(empty_folder, capsys):
    config = preset("scratch", "half-cheetah-direction")
    run = RunFolder.create("run", config)
    run.save_checkpoint(1, 0)
    assert cli.main(["evaluate", "run", "--split", "heldout"]) == 2
    assert "half-cheetah-direction has no held-out tasks" in capsys.readouterr().err


def test_no_more_cores_are_taken_than_have_tasks(monkeypatch):
    seen = []
    monkeypatch.setattr("jmeta.runtime.configure", lambda num_tasks=None: seen.append(num_tasks))
    monkeypatch.setattr("jmeta.runtime.connect", lambda *addresses, heartbeat_timeout: None)
    start.start_jax(20)
    start.start_jax(64, minibatches=4)  # every device has a part of every minibatch
    start.start_jax(20, processes=start.Processes(distributed=True))  # it counts the cores of the others too
    assert seen == [20, 16, None]


# -- as a user runs it --------------------------------------------------------------------------------


def test_a_mistake_in_a_process_of_its_own(empty_folder):
    with jmeta("train", "maml", "point-goal", "--itterations", 3) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (out, err) == ("", "jmeta: error: unknown flag '--itterations'; did you mean '--iterations'?\n")
    assert list(empty_folder.iterdir()) == []


def test_a_process_that_nobody_started_says_so(empty_folder):
    with jmeta("train", "maml", "point-goal", "--distributed") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("jmeta: error: the processes of the run do not meet: ") and err.count("\n") == 1
    assert "coordinator" in err and out == ""
    assert list(empty_folder.iterdir()) == []


def test_every_name_of_the_package_is_there_in_whatever_order_it_is_asked_for():
    script = "import sys; names = sys.argv[1:]; import jmeta; print([getattr(jmeta, name) for name in names])"
    names = sorted(package.__all__)
    assert "train" in names
    for order in (names, names[::-1]):
        subprocess.run(
            [sys.executable, "-c", script, *order], check=True, capture_output=True, env=ENVIRONMENT
        )


@pytest.mark.parametrize(
    ("command", "slow"),
    [("--help", ("jax", "numpy")), ("list", ("brax", "matplotlib", "scipy.stats"))],
)
def test_a_command_imports_nothing_slow_that_it_does_not_need(command, slow):
    script = f"import sys; from jmeta import cli; cli.main([{command!r}]); "
    script += f"print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


@pytest.fixture
def interruptible():
    """A shell's background jobs ignore Ctrl-C, and so would all that they start."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_is_one_line(empty_folder, interruptible):
    words = [*SMALL, "--iterations", 10**6, "--run-dir", "run"]
    with jmeta("train", "maml", "point-goal", *words) as process:
        for line in process.stderr:
            if "env steps/s" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "jmeta: interrupted; go on with: jmeta train --resume --run-dir run"
    assert "Traceback" not in err and out == ""
