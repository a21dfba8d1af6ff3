"""The folder of one run: who may write to it, what it is a run of, and what is finished.

run.json             the run's identity (what its numbers depend on) and, per start, when and on what it ran
finished.records     one record per finished image (records.py); finished-I.records is that of process I
results.json         written when every image is finished
metrics.json         likewise
report.html          written on request (`ntt-jax report`)
lock, lock-I         held by the process (of several: process 0, process I) that is working here
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import check_output, parse_json, read_bytes, remove_temporaries, show_path, write_json
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.processes import agree
from ntt_jax.runs.records import RunRecords, record_files, record_name, record_size

FORMAT = 1
MAX_RUN_BYTES = 2**26
ADVICE = "use --restart to start over, or another --out"
_VISIBLE = 90.0
"""Seconds after which a new file must have appeared on the other machines (file systems keep listings for a minute)."""


class RunFolder:
    """The run in a locked folder, with the given identity. Use as a context manager.

    `identity` is JSON-ready data that says what the run is made of, by names a person understands ("memory",
    "annotations", ...). A folder that holds a run with another identity is refused with the names that differ, unless
    `restart`, which removes what is there. `records` are those of finished work, found by their integer under `key`.
    Of several processes the first keeps run.json.
    """

    def __init__(self, lock: FolderLock, identity: dict[str, Any], *, restart: bool = False, key: str = "image_id"):
        folder, self.processes = lock.folder, lock.processes
        self.folder = folder
        self.results, self.metrics = folder / "results.json", folder / "metrics.json"
        self._run, report = folder / "run.json", folder / "report.html"
        self.identity = json.loads(json.dumps(identity))
        first = self.processes.index == 0
        if first:
            lock.check_alone()
            remove_temporaries(folder)
        for path in (self.results, self.metrics, self._run):  # now, not when the work is done
            check_output(path)
        if restart:
            (folder / record_name(self.processes.index)).unlink(missing_ok=True)
            if first:
                others = {folder / record_name(index) for index in range(1, self.processes.count)}
                for path in (report, self.metrics, self.results, *record_files(folder), self._run):
                    if path not in others:  # each removes its own
                        path.unlink(missing_ok=True)
        self.starts: list[dict[str, Any]] = []
        if not restart and any(record_size(path) for path in record_files(folder)):
            self.starts = self._earlier_starts()
        elif first:  # nothing is finished yet, so nothing can be mixed up
            if not restart and self._run.exists():  # but it may be the file of another program
                self._earlier_starts(same=False)
            write_json(self._run, {"format": FORMAT, "identity": self.identity, "starts": []})
        self.records = RunRecords(folder, self.processes.index, key)

    def _earlier_starts(self, *, same: bool = True) -> list[dict[str, Any]]:
        """Make sure that the run that is here is this one, or with `same` False any. Returns its earlier starts."""
        if not self._run.exists():
            found = f"{show_path(self.folder)} has finished images but no run.json that says of what"
            raise InputError(f"{found}; {ADVICE}")
        try:
            found = parse_json(read_bytes(self._run, max_bytes=MAX_RUN_BYTES, what="run"), self._run, what="run")
            theirs, starts = found["identity"], found["starts"]
            if found["format"] != FORMAT or not isinstance(theirs, dict) or not isinstance(starts, list):
                raise TypeError
            json.dumps(found, allow_nan=False)  # 1e999 is read as infinity, which cannot be written again
        except (InputError, KeyError, TypeError, ValueError, RecursionError):
            raise InputError(f"{show_path(self._run)}: not the record of a run of this version; {ADVICE}") from None
        if same and (changed := differences(theirs, self.identity)):
            raise InputError(f"{show_path(self.folder)} holds a run made with another {changed}; {ADVICE}")
        return starts

    def note_start(self, start: dict[str, Any]) -> None:
        """Add to run.json when and on what this process worked (the first process's word for all)."""
        self.starts = [*self.starts, start]
        if self.processes.index == 0:
            write_json(self._run, {"format": FORMAT, "identity": self.identity, "starts": self.starts})

    def gather(self, lock: FolderLock, todo: Iterable[int], batch_size: int) -> None:
        """Wait until all processes are here, about to do the same work; at once if this one is alone.

        todo: what is left to do; batch_size: what stays together when it is shared out. Raises `InputError`, in every
        process, if one was started with other files or options or sees another state of the folder.
        """
        if self.processes.count == 1:
            return
        state = hashlib.sha256(json.dumps(sorted(todo)).encode()).hexdigest()
        mine = {"run": self.identity, "--batch-size": batch_size, "state of the run folder": state}
        descriptions = agree(self.processes, mine, watch=lock.watch)
        for index, theirs in enumerate(descriptions):
            if changed := differences(descriptions[0], theirs):
                raise InputError(
                    f"process {index} was started with another {changed} than process 0; give all processes the same "
                    "files, options and --out"
                )
        self._check_shared()

    def wait_for_others(self, lock: FolderLock, shares: Sequence[Iterable[int]], *, poll: float = 0.5) -> None:
        """Return when the work in `shares`, one of each process, has all been recorded.

        Raises `InputError` as soon as a process has ended before its share was finished.
        """
        while True:
            gone = [lock.holder(index) is None for index in range(len(shares))]
            self.records.refresh()  # after that look: what a process wrote before it ended counts
            unfinished = [any(id not in self.records for id in share) for share in shares]
            for index, (ended, behind) in enumerate(zip(gone, unfinished, strict=True)):
                if ended and behind and index != self.processes.index:
                    raise lock.ended(index)
            if not any(unfinished):
                return
            time.sleep(poll)

    def _check_shared(self, *, within: float = _VISIBLE) -> None:
        """Raise `InputError` unless the files of all processes are to be seen here: the folder must be shared."""
        deadline = time.monotonic() + within
        for index in range(self.processes.count):
            path = self.folder / record_name(index)
            while path not in record_files(self.folder):
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{show_path(self.folder)}: {path.name} of process {index} is not to be seen here; give all "
                        "processes a folder on a file system that their machines share"
                    )
                time.sleep(0.2)

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
