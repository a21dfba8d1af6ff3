"""What a bug report should say about a machine: versions, devices, memory, caches, network, extras. No secrets."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from ntt_jax.hub import cache, repository
from ntt_jax.hub.fetch import megabytes
from ntt_jax.hub.resolve import meta_url

TIMEOUT = 3.0
"""Seconds that a server has to answer."""

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "safetensors", "pycocotools", "huggingface_hub")
_SETTINGS = (
    "NTT_JAX_CACHE",
    "NTT_JAX_META_URL",
    "NTT_JAX_COCO_URL",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "CUDA_VISIBLE_DEVICES",
)


def describe() -> list[tuple[str, str]]:
    """Every topic and what there is to say of it, in order. Starts JAX and asks the network, with a short timeout."""
    lines = [
        ("ntt-jax", f"{_version('ntt-jax')} in {Path(__file__).resolve().parents[1]}"),
        ("python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}"),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
        *_devices(),
        ("processor", f"{platform.processor() or platform.machine()}, {_cores()} cores for this process"),
        ("memory", _memory()),
    ]
    for what, folder in (("cache", cache.folder()), ("hub cache", repository.cache_folder())):
        lines.append((what, f"{folder}: {_disk(folder)}"))
    lines.append(("weights here", _weights()))
    for address in dict.fromkeys((repository.endpoint(), meta_url())):
        lines.append(("network", f"{hide(address)}: {reach(address)}"))
    lines.append(("extras", _extras()))
    settings = [
        f"{name}={hide(value)}" for name in _SETTINGS if (value := os.environ.get(name, os.environ.get(name.lower())))
    ]
    lines.append(("settings", ", ".join(settings) or "none"))
    lines.append(("hub token", "there is one" if _token() else "none"))
    return [(topic, _shorten(text)) for topic, text in lines]


def hide(text: str) -> str:
    """Without names and passwords in addresses."""
    return re.sub(r"//[^/@\s]*@", "//...@", text)


def reach(address: str) -> str:
    """Whether a server answers, and if not, why."""
    from huggingface_hub import get_session

    from ntt_jax.hub.fetch import explain

    try:
        response = get_session().head(address, timeout=TIMEOUT, follow_redirects=False)
        return f"answers ({response.status_code})"
    except Exception as error:
        return f"not reachable: {explain(error)}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[tuple[str, str]]:
    try:
        import jax

        out = []
        for device in jax.local_devices():
            stats = device.memory_stats() or {}
            memory = f", {megabytes(stats['bytes_limit'])} for JAX" if "bytes_limit" in stats else ""
            out.append(("device", f"{device.id}: {device.platform} {device.device_kind}{memory}"))
        return out
    except Exception as error:
        return [("device", f"JAX does not start: {' '.join(str(error).split())[:300]}")]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """Of the machine, and the limit of a container where there is one."""
    parts = []
    try:
        content = Path("/proc/meminfo").read_text()
        kilobytes = {name: int(value) for name, value in re.findall(r"(\w+): +(\d+) kB", content)}
        parts.append(f"{megabytes(kilobytes['MemAvailable'] * 1024)} free of {megabytes(kilobytes['MemTotal'] * 1024)}")
    except (OSError, KeyError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            parts.append(megabytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(file).read_text())
        except (OSError, ValueError):
            continue
        if limit < 2**50:
            parts.append(f"this container may use {megabytes(limit)}")
            break
    return ", ".join(parts) or "unknown"


def _disk(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    access = "" if os.access(existing, os.W_OK) else ", not writable"
    state = "" if existing == folder else ", not made yet"
    return f"{megabytes(shutil.disk_usage(existing).free)} free{access}{state}"


def _weights() -> str:
    found = [f"{name} ({megabytes(entry.size)})" for name in cache.names() if (entry := cache.named(name))]
    more = len(cache.entries()) - len({cache.names()[name.split(" ")[0]]["key"] for name in found})
    return (", ".join(found) or "none by name") + (f", {more} converted from local files" if more else "")


def _extras() -> str:
    """Of each extra of this package, which requirements are there."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        required = importlib.metadata.requires("ntt-jax") or []
        extras = importlib.metadata.metadata("ntt-jax").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return "unknown (ntt-jax is not installed as a package)"
    out = []
    for extra in extras:
        missing = []
        for text in required:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
                continue
            if _version(requirement.name) == "not installed":
                missing.append(requirement.name)
        out.append(f"{extra}: {'there' if not missing else 'lacks ' + ', '.join(missing)}")
    return "; ".join(out)


def _token() -> bool:
    from huggingface_hub import get_token

    try:
        return bool(get_token())
    except Exception:
        return False


def _shorten(text: str) -> str:
    """On one line, with ~ for the home folder."""
    home = str(Path.home())
    return " ".join((text.replace(home, "~") if len(home) > 1 else text).split())
