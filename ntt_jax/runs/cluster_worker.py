"""One worker of a cluster: it loads the models once, then does groups of work."""

import importlib.metadata
import os
import pickle
import platform
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

import ntt_jax
from ntt_jax.compiled.devices import use_all_cores
from ntt_jax.errors import InputError
from ntt_jax.files import check_private
from ntt_jax.runs.models import Compute

IN_MODELS = 2
"""Groups of a worker that are with its models at once: one on the devices, one being finished or about to begin."""


def versions() -> dict[str, str]:
    """The packages that decide what is computed, by their names for pip, with their versions here."""
    packages = ("jax", "jaxlib", "numpy", "pillow")
    return {"ntt-jax": ntt_jax.__version__, **{name: importlib.metadata.version(name) for name in packages}}


def check_versions(expected: Mapping[str, str]) -> None:
    """Raise `InputError` unless this machine has these versions: with others, results need not be the same bytes."""
    here = versions()
    if other := [name for name, version in expected.items() if here.get(name) != version]:
        has = ", ".join(f"{name} {here.get(name, 'none')}" for name in other)
        wants = " ".join(f"{name}=={expected[name]}" for name in other)
        raise InputError(
            f"it has {has}, and the machine of the command other versions; `pip install {wants}` makes them alike"
        )


class GroupWork(Protocol):
    """Work on groups that a process can be sent."""

    def load(self, compute: Compute) -> Any:
        """The compiled models, once for each worker."""

    def read(self, group: Sequence[Any], apart: bool) -> Any:
        """What `do` needs of the files of a group.

        apart: some worker died with this group. Each file is read by a process of its own first, and one that ends
        that process is left out as unreadable.
        """

    def do(self, models: Any, group: Sequence[Any], read: Any) -> list[dict[str, Any]]:
        """The records of a group."""
        ...

    def lost(self, group: Sequence[Any], reason: str) -> list[dict[str, Any]]:
        """The records of a group that no worker survives. Raises `InputError` if there is no going on without it."""
        ...


class GroupWorker:
    """The actor. While the devices work on one group, other threads read the files of the next and finish the last.

    What goes wrong is sent back, not raised: Ray would wrap it.
    """

    def __init__(
        self,
        work: list[Any],
        dtype: str,
        batch_size: int,
        cores: int,
        cache: str | None,
        expected: Mapping[str, str],
    ):
        """work: reference to the pickled `GroupWork`, in a list so that Ray does not fetch it. cores: that divide the
        points of an image; 1: XLA's own way. cache: folder of compiled programs. expected: `versions` of the driver."""
        self.models: Any = None
        self._given, self._expected = (work, dtype, batch_size, cores, cache), expected
        self._inside = threading.Semaphore(IN_MODELS)

    def node(self) -> str:
        """The machine, by Ray's name. Answered whatever else the worker does, unless it hangs."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def begin(self) -> tuple[str, bytes]:
        """Load the models. Returns the machine and the pickled error that kept the worker from it, or None."""
        error = None
        try:
            check_versions(self._expected)
            self._load(*self._given)
        except Exception as caught:
            error = _plain(caught)
        return self.node(), pickle.dumps(error)

    def _load(self, work: list[Any], dtype: str, batch_size: int, cores: int, cache: str | None) -> None:
        if cache is not None and os.path.isdir(cache) and check_private(cache) is None:
            jax.config.update("jax_compilation_cache_dir", cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        if cores > 1:
            use_all_cores(cores)
        devices = jax.local_devices()
        compute = Compute(dtype, batch_size, devices if cores > 1 else devices[:1], "points" if cores > 1 else "images")
        import ray

        self.work: GroupWork = pickle.loads(ray.get(work[0]))  # made by our own driver
        self.models = self.work.load(compute)

    def do(self, group: bytes, apart: bool) -> bytes:
        """Records of a pickled group, or the error, pickled."""
        try:
            items = pickle.loads(group)
            read = self.work.read(items, apart)
            with self._inside:
                result: tuple[str, Any] = ("records", self.work.do(self.models, items, read))
        except Exception as error:
            result = ("error", _plain(error))
        return pickle.dumps(result)


def _plain(error: Exception) -> Exception:
    """An error that can be sent: of the kinds that a command turns into one line, or as text."""
    if isinstance(error, InputError):
        return InputError(f"--ray: a worker on {platform.node()}: {error}")
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError(f"a worker failed: {type(error).__name__}: {error}")
