"""The folder of one evaluation run: who may write to it, what it is a run of, and what is finished.

run.json          the run's identity (what its numbers depend on) and, per start, when and on what it ran
finished.records  one record per finished image (records.py)
results.json      written when every image is finished
metrics.json      likewise
lock              held by the process that is working here
"""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import parse_json, read_bytes, show_path, write_json
from ntt_jax.records import RecordFile

FORMAT = 1
MAX_RUN_BYTES = 2**26
ADVICE = "use --restart to start over, or another --out"


class FolderLock:
    """Keeps every other process out of `folder` until it is closed or this process ends, however it ends.

    Use as a context manager. Raises `InputError`, naming the process that holds it, if the folder is taken.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise InputError(
                f"{show_path(folder)} is in use by another ntt-jax ({holder}); wait for it or give another --out"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._handle)


class RunFolder:
    """The run in a locked folder, with the given identity. Use as a context manager.

    `identity` is JSON-ready data that says what the run is made of, by names a person understands ("memory",
    "annotations", ...). A folder that holds a run with another identity is refused with the names that differ, unless
    `restart`, which removes what is there. `records` is the file of finished work.
    """

    def __init__(self, lock: FolderLock, identity: dict[str, Any], *, restart: bool = False):
        folder = self.folder = lock.folder
        self.results, self.metrics = folder / "results.json", folder / "metrics.json"
        self._run, self._records = folder / "run.json", folder / "finished.records"
        self.identity = json.loads(json.dumps(identity))
        for abandoned in folder.glob(".ntt-*.tmp"):  # of a process that was killed while it wrote a whole file
            abandoned.unlink(missing_ok=True)
        if restart:
            for path in (self.metrics, self.results, self._records, self._run):
                path.unlink(missing_ok=True)
        self.starts: list[dict[str, Any]] = []
        if self._records.exists() and self._records.stat().st_size:
            self.starts = self._earlier_starts()
        else:  # nothing is finished yet, so nothing can be mixed up
            write_json(self._run, {"format": FORMAT, "identity": self.identity, "starts": []})
        self.records = RecordFile(self._records)

    def _earlier_starts(self) -> list[dict[str, Any]]:
        """Make sure that the run that is here is this one. Returns what is known of its earlier starts."""
        if not self._run.exists():
            found = f"{show_path(self.folder)} has finished images but no run.json that says of what"
            raise InputError(f"{found}; {ADVICE}")
        try:
            found = parse_json(read_bytes(self._run, max_bytes=MAX_RUN_BYTES, what="run"), self._run, what="run")
            theirs, starts = found["identity"], found["starts"]
            if found["format"] != FORMAT or not isinstance(theirs, dict) or not isinstance(starts, list):
                raise TypeError
        except (InputError, KeyError, TypeError):
            raise InputError(f"{show_path(self._run)}: not the record of a run of this version; {ADVICE}") from None
        if changed := differences(theirs, self.identity):
            raise InputError(f"{show_path(self.folder)} holds a run made with another {changed}; {ADVICE}")
        return starts

    def note_start(self, start: dict[str, Any]) -> None:
        """Add to run.json when and on what this process worked."""
        self.starts = [*self.starts, start]
        write_json(self._run, {"format": FORMAT, "identity": self.identity, "starts": self.starts})

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.records.close()


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The entries in which two mappings differ, in words; empty if they are equal."""
    changed = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed.append(f"{name}: {differences(old, new)}")
        else:
            changed.append(f"{name} (was {_short(old)}, now {_short(new)})")
    return ", ".join(changed)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:12] + "..."
