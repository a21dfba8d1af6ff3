"""Which kind of device a program is traced for.

XLA's CPU backend is fastest with little work at a time, which stays in the cache; accelerators with all of it at once.
Where that is a matter of sizes, the tracing code asks here. Where both ways are traced (`lax.platform_dependent`), the
choice falls when the program is compiled.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_traced_for: ContextVar[str | None] = ContextVar("traced_for", default=None)


def backend() -> str:
    """ "cpu", "gpu" or "tpu": what the program that is being traced will run on, JAX's default backend if unsaid."""
    return _traced_for.get() or jax.default_backend()


def on_cpu() -> bool:
    """Whether the program that is being traced will run on a CPU."""
    return backend() == "cpu"


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Inside, programs are traced for this backend ("cpu", "gpu", "tpu"), whatever this machine has (`ntt_jax.export`).

    What has been traced already is not traced again: give `jax.jit` a new function.
    """
    token = _traced_for.set(name)
    try:
        yield
    finally:
        _traced_for.reset(token)
