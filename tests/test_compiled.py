"""Programs are made once, for as long as their owner lives."""

import copy
import functools
import gc
import pickle
import weakref

import jax
import pytest

from jmeta.compiled import once
from tests import small


def function():
    return lambda x: 2 * x


class Owner:
    def double(self, x):
        return 2 * x


@pytest.mark.parametrize("make", [function, lambda: Owner().double, lambda: functools.partial(max, 0)])
def test_the_same_uses_give_the_same_program(make):
    owner, spec = make(), object()
    program = once(object, owner, 1, (spec, None), "a")
    assert once(object, owner, 1, (spec, None), "a") is program
    for other in (
        (2, (spec, None), "a"),
        (1, (object(), None), "a"),
        (1, (None, spec), "a"),
        (True, (spec, None), "a"),
    ):
        assert once(object, owner, *other) is not program
    assert once(object, make(), 1, (spec, None), "a") is not program


def test_methods_of_one_object_are_told_apart():
    owner = Owner()
    assert once(object, owner.double) is once(object, owner.double)
    assert once(object, owner.double) is not once(object, Owner().double)


def test_an_owner_without_attributes_is_served_too():
    assert once(lambda: 1, len) == 1


def test_nothing_outlives_the_owner():
    def use():
        owner = function()
        program = once(lambda: jax.jit(lambda x: owner(x)), owner)
        assert program(2.0) == 4
        return [weakref.ref(owner), weakref.ref(program)]

    seen = use()
    gc.collect()
    assert [reference() for reference in seen] == [None, None]


def test_only_the_programs_used_last_are_kept():
    owner = function()
    first = once(object, owner, 0)
    for size in range(1, 100):
        once(object, owner, size)
        assert once(object, owner, 0) is first
    assert len(vars(owner)["_jmeta_programs"]) < 50


def test_copies_leave_the_programs_behind():
    owner = Owner()
    program = once(function, owner.double)
    for other in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        assert once(function, other.double) is not program


def test_a_program_compiles_once():
    def run():
        return once(lambda: jax.jit(owner), owner, 3)(1.0)

    owner = function()
    run()
    with small.compilations() as compiled:
        run()
    assert compiled == []
