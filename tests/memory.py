"""What tests do not need any longer is given back to the machine."""

import ctypes
import gc
import os
import pathlib

_RESIDENT = pathlib.Path("/proc/self/statm")
_BOUND = 2**30  # bytes


def give_back():
    """JAX keeps every program that it compiled, and malloc much of what compiling took."""
    if not _RESIDENT.exists() or int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") < _BOUND:
        return
    import jax

    from tests import small

    for function in vars(small).values():  # a later file finds its programs compiled, or compiles them first
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    jax.clear_caches()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
