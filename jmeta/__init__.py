"""jmeta: a functional meta-reinforcement-learning engine in JAX."""

import lazy_loader

# Each name of `__init__.pyi` is imported when it is first used: `jmeta --help` need not wait for JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
