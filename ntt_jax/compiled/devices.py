"""Which devices a compiled pass works on, and what they divide.

The cores of a CPU serve the target pass best as one device each, which divide the points of every image
(`point_parallel`). JAX counts them when it starts and never again, so a program says so first: `use_all_cores`. Nothing
else here changes what JAX sees.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ntt_jax.errors import InputError

_LOG = logging.getLogger("ntt_jax")
# JAX's own settings are this process's too, and do not tell who made them.
_process = {"cores": 0, "told": False}


@contextlib.contextmanager
def published_numbers(matmul_precision: str = "highest") -> Iterator[None]:
    """JAX as the method was published with, in this thread, whatever the process has set for its own work.

    32-bit numbers (`jax_enable_x64` changes nothing), the usual promotion of types and ranks, and this precision of
    products.
    """
    import jax

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision(matmul_precision),
    ):
        yield


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices_are_set() -> bool:
    """Whether somebody has said how many devices JAX makes of the CPU (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`)."""
    import jax

    number = getattr(jax.config, "jax_num_cpu_devices", -1)
    return number > 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")


def use_all_cores(cores: int | None = None) -> int:
    """Let JAX see every core of the CPU as a device: `Segmenter` and `Predictor` divide an image's points over them.

    Call it before anything else is done with JAX. Calling it again changes nothing. Where the number of CPU devices is
    set already (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`), those devices are taken. Beside an accelerator it has no effect.

    Args:
      cores: how many; all that this process may use by default.

    Returns:
      The number of cores.

    Raises:
      InputError: JAX has started already, or `cores` is not a number of at least 1.
    """
    import jax

    if _process["cores"]:
        return _process["cores"]
    if cores is not None and (type(cores) is not int or cores < 1):
        raise InputError(f"use_all_cores: expected a number of cores of at least 1, found {cores!r:.40}")
    if devices_are_set():
        _process["cores"] = jax.local_device_count("cpu")
        return _process["cores"]
    cores = available_cores() if cores is None else cores
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        raise InputError(
            "use_all_cores: JAX has started already; call it first, before arrays are made and models are loaded"
        ) from None
    _process["cores"] = cores
    return cores


def core_devices() -> list[Any] | None:
    """The devices that stand for the cores of the CPU: None without `use_all_cores`, or beside an accelerator."""
    import jax

    devices = jax.local_devices()
    return devices if _process["cores"] and devices[0].platform == "cpu" else None


def choose_devices(devices: Sequence[Any] | None, divide: str | None) -> tuple[list[Any], str]:
    """The devices of a target pass, and what they divide: "points" of each image or "images".

    Args:
      devices: those to use. None: the cores if `use_all_cores` has been called, otherwise JAX's default device.
      divide: what they divide. None: points on CPUs, images on accelerators.

    Raises:
      InputError: no device, or another value of `divide`.
    """
    import jax

    if divide not in (None, "points", "images"):
        raise InputError(f'divide: expected "points" or "images", found {divide!r:.40}')
    if devices is None:
        cores = None if divide == "images" else core_devices()
        if cores is None and divide is None:
            _tell_about_cores()
        devices = jax.local_devices()[:1] if cores is None else cores
    if not isinstance(devices, Sequence) or isinstance(devices, str) or not devices:
        raise InputError(f"devices: expected a list of JAX devices, as jax.local_devices(), found {devices!r:.80}")
    return list(devices), divide or ("points" if getattr(devices[0], "platform", "") == "cpu" else "images")


def _tell_about_cores() -> None:
    """One line, once, where somebody could be quicker."""
    import jax

    cores = available_cores()
    if _process["told"] or cores < 2 or jax.local_devices()[0].platform != "cpu" or devices_are_set():
        return
    _process["told"] = True
    _LOG.warning(
        "ntt_jax: one device stands for all %d cores; ntt_jax.use_all_cores(), called before anything else, is quicker",
        cores,
    )
