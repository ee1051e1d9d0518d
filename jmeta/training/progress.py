"""What a callback is told about a run while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmeta.types import MetaState


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is given after each chunk of iterations.

    Attributes:
      iteration: meta-iterations done.
      iterations: total number of meta-iterations.
      metrics: of the last iteration.
      env_steps_per_second: environment steps per second, over the chunk.
      seconds_left: until the end, at the rate of this chunk.
      records: metrics of every iteration of the chunk.
      evaluation: the record of an evaluation that was made after the chunk, as `train` describes it.
    """

    iteration: int
    iterations: int
    metrics: dict[str, float]
    env_steps_per_second: float
    seconds_left: float
    records: Sequence[dict[str, float]] = ()
    evaluation: dict[str, Any] | None = None
    _live_state: MetaState | None = dataclasses.field(default=None, repr=False)

    @property
    def state(self) -> MetaState:
        """A copy of the state after the chunk, which stays valid.

        Ask for it within the callback: the next chunk reuses the memory of the original.
        """
        leaves = jax.tree.leaves(self._live_state)
        if not leaves or any(leaf.is_deleted() for leaf in leaves):
            raise RuntimeError("state must be asked for within the callback, training has gone on")
        return jax.tree.map(jnp.copy, self._live_state)
