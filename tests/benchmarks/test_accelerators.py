"""What a compiled program starts is counted; compiling for accelerators needs compilers that are not here."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerators

TEXT = """
HloModule example

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %a = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %sum = f32[4,8]{1,0} all-reduce(%a), to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i, %sum)
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %b = pred[32]{0} fusion(%x.1), kind=kLoop, calls=%fused.1
  %loop = (s32[], f32[4,8]{1,0}) while(%t.1), body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %copy = f32[4,8]{1,0} copy(%b)
}
"""


def test_kernels_of_a_loop_count_as_often_as_it_runs():
    whole = accelerators.read(TEXT)
    assert whole.total("kernels") == 2 + 10
    assert whole.total("collectives") == 10
    assert whole.total("bytes") == (128 + 32) + (32 + 128) + 10 * 256
    ((times, loop),) = whole.loops()
    assert times == 1 and loop.trips == 10


def test_a_program_of_this_jax_can_be_read():
    def fn(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y) @ x, x)

    compiled = jax.jit(fn).lower(jnp.ones((8, 8))).compile()
    whole = accelerators.read(compiled.as_text())
    assert [loop.trips for _, loop in whole.loops()] == [7]
    assert whole.total("kernels") >= 7 and whole.total("bytes") >= 7 * 256


def test_a_mistake_costs_a_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["accelerators", "--targets", "abacus"])
    with pytest.raises(SystemExit, match="targets must be of h200, .*, got 'abacus'"):
        accelerators.main()
