"""The sides that `benchmarks.compare` times, each in a process of its own: jmeta's and those of PyTorch."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import common

JMETA = "jmeta"
PYTORCH = ("eager", "vmap", "compile", "eager x cores", "vmap x cores", "compile x cores")
STORE = "store"  # no side: writes down what they have in common
RL2 = "rl2"


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures."""

    side: str
    family: str
    outer: str  # trpo, adam, or rl2
    tasks: int
    inner_steps: int
    gradient: bool  # of a stored batch alone; else whole iterations
    file: str  # of what the sides have in common


class Side(NamedTuple):
    """One side, ready to run."""

    once: Callable[[], dict[str, float]]  # one run: its seconds; of an iteration steps and the return, too
    after: Callable[[], dict[str, float]]  # what is measured apart after each run
    memory: Callable[[], float]  # peak, MiB
    forget_memory: Callable[[], None]  # the peak is that from here on


def config_of(case: Case) -> Any:
    """RL²'s preset, or MAML's with the case's sizes."""
    from jmeta.presets import preset
    from jmeta.runs.config import resolve

    if case.outer == RL2:
        return preset("rl2", case.family)
    config = preset("maml", case.family, optimizer=case.outer)
    arguments = {**config.algorithm, "num_episodes": 20, "num_inner_steps": case.inner_steps}
    return resolve(
        algorithm=arguments,
        family=config.family,
        policy=config.policy,
        training=dataclasses.asdict(config.training),
    )


