"""Groups of work on the workers of a Ray cluster, by Ray Data (docs/parallel.md).

This process keeps the run folder, its lock and its records. Workers load the models once, do whole groups, and send
back records, in any order. Ray starts a group again when its worker or the worker's machine is lost, and uses machines
that come later. A worker that cannot begin says why instead of dying: Ray would start it again without end.
"""

import contextlib
import logging
import math
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import check_private
from ntt_jax.runs.models import Compute

MAX_BLOCKS = 2000
"""Groups are handed out one by one up to this many, then several at once."""


class GroupWork(Protocol):
    """Work on groups that a process can be sent."""

    def load(self, compute: Compute) -> Any:
        """The compiled models, once for each worker."""

    def do(self, models: Any, group: Sequence[Any]) -> list[dict[str, Any]]:
        """The records of a group."""
        ...


def map_groups(work: GroupWork, groups: Sequence[Sequence[Any]], compute: Compute) -> Iterator[list[dict[str, Any]]]:
    """The records of every group, in whatever order the workers finish.

    compute: `ray` says which cluster; `batch_size`, `dtype` and the number of cores that divide an image's points are
    those of each worker, so that it computes what one process would. Raises `InputError` if Ray is missing, the cluster
    cannot be reached or has no room for a worker, or a worker cannot begin.
    """
    ray = _import_ray()
    cores = len(compute.devices or ()) if compute.divide == "points" else 1
    with _connected(ray, str(compute.ray)):
        gpus, workers = _room(ray, cores)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        items = [{"group": pickle.dumps(group)} for group in groups]
        results = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            _Worker,
            fn_constructor_args=[[ray.put(pickle.dumps(work))], compute.dtype, compute.batch_size, cores, _cache()],
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(workers, 64)),
            num_cpus=cores,
            num_gpus=gpus,  # Ray Data's actors restart, and repeat what was lost, without a limit
        )
        try:
            for row in results.iter_rows():
                kind, content = pickle.loads(row["result"])  # made by our own workers
                if kind == "error":
                    raise content
                yield content
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()
            raise InputError(
                f"--ray: the cluster cannot go on ({first[0][:200] if first else type(error).__name__}); what is "
                "finished is saved, the same command goes on from there"
            ) from None


class _Worker:
    """One worker: the models, and groups in, records out. What goes wrong is sent back, not raised."""

    def __init__(self, work: list[Any], dtype: str, batch_size: int, cores: int, cache: str | None):
        self.models: Any = None
        self.error: Exception | None = None
        try:
            if cache is not None and os.path.isdir(cache) and check_private(cache) is None:
                jax.config.update("jax_compilation_cache_dir", cache)
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
            if cores > 1:
                from ntt_jax.compiled.devices import use_all_cores

                use_all_cores(cores)
            devices = jax.local_devices()
            compute = Compute(
                dtype, batch_size, devices if cores > 1 else devices[:1], "points" if cores > 1 else "images"
            )
            self.work: GroupWork = pickle.loads(_import_ray().get(work[0]))
            self.models = self.work.load(compute)
        except Exception as error:
            self.error = _plain(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = np.empty(len(batch["group"]), object)
        for index, group in enumerate(batch["group"]):
            try:
                if self.error is not None:
                    raise self.error
                result: tuple[str, Any] = ("records", self.work.do(self.models, pickle.loads(group)))
            except Exception as error:
                result = ("error", _plain(error))
            results[index] = pickle.dumps(result)
        return {"result": results}


def _plain(error: Exception) -> Exception:
    """An error that can be sent: of the kinds that a command turns into one line, or as text."""
    if isinstance(error, InputError):
        return InputError(f"--ray: a worker on {os.uname().nodename}: {error}")
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError(f"a worker failed: {type(error).__name__}: {error}")


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--ray: Ray is not installed; `pip install 'ntt-jax[ray]'` on every machine") from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connected to the cluster at an address, "auto" (found on this machine), or "local": one on this machine alone."""
    mine = not ray.is_initialized()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    if mine:
        try:
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
            more = {"include_dashboard": False} if address == "local" else {}
            with warnings.catch_warnings():  # Ray starts its processes by fork and exec, which is safe
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(address=address, configure_logging=True, **quiet, **more)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(
                f"--ray: no cluster at {address!r} ({reason}); `ray start --head` starts one, `--ray local` needs none"
            ) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if main:
        signal.signal(signal.SIGTERM, handler)  # Ray ends the process there and then
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _room(ray: Any, cores: int) -> tuple[int, int]:
    """GPUs of each worker, and how many workers the cluster has room for now. Raises `InputError` if for none."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    workers = sum(min(node.get("CPU", 0) // cores, node.get("GPU", 0) if gpus else math.inf) for node in nodes)
    if workers < 1:
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise InputError(
            f"--ray: a worker needs {cores} cores and no machine of the cluster has more than {most}; --cores"
        )
    return gpus, int(workers)


def _cache() -> str | None:
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    return None if folder is None else str(Path(folder).resolve())
