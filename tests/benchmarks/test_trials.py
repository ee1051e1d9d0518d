"""The throughput of trials: the count of operations that is its floor, and mistakes in the command."""

import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import trials

LEFT, RIGHT = jnp.zeros((2, 3)), jnp.zeros((3, 3))
ONE = 2 * 2 * 3 * 3  # LEFT @ RIGHT: two operations for each of 2 x 3 x 3 products


def test_a_product_in_a_loop_counts_as_often_as_it_runs():
    def looped(x, weights):
        return jax.lax.scan(lambda x, _: (x @ weights, None), x, length=7)[0]

    assert trials.matrix_flops(jnp.matmul, LEFT, RIGHT) == ONE
    assert trials.matrix_flops(looped, LEFT, RIGHT) == 7 * ONE
    assert (
        trials.matrix_flops(jax.jit(jax.vmap(looped, (0, None))), LEFT[None].repeat(5, 0), RIGHT) == 35 * ONE
    )
    # Backward a product each for x and the weights; the loss itself is not asked for, but its products are.
    gradient = jax.grad(lambda weights: (LEFT @ weights @ weights).sum())
    assert trials.matrix_flops(gradient, RIGHT) == (1 + 1 + 2) * ONE


def test_what_is_not_used_is_not_counted():
    def unused(x, weights):
        x @ weights
        return x

    assert trials.matrix_flops(unused, LEFT, RIGHT) == 0


def test_a_loop_of_unknown_length_is_refused():
    def looped(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ RIGHT, x)

    with pytest.raises(AssertionError, match="while"):
        trials.matrix_flops(looped, LEFT)


@pytest.mark.parametrize(
    "arguments, named",
    [(["--lengths"], "lengths"), (["--lengths", "10", "0"], "lengths"), (["--trials", "2"], "4 minibatches")],
)
def test_a_mistake_is_one_line(monkeypatch, arguments, named):
    monkeypatch.setattr(sys, "argv", ["trials", *arguments])
    with pytest.raises(SystemExit) as stopped:
        trials.main()
    message = str(stopped.value)
    assert message.startswith("benchmarks: error: ") and named in message and "\n" not in message