def start(case: Case) -> None:
    """Starts JAX on as many cores as share the case's tasks."""
    import jax

    from jmeta import runtime

    runtime.configure(num_tasks=case.tasks // config_of(case).algorithm.get("minibatches", 1))
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are cold ones


class Jmeta:
    """What is needed of jmeta to run a case."""

    def __init__(self, case: Case) -> None:
        import optax

        from jmeta import parallel
        from jmeta.algorithms.gradient import outer
        from jmeta.runs.config import build

        self.case, self.config = case, config_of(case)
        algorithm = self.config.algorithm
        self.family, policy, self.algorithm = build(self.config)
        if case.outer == RL2:
            self.block = parallel.tasks_per_block(1)
            self.play = common.trial_of(self.family, policy, self.family.env.spec.trial_episodes)
        else:
            apart = ("name", "optimizer", "inner_optimizer")  # the inner one is SGD on both sides
            arguments = {name: value for name, value in algorithm.items() if name not in apart}
            self.parts = outer.assemble(self.family, policy, optimizer=optax.identity(), **arguments)
            self.block, self.play = self.parts.block, functools.partial(outer.collect, self.parts)
            self.loss = outer.meta_loss(self.parts)

    def collect(self, params: Any, key: Any) -> Any:
        """Data of fresh tasks [B, ...]."""
        from jmeta import parallel

        tasks, keys = common.fresh_tasks(self.family, self.case.tasks, key)
        return parallel.map_tasks(self.play, params, tasks, keys, block=self.block)

    def gradient(self, params: Any, collected: Any) -> Any:
        """The meta-gradient on collected data."""
        import jax

        from jmeta import parallel

        one = jax.value_and_grad(lambda params, data: self.loss(params, data)[0])
        return parallel.mean_over_tasks(one, params, collected, block=self.block)[1]


def flat(params: Any) -> list[np.ndarray]:
    """The policy's parameters as PyTorch's side has them: kernels and biases in turn, log deviations."""
    layers = [np.asarray(x) for layer in params["policy"] for x in layer]
    return [*layers, np.asarray(params["log_std"])]


def store(case: Case) -> None:
    """Writes down the numbers of the setting, MAML's initial parameters, the batch and its meta-gradient."""
    import jax

    from jmeta import parallel

    jmeta = Jmeta(case)
    common_ground: dict[str, Any] = {"setting": (rl2_setting if case.outer == RL2 else maml_setting)(jmeta)}
    if case.outer != RL2:
        params = jax.jit(jmeta.algorithm.init)(jax.random.key(0)).params
        common_ground |= {"params": flat(params)}
    if case.gradient:
        with jax.set_mesh(parallel.task_mesh()):
            collected = jax.jit(jmeta.collect)(params, jax.random.key(1))
            found = jax.jit(jmeta.gradient)(params, collected)
        collected = jax.device_get(collected)
        vector = np.concatenate([x.ravel() for x in flat(found)])
        common_ground |= {"batch": batch_of(collected), "gradient": vector}
        jmetas_own(case).write_bytes(pickle.dumps(collected))
    pathlib.Path(case.file).write_bytes(pickle.dumps(common_ground))


def stored(case: Case) -> dict[str, Any]:
    """What `store` has written for both sides."""
    written: dict[str, Any] = pickle.loads(pathlib.Path(case.file).read_bytes())
    return written


def jmetas_own(case: Case) -> pathlib.Path:
    """The file of the batch as jmeta has it: PyTorch's process need not import jmeta to read it."""
    return pathlib.Path(case.file).with_suffix(".jmeta")


def batch_of(collected: Any) -> tuple[Any, ...]:
    """Collected data as PyTorch's side has it."""

    def part(batch: Any) -> tuple[Any, ...]:
        return batch.inputs.obs, batch.action, batch.log_prob, batch.advantage, batch.mask

    distribution = collected.distribution
    return part(collected.pre), part(collected.post), distribution.mean, distribution.log_std[:, 0, 0]


def maml_setting(jmeta: Jmeta) -> dict[str, Any]:
    """`pytorch.maml.Setting`, as a dictionary."""
    algorithm, case = jmeta.config.algorithm, jmeta.case
    same = ("inner_learning_rate", "discount", "gae_lambda", "normalize_advantages", "optimizer")
    return {
        "family": case.family,
        "tasks": case.tasks,
        "episodes": algorithm["num_episodes"],
        "horizon": jmeta.family.env.spec.horizon,
        "inner_steps": algorithm["num_inner_steps"],
        "epochs": algorithm["outer_epochs"],
        **{name: algorithm[name] for name in same},
    }


def rl2_setting(jmeta: Jmeta) -> dict[str, Any]:
    """`pytorch.rl2.Setting`, as a dictionary."""
    spec, algorithm = jmeta.family.env.spec, jmeta.config.algorithm
    policy, optimizer = jmeta.config.policy, algorithm["optimizer"]
    plain = {"name": "gru", "size": policy["size"], "memory_span": 1, "head_layers": []}
    shared = {"separate_critic": False, "reward_scale": 1.0, "normalize_observations": False}
    assert policy == plain | shared, "PyTorch's side has a plain GRU"
    assert algorithm["normalize_advantages"] and algorithm["unroll_length"] is None
    same = ("epochs", "minibatches", "clip", "entropy_weight", "value_weight", "discount", "gae_lambda")
    return {
        "family": jmeta.case.family,
        "trials": jmeta.case.tasks,
        "episodes": spec.trial_episodes,
        "horizon": spec.horizon,
        "num_actions": spec.action.num,
        "num_states": spec.obs_size,
        "size": policy["size"],
        "learning_rate": optimizer["learning_rate"],
        "decay_iterations": jmeta.config.training.iterations if optimizer["decay"] else None,
        "max_grad_norm": optimizer["max_grad_norm"],
        **{name: algorithm[name] for name in same},
    }


def jmeta_side(case: Case) -> Side:
    """jmeta, in this process."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from jmeta import parallel, training

    jmeta, mesh = Jmeta(case), parallel.task_mesh()
    jax.set_mesh(mesh)
    memory = (common.peak_memory, common.forget_peak_memory)
    if case.gradient:
        collected = pickle.loads(jmetas_own(case).read_bytes())
        collected = jax.device_put(collected, NamedSharding(mesh, PartitionSpec(parallel.AXIS)))
        params = jax.jit(jmeta.algorithm.init)(jax.random.key(0)).params
        gradient = jax.jit(jmeta.gradient)

        def once() -> dict[str, float]:
            started = time.perf_counter()
            jax.block_until_ready(gradient(params, collected))
            return {"seconds": time.perf_counter() - started}

        return Side(once, dict, *memory)

    chunk = training.compile_chunk(jmeta.algorithm, jmeta.family, num_tasks=case.tasks, length=1)
    state = parallel.replicate(training.initial_state(jmeta.algorithm, seed=0), mesh)
    sampled_by = state.meta.params
    collect = jax.jit(jmeta.collect)
    shown = "return_trial" if case.outer == RL2 else "return_after"

    def iteration() -> dict[str, float]:
        nonlocal state, sampled_by
        sampled_by = jax.tree.map(jnp.copy, state.meta.params)  # the state is given away to the update
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(chunk(state, jnp.int32(1)))
        seconds = time.perf_counter() - started
        steps, reached = float(metrics["env_steps"][0]), float(metrics[shown][0])
        return {"seconds": seconds, "steps": steps, "return": reached}

    def sampling() -> dict[str, float]:
        started = time.perf_counter()
        jax.block_until_ready(collect(sampled_by, jax.random.key(1)))
        return {"sampling": time.perf_counter() - started}

    return Side(iteration, sampling, *memory)


def pytorch_side(case: Case) -> Side:
    """PyTorch, in this process and its workers; on a stored batch with the difference from jmeta's result."""
    from benchmarks.pytorch import maml, rl2

    common_ground = stored(case)
    learner: Any
    if case.outer == RL2:
        learner = rl2.Learner(rl2.Setting(**common_ground["setting"]))
    else:
        style, *several = case.side.split(" x ")
        processes = min(common.cores(), case.tasks) if several else 1
        setting = maml.Setting(**common_ground["setting"])
        learner = maml.Learner(setting, style, common_ground["params"], processes)
    shown = "return_trial" if case.outer == RL2 else "return_after"

    def iteration() -> dict[str, float]:
        found = learner.iteration()
        return {
            "seconds": found["sampling"] + found["update"],
            "sampling": found["sampling"],
            "steps": found["env_steps"],
            "return": found[shown],
        }

    def gradient() -> dict[str, float]:
        started = time.perf_counter()
        vector = learner.mean("gradient", learner.flat).numpy()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "difference": relative(vector, common_ground["gradient"])}

    if case.gradient:
        learner.load(common_ground["batch"])
    return Side(gradient if case.gradient else iteration, dict, learner.memory, learner.forget_memory)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over that of what was expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def serve(case: Case) -> None:
    """Runs the case, again to warm up, and then once for each line of standard input."""
    if case.side in (JMETA, STORE):
        start(case)
    if case.side == STORE:
        store(case)
        return
    side = (jmeta_side if case.side == JMETA else pytorch_side)(case)
    print(json.dumps(side.once()), flush=True)
    print(json.dumps({**side.once(), **side.after()}), flush=True)
    side.forget_memory()
    for _ in sys.stdin:
        print(json.dumps({**side.once(), **side.after(), "peak": side.memory()}), flush=True)


if __name__ == "__main__":
    serve(Case(**json.loads(sys.argv[2])))
