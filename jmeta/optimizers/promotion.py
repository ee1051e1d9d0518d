"""Optimizers under JAX's strict modes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def lenient_promotion() -> Iterator[None]:
    """Lets optax promote types and ranks, as it is written to, where the user forbids that."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
