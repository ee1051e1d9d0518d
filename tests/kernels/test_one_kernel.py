"""One kernel for a batch gives what `jax.vmap` gives, also of numbers that are not finite."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import kernels
from jmeta.kernels import cpu, one_kernel
from tests.kernels.functions import FUNCTIONS, INDICES, matrix

needs_kernel = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))


def assert_same(found, expected, rtol=2e-6, atol=2e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def kernels_in(fn, *args, platform="cpu"):
    """How often a compiled function calls a kernel."""
    lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("custom_call @jmeta_")


def all_functions(x):
    return {name: fn(x) for name, fn in FUNCTIONS.items()}


@needs_kernel
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_every_operation(double):
    with jax.enable_x64(double):
        x = jax.random.normal(jax.random.key(0), (37, 3, 4))
        found = jax.jit(jax.vmap(one_kernel(all_functions)))
        assert kernels_in(jax.vmap(one_kernel(all_functions)), x) == 1
        expected = jax.jit(jax.vmap(all_functions))(x)
        tolerance = 1e-13 if double else 2e-5
        for name, result in found(x).items():
            assert_same(result, expected[name], tolerance, tolerance)


def product(x):
    return jnp.sin(x @ matrix()).sum()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (15,), (16,), (33,), (2, 0), (0, 2), (3, 7)])
def test_any_batch(shape):
    plain, mapped = product, one_kernel(product)
    for _ in shape:
        plain, mapped = jax.vmap(plain), jax.vmap(mapped)
    x = jnp.arange(math.prod(shape) * 3.0).reshape(*shape, 3) / 50
    assert_same(mapped(x), plain(x))


def test_nested_maps_with_an_argument_that_the_inner_one_shares():
    def fn(tree, scale):
        return {"y": tree["x"] @ matrix() * scale, "n": tree["n"] + 1, "nothing": tree["x"][:0]}

    def nested(fn):
        return jax.vmap(jax.vmap(fn, in_axes=(0, None)), in_axes=(1, 0), out_axes=1)

    tree = {"x": jax.random.normal(jax.random.key(0), (5, 2, 3)), "n": jnp.arange(10).reshape(5, 2)}
    scale = jnp.array([1.0, -3.0])
    assert_same(nested(one_kernel(fn))(tree, scale), nested(fn)(tree, scale))
    within = jax.jit(
        lambda tree: jax.lax.map(lambda row: jax.vmap(one_kernel(fn), (0, None))(row, 2.0), tree)
    )
    assert_same(within(tree), jax.vmap(jax.vmap(lambda row: fn(row, 2.0)))(tree))


def test_random_numbers_are_drawn_as_before():
    def fn(key, scale):
        key_a, key_b = jax.random.split(key)
        noise = jax.random.normal(key_a, (3,)) * scale
        return product(noise), noise + jax.random.uniform(jax.random.fold_in(key_b, 3))

    keys = jax.random.split(jax.random.key(0), 5)
    mapped = jax.vmap(one_kernel(fn), (0, None))
    assert_same(mapped(keys, 2.0), jax.vmap(fn, (0, None))(keys, 2.0))
    if cpu.why_not() is None:
        assert kernels_in(mapped, keys, 2.0) == 1


def test_a_key_that_is_passed_on_leaves_the_function_as_it_is():
    def fn(key):
        return jax.random.split(key)[0], jax.random.uniform(key)

    keys = jax.random.split(jax.random.key(0), 5)
    for found, expected in zip(jax.vmap(one_kernel(fn))(keys), jax.vmap(fn)(keys), strict=True):
        same = found == expected
        assert same.all()


@pytest.mark.parametrize("inside", [False, True], ids=["around the map", "inside the map"])
def test_derivatives_are_the_plain_function_s(inside):
    def fn(x, n):
        return jnp.sin(x[INDICES] @ matrix()).sum() * n

    def total(fn):
        if inside:
            return lambda x, n: jax.vmap(jax.value_and_grad(fn), (0, None))(x, n)
        return jax.value_and_grad(lambda x, n: jax.vmap(fn, (0, None))(x, n).sum())

    x = jax.random.normal(jax.random.key(0), (5, 3))
    assert_same(total(one_kernel(fn))(x, 3), total(fn)(x, 3))


@needs_kernel
def test_which_path_follows_the_platform_that_is_compiled_for():
    x = jnp.ones((5, 3))
    mapped = jax.vmap(one_kernel(product))
    assert kernels_in(mapped, x) == 1
    traced = jax.jit(mapped).trace(x)
    on_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
    on_gpu = traced.lower(lowering_platforms=("cuda",)).as_text()
    elsewhere = traced.lower(lowering_platforms=("METAL",)).as_text()
    assert on_tpu.count("@tpu_custom_call") == 1
    assert not any("@jmeta_" in text or "dot_general" in text for text in (on_tpu, on_gpu))
    assert "dot_general" in elsewhere


NUMBERS = [0.0, -0.0, 1.0, -1.0, 1e-30, 1e37, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("name", ["maximum", "minimum", "arctan2"])
def test_what_is_not_finite_passes_through_functions_of_two(name):
    fn = getattr(jnp, name)
    x, y = jnp.meshgrid(jnp.array(NUMBERS), jnp.array(NUMBERS))
    found = jax.vmap(jax.vmap(one_kernel(fn)))(x, y)
    np.testing.assert_allclose(found, getattr(np, name)(x, y), rtol=5e-7)
    if name == "arctan2":
        np.testing.assert_array_equal(np.signbit(found), np.signbit(np.arctan2(x, y)))


def test_what_is_not_finite_passes_through_functions_of_one():
    def fn(x):
        return (
            jnp.clip(x, -1, 1),
            jnp.maximum(x, 0.5),
            jnp.sign(x),
            jnp.abs(x),
            jnp.sqrt(x),
            jnp.isfinite(x),
            x > 0,
        )

    x = jnp.array(NUMBERS)
    assert_same(jax.vmap(one_kernel(fn))(x), jax.vmap(fn)(x))


def test_an_example_that_is_not_finite_spoils_no_other():
    x = jnp.ones((20, 3)).at[7, 1].set(jnp.nan)
    found = np.isfinite(jax.vmap(one_kernel(product))(x))
    assert found.sum() == 19 and not found[7]


def test_the_error_of_atan2():
    angles = np.linspace(-np.pi, np.pi, 20_001)
    y, x = np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)
    found = jax.vmap(one_kernel(jnp.arctan2))(y, x)
    np.testing.assert_allclose(found, np.arctan2(y.astype(float), x.astype(float)), rtol=2e-7)


def unknown(x):
    return jnp.sort(x)


def test_a_function_that_is_not_known_is_mapped_otherwise_and_the_log_says_why(caplog):
    used = []

    def otherwise(fn):
        def mapped(*args):
            used.append(len(args))
            return fn(*args)

        return mapped

    x = jax.random.normal(jax.random.key(0), (5, 3))
    with caplog.at_level(logging.INFO, "jmeta.kernels"):
        assert_same(jax.vmap(one_kernel(unknown, otherwise=otherwise))(x), jnp.sort(x))
    assert used and ("has the operation sort" in caplog.text or cpu.why_not())


def test_without_a_compiler_everything_works_and_the_log_says_why(caplog, monkeypatch):
    monkeypatch.setattr(cpu, "why_not", lambda: "nobody wrote one")
    x = jax.random.normal(jax.random.key(0), (5, 3))
    with caplog.at_level(logging.INFO, "jmeta.kernels"):
        assert_same(jax.vmap(one_kernel(product))(x), jax.vmap(product)(x))
    assert "without a kernel" in caplog.text and "nobody wrote one" in caplog.text


@pytest.mark.parametrize("machine", ["riscv64", "s390x"])
def test_unknown_processors_have_none(machine, monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    assert machine in cpu.why_not.__wrapped__()


@needs_kernel
def test_a_kernel_is_kept_on_disk_and_compiled_anew_if_the_file_is_damaged(tmp_path, monkeypatch):
    calls = []
    compile_ = cpu._compile
    monkeypatch.setattr(cpu, "_compile", lambda *args: calls.append(1) or compile_(*args))
    monkeypatch.setattr(cpu, "_registered", set())
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        names = set()

        def again():
            """As in a new process, which has to register the kernel under the address that it has there."""
            cpu._registered.clear()
            monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda name, *args, **kwargs: names.add(name))
            cpu.register(kernels.Program(jax.make_jaxpr(lambda x: x * 3 + 7)(1.0)))

        again()
        again()
        assert len(calls) == 1 and len(names) == 1
        (file,) = (tmp_path / "kernels").iterdir()
        whole = file.read_bytes()
        for damaged in (whole[:-1], b"", whole[:70] + b"\0" + whole[71:]):
            file.write_bytes(damaged)
            again()
            assert file.read_bytes() == whole
        assert len(calls) == 4
        file.unlink()
        (tmp_path / "kernels").rmdir()
        (tmp_path / "kernels").write_text("in the way")
        again()
        assert len(calls) == 5
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@needs_kernel
def test_what_llvm_cannot_compile_is_mapped_otherwise(caplog, monkeypatch):
    def fail(ir, target):
        raise RuntimeError("no such register")

    monkeypatch.setattr(cpu, "_compile", fail)
    monkeypatch.setattr(cpu, "_cached", lambda key, make: make())
    x = jax.random.normal(jax.random.key(0), (5, 3))
    with caplog.at_level(logging.INFO, "jmeta.kernels"):
        assert_same(jax.vmap(one_kernel(lambda x: x * 37.125))(x), x * 37.125)
    assert "LLVM can't compile (no such register)" in caplog.text


@needs_kernel
def test_a_kernel_refuses_buffers_that_it_is_not_for():
    name = cpu.register(kernels.Program(jax.make_jaxpr(lambda x: x * 2)(1.0)))
    call = functools.partial(jax.ffi.ffi_call, name)
    with pytest.raises(jax.errors.JaxRuntimeError, match="buffers that it is not for"):
        call(jax.ShapeDtypeStruct((3,), float))(jnp.arange(3))
    with pytest.raises(jax.errors.JaxRuntimeError, match="buffers that it is not for"):
        call(jax.ShapeDtypeStruct((3,), float))(jnp.ones(3), jnp.ones(3))


@needs_kernel
def test_the_version_of_the_interface_is_the_header_s():
    import re

    header = (jax.ffi.include_dir() + "/xla/ffi/api/c_api.h", "XLA_FFI_API_M(?:AJOR|INOR) (\\d+)")
    with open(header[0]) as file:
        major, minor = map(int, re.findall(header[1], file.read()))
    assert (major, minor) >= cpu._HEADER and major == cpu._HEADER[0]
