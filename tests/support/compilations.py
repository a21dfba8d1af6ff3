"""Which programs are compiled, as JAX's own monitoring says."""

import contextlib
from collections.abc import Iterator

import jax

TARGET_PASS = ("_detect_batch", "_draw_rows", "_encode", "_propose", "_finish")
"""The compiled functions of `compiled.predictor` and `compiled.point_parallel`."""

_compiled: list[str] = []  # of this process, by the names that JAX gives them: "jit(_detect_batch)"


def _listen(event: str, duration: float, *, fun_name: str = "", **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_listen)


class Compiled(list[str]):
    """Names of the programs compiled inside `compilations`, filled when it ends."""

    @property
    def target_pass(self) -> list[str]:
        """Those that belong to the target pass."""
        return [name for name in self if any(function in name for function in TARGET_PASS)]


@contextlib.contextmanager
def compilations() -> Iterator[Compiled]:
    """Inside, whatever is compiled is counted, also operations that are run one by one."""
    found, before = Compiled(), len(_compiled)
    try:
        yield found
    finally:
        found.extend(_compiled[before:])
