"""A process that has imported everything and forks one `ntt-jax` for each line on its stdin, so that a start is quick.

Importing JAX takes longer than the small commands of the tests. Nothing but imports happens before the fork: JAX's
backend, and its threads, come to life in the child.

In: one JSON list per start, arguments for `ntt-jax`, the number of CPU devices, and the path for its output. Out:
"PID" when it has been started, "PID STATUS" when it has ended (negative: by that signal).
"""

import contextlib
import importlib
import json
import os
import select
import sys


def child(arguments: list[str], devices: int, output: str) -> None:
    """`ntt-jax` with stdout and stderr to a file; never returns."""
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = 1
    try:
        status = main(arguments)
    finally:
        sys.stdout.flush()
        os._exit(status)


def serve() -> None:
    """Fork for every line, report every child that has ended, until stdin is closed. (No thread: they do not fork.)"""
    waiting, running = b"", True
    while running:
        if select.select([0], [], [], 0.01)[0]:
            waiting += (received := os.read(0, 2**16))
            running = bool(received)
        while b"\n" in waiting:
            line, waiting = waiting.split(b"\n", 1)
            *arguments, devices, output = json.loads(line)
            if (pid := os.fork()) == 0:
                child(arguments, devices, output)
            os.write(1, f"{pid}\n".encode())
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                os.write(1, f"{ended[0]} {os.waitstatus_to_exitcode(ended[1])}\n".encode())


if __name__ == "__main__":
    for module in ("evaluation", "loading", "pipeline", "references.build", "runs.images", "runs.memory_job"):
        importlib.import_module(f"ntt_jax.{module}")
    from jax._src import xla_bridge

    from ntt_jax.cli import main

    assert not xla_bridge.backends_are_initialized()
    serve()
