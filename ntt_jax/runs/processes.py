"""Several processes, on one machine or many, that share one piece of work.

`jax.distributed` lets them find each other, says which of how many this one is (on its own on Slurm, Open MPI and
Cloud TPU) and makes sure that all of them mean the same work. That is done by a helper process which ends before the
work begins: JAX ends every connected process when one of them dies, and here the others are to finish their shares.
Each process then computes on its own devices, and the results meet in a folder that all of them see (run_folder.py).
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

from ntt_jax.errors import InputError

Item = TypeVar("Item")

TIMEOUT = 300.0
"""Seconds within which all processes must have been started."""

AUTOMATIC = "auto"
"""Instead of a coordinator's address: ask the cluster."""


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and how they find each other. One alone by default."""

    index: int = 0
    count: int = 1
    coordinator: str | None = None

    def shares(self, items: Sequence[Item], todo: Callable[[Item], bool], group: int) -> list[list[Item]]:
        """Every process's share of a list that all have.

        Items stay in groups of `group` consecutive ones, in which each keeps its place whatever was done before; groups
        without anything `todo` are left out. Shares are consecutive and equal in length but for one group.
        """
        groups = [items[start : start + group] for start in range(0, len(items), group)]
        needed = [some for some in groups if any(map(todo, some))]
        ends = [len(needed) * index // self.count for index in range(self.count + 1)]
        return [list(chain.from_iterable(needed[start:end])) for start, end in pairwise(ends)]

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


def join(coordinator: str | None, index: int | None, count: int | None, *, timeout: float = TIMEOUT) -> Processes:
    """Who this process is: from the arguments, or what is None from the cluster. One alone without a coordinator.

    Raises `InputError` when the cluster does not say, or the others do not come within `timeout` seconds.
    """
    if coordinator is None:
        return Processes()
    if coordinator != AUTOMATIC and index is not None and count is not None:
        return Processes(index, count, coordinator)
    answer = _meet(coordinator, index, count, None, timeout, lambda: None)
    if answer["devices"] != "all":  # one process for each device: the launcher's choice
        os.environ["JAX_CUDA_VISIBLE_DEVICES"] = os.environ["JAX_ROCM_VISIBLE_DEVICES"] = answer["devices"]
    return Processes(answer["index"], answer["count"], answer["coordinator"])


def agree(
    processes: Processes,
    description: dict[str, Any],
    *,
    timeout: float = TIMEOUT,
    watch: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Wait for all processes and return what each of them says of the work, by index.

    description: JSON-ready data. watch: called now and then while waiting; may raise to stop it. Raises `InputError`
    when not all of them come within `timeout` seconds.
    """
    if processes.count == 1:
        return [description]
    assert processes.coordinator is not None
    return _meet(processes.coordinator, processes.index, processes.count, description, timeout, watch)["descriptions"]


def _meet(
    coordinator: str,
    index: int | None,
    count: int | None,
    description: Any,
    timeout: float,
    watch: Callable[[], None],
) -> dict[str, Any]:
    """Run the helper process; whatever happens to it becomes one `InputError`."""
    request = {
        "coordinator": None if coordinator == AUTOMATIC else coordinator,
        "index": index,
        "count": count,
        "description": description,
        "timeout": int(timeout) + 60,  # JAX ends the helper then, with a page of text: we are to be earlier
    }
    # The helper computes nothing: it must not take an accelerator from the process that will. Errors are logged: where
    # it cannot listen, JAX may crash before it says so.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    helper = subprocess.Popen(
        [sys.executable, "-P", "-m", "ntt_jax.runs.processes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    where = "the cluster's coordinator" if coordinator == AUTOMATIC else coordinator
    deadline = time.monotonic() + timeout
    pending: str | None = json.dumps(request)
    try:
        while True:
            try:
                output, errors = helper.communicate(pending, timeout=0.25)
                break
            except subprocess.TimeoutExpired:
                pending = None
                watch()
                if time.monotonic() > deadline:
                    raise InputError(
                        f"not all {count or ''} processes came to {where} within {timeout:.0f} seconds; start the same "
                        "command with every --process-id, and give all the same --coordinator and --num-processes"
                    ) from None
    finally:
        if helper.poll() is None:
            helper.kill()
            helper.communicate()
    for line in output.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            if "error" not in answer:
                return answer
            errors = answer["error"]
    raise InputError(f"--coordinator: the processes could not meet at {where}: {_reason(errors)}")


def _reason(text: str) -> str:
    """What the helper died of, in one line."""
    if "Failed to start RPC server" in text or "add_port" in text:
        return "cannot listen there; the port is taken, or the address is not this machine's (process 0 must run on it)"
    lines = [
        line for line in text.splitlines() if line.strip() and not re.match(r"\s*(@|\*\*\*|\[Gloo\]|E\d{4} )", line)
    ]
    return " ".join((lines[0] if lines else "no reason given").split())[:300]


def _helper() -> None:
    """The helper process: a request on stdin, the answer, one line of JSON, on stdout."""
    request = json.load(sys.stdin)
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM over
    given = [request[name] for name in ("coordinator", "index", "count")]
    try:
        jax.distributed.initialize(
            request["coordinator"],
            request["count"],
            request["index"],
            initialization_timeout=request["timeout"],
            cluster_detection_method=None if None in given else "deactivate",
        )
        text = np.frombuffer(json.dumps(request["description"]).encode(), np.uint8)
        lengths = multihost_utils.process_allgather(np.array(len(text)))
        padded = np.zeros(lengths.max(), np.uint8)
        padded[: len(text)] = text
        texts = multihost_utils.process_allgather(padded)
        answer = {
            "index": jax.process_index(),
            "count": jax.process_count(),
            "coordinator": request["coordinator"] or AUTOMATIC,
            "devices": jax.config.read("jax_cuda_visible_devices"),
            "descriptions": [
                json.loads(t.tobytes()[:n]) for t, n in zip(texts, lengths.reshape(-1).tolist(), strict=True)
            ],
        }
        jax.distributed.shutdown()
    except Exception as error:  # JAX raises many types; the parent turns the text into its own
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # without the runtime's own goodbyes, which may wait for the others


if __name__ == "__main__":
    _helper()
