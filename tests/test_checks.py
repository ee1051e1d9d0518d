import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import checks

NEVER_NUMBERS = ["1", None, True, np.bool_(True), 1j, [1.0], jnp.ones(1), jax.random.key(0)]


@pytest.mark.parametrize("value", [2, np.int64(2), jnp.int32(2)])
def test_an_integer_is_one_whatever_its_type(value):
    checks.at_least(2, size=value)


@pytest.mark.parametrize(
    "value, message",
    [
        (1, "size must be at least 2, got 1"),
        (2**31, "size must be at most 2147483647, got 2147483648"),
        (2.0, "size must be an integer, got 2.0"),
        (math.nan, "size must be an integer, got nan"),
        (True, "size must be an integer, got True"),
        (jnp.array(True), "size must be an integer, got Array"),
        ("3", "size must be an integer, got '3'"),
        (None, "size must be an integer, got None"),
    ],
)
def test_counts_are_integers_in_range(value, message):
    with pytest.raises(ValueError, match=message):
        checks.at_least(2, size=value)


def test_a_row_of_sizes():
    assert checks.sizes(hidden=[4, np.int64(2)]) == (4, 2) and checks.sizes(hidden=()) == ()


@pytest.mark.parametrize(
    "value, message",
    [
        (4, r"hidden must be a row of integers, such as \(64, 64\), got 4"),
        ("44", "hidden must be a row of integers, .*, got '44'"),
        (None, "hidden must be a row of integers, .*, got None"),
        (jnp.array(3), "hidden must be a row of integers"),
        ((4, 0), "hidden must be at least 1, got 0"),
        ((1.5,), "hidden must be an integer, got 1.5"),
    ],
)
def test_what_is_no_row_of_sizes(value, message):
    with pytest.raises(ValueError, match=message):
        checks.sizes(hidden=value)


def test_a_traced_count_is_told_to_be_static():
    with pytest.raises(ValueError, match="size must be known before compilation.*static_argnames"):
        jax.jit(lambda size: checks.at_least(1, size=size))(3)


@pytest.mark.parametrize(
    "check, allowed, refused, requirement",
    [
        (checks.finite, [0, -1.5, 1e30], [], "be finite"),
        (checks.positive, [1, 1e-30], [0, -0.1, 1e-50], "be positive and finite"),
        (checks.not_negative, [0, 0.0, 1e30], [-1, -1e-30], "be finite and not negative"),
        (checks.in_unit_interval, [0, 1, 0.5], [-0.1, 1.01], r"be in \[0, 1\]"),
    ],
)
def test_real_numbers_are_in_range_and_never_nan_or_infinite(check, allowed, refused, requirement):
    for value in allowed:
        check(rate=value)
        check(rate=np.float32(value))
        check(rate=jnp.float32(value))
    for value in [*refused, math.nan, math.inf, -math.inf, 1e39, 10**400, jnp.float32(jnp.nan)]:
        with pytest.raises(ValueError, match=f"rate must {requirement}, got"):
            check(rate=value)
    for value in NEVER_NUMBERS:
        with pytest.raises(ValueError, match="rate must be a number, got"):
            check(rate=value)


@pytest.mark.parametrize(
    "interval, low, high", [("(0, 1)", 0, 0), ("[0, 1)", 1, 0), ("(0, 1]", 0, 1), ("[0, 1]", 1, 1)]
)
def test_the_ends_of_an_interval_belong_to_it_or_not(interval, low, high):
    for end, belongs in ((0.0, low), (1.0, high)):
        if belongs:
            checks.in_interval(interval, rate=end)
        else:
            with pytest.raises(ValueError, match="rate must be in .*0, 1.*, got"):
                checks.in_interval(interval, rate=end)


def test_a_traced_number_passes_every_range():
    def checked(x):
        checks.positive(x=x)
        checks.in_unit_interval(x=x)
        return x

    np.testing.assert_array_equal(jax.vmap(checked)(jnp.array([-1.0, 2.0])), [-1, 2])
    with pytest.raises(ValueError, match="x must be a number, got"):
        jax.jit(checked)(jnp.ones(2))


def test_a_name_is_one_of_the_choices():
    checks.one_of(["a", "b"], baseline="b")
    for value in ("c", None, ["a"]):
        with pytest.raises(ValueError, match="baseline must be one of a, b, got"):
            checks.one_of(["a", "b"], baseline=value)


def test_a_boolean_is_no_number():
    checks.boolean(first_order=True)
    for value in (1, "yes", None):
        with pytest.raises(ValueError, match="first_order must be True or False, got"):
            checks.boolean(first_order=value)
