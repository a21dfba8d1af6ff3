"""Groups of work on the workers of a Ray cluster (docs/parallel.md).

This process keeps the run folder, its lock and its records. Workers (`cluster_worker`) load the models once, do whole
groups, and send back records, in any order; `cluster_pool` hands the groups out.
"""

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ntt_jax.errors import InputError
from ntt_jax.runs.cluster_head import REACHED_WITHIN, ClusterLost, Head, host_and_port, knock
from ntt_jax.runs.cluster_pool import AHEAD, NO_STORE, Pool, last_line, store_errors
from ntt_jax.runs.cluster_worker import GroupWork, GroupWorker, versions
from ntt_jax.runs.models import Compute
from ntt_jax.text import one_line

STORE_BYTES = 2**28
"""Shared memory of a cluster that a command starts for itself: records are small."""
_process = {"lost": False}  # Ray is one for each process


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
    with connected(ray, str(compute.ray)), contextlib.closing(Head(ray, str(compute.ray))) as head:
        machines = head.nodes() or []
        gpus = _gpus(machines)
        if _room(machines, cores, gpus) < 1:
            most = max((int(node["Resources"].get("CPU", 0)) for node in machines), default=0)
            raise InputError(
                f"--ray: a worker needs {cores} cores and no machine of the cluster has more than {most}; --cores"
            )
        # What goes wrong is for the pool to decide on: Ray itself repeats nothing.
        options = {
            "num_cpus": cores,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": AHEAD + 2,  # groups, `begin`, and whether it lives
        }
        worker, here = ray.remote(**options)(GroupWorker), versions()
        try:
            sent = ray.put(pickle.dumps(work))
        except store_errors(ray) as error:
            raise InputError(f"--ray: {NO_STORE} ({last_line(error)})") from None
        pool = Pool(
            ray,
            lambda: worker.remote([sent], compute.dtype, compute.batch_size, cores, _cache(), here),
            head.nodes,
            lambda nodes: _room(nodes, cores, gpus),
            work,
            groups,
        )
        yield from pool.results()


def _import_ray() -> Any:
    # Ray writes to stdout, in a dozen lines, that a worker or a machine was lost: the run goes on, and stdout is ours.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # With the first such line it would put a `print` of its own in place of Python's, in the whole program.
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--ray: Ray is not installed; `pip install 'ntt-jax[ray]'` on every machine") from None
    return ray


@contextlib.contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connected to the cluster at an address, "auto" (found on this machine), or "local": one on this machine alone."""
    if _process["lost"]:
        raise ClusterLost("--ray: this process has lost its cluster, and Ray with it; start the program again")
    mine = not ray.is_initialized()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    heard = _silence() if mine else lambda: None
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of the run
        os.environ.setdefault("RAY_worker_niceness", "0")  # workers of "local" run as this command does, not at 15
        # No worker but those asked for: each takes seconds, and one that dies as it starts would keep this process
        # waiting for ever.
        os.environ.setdefault("RAY_enable_worker_prestart", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        given = (os.environ.get("RAY_ADDRESS") if address == "auto" else None) or address
        try:
            _probe(given)
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
            more = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address == "local" else {}
            with warnings.catch_warnings():  # Ray starts its processes by fork and exec, which is safe
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(address=address, configure_logging=True, **quiet, **more)
        except Exception as error:  # a cluster that does not start in time is no more than an Exception
            heard()
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            where = f"{_shown(given)!r}{'' if given == address else ', which RAY_ADDRESS names'}"
            raise InputError(
                f"--ray: no cluster at {where} ({reason}); `ray start --head` starts one, `--ray local` needs none"
            ) from None
    if main:
        signal.signal(signal.SIGTERM, handler)  # Ray ends the process there and then
    try:
        yield
    except ClusterLost:
        _process["lost"] = True  # a shutdown would ask what is gone, and end this process before it can say so
        raise
    finally:
        if mine and not _process["lost"]:
            ray.shutdown()
            heard()  # a cluster that is lost may be spoken of later


def _silence() -> Callable[[], None]:
    """Nothing that Ray says of deaths is printed from now on: also where the program has imported Ray before this
    module could set what it reads as it is imported. Returns what ends that."""
    worker, name = sys.modules.get("ray._private.worker"), "print_to_stdstream"
    before = getattr(worker, name, None)
    if worker is None or before is None:  # another Ray: the settings stand
        return lambda: None
    setattr(worker, name, lambda *args, **options: None)
    return lambda: setattr(worker, name, before)


def _shown(address: str) -> str:
    """An address as messages name it: without a password."""
    scheme, slashes, rest = address.rpartition("//")
    return one_line(scheme + slashes + rest.rpartition("@")[2], 100)


def _probe(address: str) -> None:
    """Raise `OSError` if no Ray listens at HOST:PORT. Ray itself would go on asking for minutes."""
    if address.startswith("ray://"):
        raise ValueError("a client's address; start the command on a machine of the cluster, with `--ray auto`")
    if "@" in address:
        raise ValueError("an address of Ray has no user and no password: HOST:PORT")
    if (at := host_and_port(address)) is not None:
        knock(at, REACHED_WITHIN)


def _gpus(nodes: Sequence[Mapping[str, Any]]) -> int:
    """GPUs of each worker: one, where the cluster has any."""
    return 1 if any(node["Resources"].get("GPU", 0) >= 1 for node in nodes) else 0


def _room(nodes: Sequence[Mapping[str, Any]], cores: int, gpus: int) -> int:
    """How many workers these machines can hold."""
    resources = [node["Resources"] for node in nodes]
    return sum(int(min(one.get("CPU", 0) // cores, one.get("GPU" if gpus else "CPU", 0))) for one in resources)


def _cache() -> str | None:
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    return None if folder is None else str(Path(folder).resolve())
