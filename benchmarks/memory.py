"""Memory and time of one meta-gradient, for each way to differentiate, against the number of inner steps.

MAML's meta-gradient of one task from stored episodes, nothing steps an environment: random ones of
half-cheetah's size. "Temporary" is what the compiled program allocates beside its arguments and results;
the stored episodes are arguments. The implicit gradient (iMAML) repeats the inner steps forward, then solves
at their end.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import common

OBSERVATION, ACTION = 17, 6  # half-cheetah's
PLAIN = "reverse"
MODES = (PLAIN, "rematerialized", "mixed", "implicit")
MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class Flags:
    """Command-line flags."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Inner steps."""
    episodes: int = 20
    """Episodes before each inner step and after the last."""
    horizon: int = 100
    """Steps in an episode."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy."""
    repeats: int = 5
    """Timed repetitions."""
    json: pathlib.Path | None = None
    """File for what is printed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement."""

    mode: str
    inner_steps: int
    temporary_bytes: int
    argument_bytes: int
    milliseconds: float  # median


def meta_gradient(mode: str, flags: Flags) -> tuple[Callable[..., Any], Any]:
    """The meta-gradient as a function of (params, data), and the policy."""
    import jax
    import optax

    from jmeta import policies
    from jmeta.algorithms.gradient import imaml, outer
    from jmeta.types import Continuous, Env, EnvSpec, TaskFamily, TimeStep

    def sample(key: Any) -> Any:
        return jax.numpy.zeros(())

    def unused(*_: Any) -> Any:  # nothing is sampled here
        return (), TimeStep(jax.numpy.zeros(OBSERVATION), jax.numpy.zeros(()), jax.numpy.array(False))

    spec = EnvSpec(obs_size=OBSERVATION, action=Continuous(ACTION), horizon=flags.horizon)
    family = TaskFamily("stored", Env(unused, unused, spec), sample, sample)
    policy = policies.mlp(spec, hidden=flags.hidden)
    parts = outer.assemble(
        family,
        policy,
        optimizer=optax.sgd(1.0),
        num_episodes=flags.episodes,
        differentiation=PLAIN if mode == "implicit" else mode,
    )

    def implicit(params: Any, data: outer.Collected) -> Any:
        adapted = parts.inner.replay(params, data.pre)
        return imaml.implicit_gradient(parts.learner, adapted, data.post, 10.0, 5)

    plain = jax.value_and_grad(outer.meta_loss(parts), has_aux=True)
    return (implicit if mode == "implicit" else plain), policy


def stored(policy: Any, num_steps: int, flags: Flags) -> Any:
    """Random parameters, and data of one task as `outer.collect` gives it."""
    import jax
    import jax.numpy as jnp

    from jmeta.algorithms.gradient import outer
    from jmeta.estimators.surrogates import PolicyGradientBatch
    from jmeta.types import PolicyInput

    def batch(key: jax.Array) -> PolicyGradientBatch:
        shape = (flags.episodes, flags.horizon)
        key_obs, key_action, key_reward = jax.random.split(key, 3)
        action, reward = jax.random.normal(key_action, (*shape, ACTION)), jax.random.normal(key_reward, shape)
        zeros, false = jnp.zeros(shape), jnp.zeros(shape, bool)
        obs = jax.random.normal(key_obs, (*shape, OBSERVATION))
        return PolicyGradientBatch(
            inputs=PolicyInput(obs, action, reward, false, false),
            action=action,
            log_prob=zeros,
            advantage=reward,
            target=reward,
            reward=reward,
            value=zeros,
            mask=jnp.ones(shape),
            terminated=false,
            last_value=zeros[:, 0],
        )

    params = policy.init(jax.random.key(0))
    pre = jax.vmap(batch)(jax.random.split(jax.random.key(1), num_steps))
    return params, outer.Collected(pre, batch(jax.random.key(2)), adapted=params, distribution=None)


def measure(mode: str, num_steps: int, flags: Flags) -> Row:
    """Compiles one meta-gradient, asks for its memory, and times it."""
    function, policy = meta_gradient(mode, flags)
    found = common.compiled(function, *stored(policy, num_steps, flags), repeats=flags.repeats)
    return Row(
        mode,
        num_steps,
        found.memory.temp_size_in_bytes,
        found.memory.argument_size_in_bytes,
        1000 * statistics.median(found.seconds),
    )


def main() -> None:
    """Runs the command."""
    flags = common.parse(Flags, __doc__)
    from jmeta import runtime

    runtime.configure()
    rows = []
    for mode in MODES:
        for num_steps in flags.steps:
            rows.append(measure(mode, num_steps, flags))
            print(f"{mode}, {num_steps}: done", file=sys.stderr, flush=True)
    cells, before = [], None
    for row in rows:
        growth = ""
        if before is not None and before.mode == row.mode:
            growth = f"{100 * (row.temporary_bytes / before.temporary_bytes - 1):+.1f} %"
        cells.append(
            [
                row.mode,
                str(row.inner_steps),
                f"{row.argument_bytes / MEBI:.2f}",
                f"{row.temporary_bytes / MEBI:.2f}",
                growth,
                f"{row.milliseconds:.1f}",
            ]
        )
        before = row
    size = f"{flags.episodes} episodes x {flags.horizon} steps, hidden layers {flags.hidden}"
    print(f"\nOne meta-gradient of one task, {size}\n")
    header = ["differentiation", "inner steps", "arguments MiB", "temporary MiB", "vs row above", "ms"]
    print(common.markdown(header, cells))
    settings = {name: value for name, value in dataclasses.asdict(flags).items() if name != "json"}
    common.write_json(flags.json, {"flags": settings, "machine": common.machine(), "rows": rows})


if __name__ == "__main__":
    main()
