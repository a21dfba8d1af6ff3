"""The cache of converted weights, safe with several processes and readable where it cannot be written.

Below `folder()`: `converted/KEY.safetensors` with `KEY.json` beside it (its own sha256 and size), `names/NAME.json`
(which KEY a name stands for, and where it came from), `paths/*.json` (which KEY a local checkpoint has, by path, size
and time of change, so that gigabytes are not hashed again), `downloads/` (Meta's files on their way). KEY is the sha256
of the source, or of that and the configuration that was beside it.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import parse_json, read_bytes, show_path, write_json

_VERSION = 1


def folder() -> Path:
    """`$NTT_JAX_CACHE/weights`, otherwise `ntt-jax/weights` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("NTT_JAX_CACHE", ""):
        return Path(chosen).expanduser().absolute() / "weights"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "ntt-jax" / "weights"


@dataclass(frozen=True)
class Entry:
    """One converted file. sha256, size: its own. source_sha256: of what it was converted from."""

    path: Path
    sha256: str
    size: int
    source_sha256: str


def entry(key: str) -> Entry | None:
    """The converted file of this key, if it is there with its whole size."""
    path = folder() / "converted" / f"{key}.safetensors"
    record = _read(path.with_suffix(".json"))
    if not record:
        return None
    try:
        found = Entry(path, str(record["sha256"]), int(record["size"]), str(record["source_sha256"]))
        return found if path.stat().st_size == found.size else None
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return None


def entries() -> list[Entry]:
    """Every converted file that is there."""
    found = (entry(path.stem) for path in sorted((folder() / "converted").glob("*.json")))
    return [one for one in found if one is not None]


def origin(name: str) -> dict[str, Any] | None:
    """What is recorded of a name: `key`, `origin` (an address) and more; None if nothing is."""
    record = _read(_name_record(name))
    return (
        record
        if record and isinstance(record.get("key"), str) and re.fullmatch("[0-9a-f]{64}", record["key"])
        else None
    )


def named(name: str) -> Entry | None:
    """The converted file that a name stands for, if it is there."""
    record = origin(name)
    return entry(record["key"]) if record else None


def names() -> dict[str, dict[str, Any]]:
    """The record of every name that was ever fetched, by name."""
    found = {}
    for path in sorted((folder() / "names").glob("*.json")):
        record = _read(path)
        if record and isinstance(record.get("name"), str) and origin(record["name"]):
            found[record["name"]] = record
    return found


def record_name(name: str, key: str, **more: Any) -> None:
    """Note that `name` stands for `key`. more: where it came from."""
    write_record(_name_record(name), {"name": name, "key": key, **more})


def _name_record(name: str) -> Path:
    plain = re.sub(r"[^\w.-]", "-", name)
    unique = "" if plain == name else "." + hashlib.sha256(name.encode()).hexdigest()[:8]
    return folder() / "names" / f"{plain[:100]}{unique}.json"


def stamps(path: Path) -> list[list[Any]]:
    """Name, size and time of change of a checkpoint's files: equal stamps mean equal contents."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".json"))
    elif (beside := path.with_suffix(".json")).is_file():
        files.append(beside)
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def key_of_path(path: Path) -> str | None:
    """The key of a local checkpoint as it was hashed before, if its files are as they were then."""
    record = _read(_path_record(path))
    if record and record.get("path") == str(path.resolve()) and record.get("files") == stamps(path):
        return str(record.get("key"))
    return None


def record_path(path: Path, found: list[list[Any]], key: str) -> None:
    """Note the key of a local checkpoint whose files had the stamps `found`; without effect in a read-only cache."""
    with contextlib.suppress(InputError):
        write_record(_path_record(path), {"path": str(path.resolve()), "files": found, "key": key})


def _path_record(path: Path) -> Path:
    return folder() / "paths" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def store(key: str, source_sha256: str, write: Callable[[Path], None]) -> Entry:
    """The converted file of `key`, which `write` makes if it is not there; one process at a time makes it.

    Raises `InputError` if the cache cannot be written; what `write` raises passes through, and nothing is kept then.
    """
    from weight_port.files import sha256

    if found := entry(key):
        return found
    target = folder() / "converted" / f"{key}.safetensors"
    make_folder(target.parent)
    with locked(target.with_suffix(".lock")):
        if found := entry(key):
            return found
        for left in target.parent.glob(f".{key}.*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)
        write(target)
        write_record(
            target.with_suffix(".json"),
            {"sha256": sha256(target), "size": target.stat().st_size, "source_sha256": source_sha256},
        )
    found = entry(key)
    if found is None:
        raise InputError(f"{show_path(target)}: vanished while it was written; is something else clearing the cache?")
    return found


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file whole or not at all. Raises `InputError` if the cache cannot be written."""
    make_folder(path.parent)
    write_json(path, {"version": _VERSION, **content})


def make_folder(path: Path) -> None:
    """Make a folder of the cache. Raises `InputError`, with the way out, if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes; waits for it."""
    from filelock import FileLock

    try:
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise _unwritable(path.parent, error) from None
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{show_path(path)}: the cache of weights cannot be written: {error.strerror or error}; "
        "set NTT_JAX_CACHE to a folder of yours"
    )


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none or it is not one of ours."""
    if not path.is_file():
        return None
    try:
        content = parse_json(read_bytes(path, max_bytes=2**20, what="record"), path, what="record")
    except InputError:
        return None
    return content if isinstance(content, dict) and content.get("version") == _VERSION else None


def key_of(source_sha256: str, beside: Any) -> str:
    """The key of a source, with the configuration that lies beside it (None: none)."""
    if not beside:
        return source_sha256
    return hashlib.sha256((source_sha256 + json.dumps(beside, sort_keys=True)).encode()).hexdigest()
