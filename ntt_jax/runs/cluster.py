"""Groups of work on the workers of a Ray cluster (docs/parallel.md).

This process keeps the run folder, its lock and its records. Workers (`cluster_worker`) load the models once, do whole
groups, and send back records, in any order; `cluster_pool` hands the groups out.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ntt_jax.errors import InputError
from ntt_jax.runs.cluster_pool import AHEAD, Pool
from ntt_jax.runs.cluster_worker import GroupWork, GroupWorker
from ntt_jax.runs.models import Compute

STORE_BYTES = 2**28
"""Shared memory of a cluster that a command starts for itself: records are small."""
_REACHED_WITHIN = 5  # seconds


def map_groups(
    work: GroupWork, groups: Sequence[Sequence[Any]], compute: Compute
) -> Generator[list[dict[str, Any]], None, None]:
    """The records of every group, in whatever order the workers finish.

    compute: `ray` says which cluster; `batch_size`, `dtype` and the number of cores that divide an image's points are
    those of each worker, so that it computes what one process would. Raises `InputError` if Ray is missing, the cluster
    cannot be reached or has no room for a worker, or a worker cannot begin.
    """
    ray = _import_ray()
    cores = len(compute.devices or ()) if compute.divide == "points" else 1
    with connected(ray, str(compute.ray)):
        gpus = _gpus(ray)
        if _room(ray, cores, gpus) < 1:
            most = max((int(node.get("CPU", 0)) for node in _nodes(ray)), default=0)
            raise InputError(
                f"--ray: a worker needs {cores} cores and no machine of the cluster has more than {most}; --cores"
            )
        # What goes wrong is for the pool to decide on: Ray itself repeats nothing.
        options = {
            "num_cpus": cores,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": AHEAD + 1,
        }
        worker = ray.remote(**options)(GroupWorker)
        sent = ray.put(pickle.dumps(work))
        pool = Pool(
            ray,
            lambda: worker.remote([sent], compute.dtype, compute.batch_size, cores, _cache()),
            lambda: _room(ray, cores, gpus),
            work,
            groups,
        )
        yield from pool.results()


def _import_ray() -> Any:
    # Ray writes to stdout, in a dozen lines, that a worker or a machine was lost: the run goes on, and stdout is ours.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError:
        raise InputError("--ray: Ray is not installed; `pip install 'ntt-jax[ray]'` on every machine") from None
    return ray


@contextlib.contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connected to the cluster at an address, "auto" (found on this machine), or "local": one on this machine alone."""
    mine = not ray.is_initialized()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of the run
        os.environ.setdefault("RAY_worker_niceness", "0")  # workers of "local" run as this command does, not at 15
        os.environ.setdefault("RAY_enable_worker_prestart", "0")  # none but those asked for: each takes seconds
        try:
            _probe(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
            more = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address == "local" else {}
            with warnings.catch_warnings():  # Ray starts its processes by fork and exec, which is safe
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(address=address, configure_logging=True, **quiet, **more)
        except Exception as error:  # a cluster that does not start in time is no more than an Exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise InputError(
                f"--ray: no cluster at {address!r} ({reason}); `ray start --head` starts one, `--ray local` needs none"
            ) from None
    if main:
        signal.signal(signal.SIGTERM, handler)  # Ray ends the process there and then
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _probe(address: str) -> None:
    """Raise `OSError` if nothing listens at HOST:PORT. Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_WITHIN).close()


def _nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _gpus(ray: Any) -> int:
    """GPUs of each worker: one, where the cluster has any."""
    return 1 if any(node.get("GPU", 0) >= 1 for node in _nodes(ray)) else 0


def _room(ray: Any, cores: int, gpus: int) -> int:
    """How many workers the machines of the cluster that live now can hold."""
    return sum(
        int(min(node.get("CPU", 0) // cores, node.get("GPU", 0) if gpus else node.get("CPU", 0)))
        for node in _nodes(ray)
    )


def _cache() -> str | None:
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    return None if folder is None else str(Path(folder).resolve())
