"""The folder of one run: who may write to it, what it is a run of, and what is finished.

run.json             the run's identity (what its numbers depend on) and, per start, when and on what it ran
finished.records     one record per finished image (records.py)
results.json         written when every image is finished
metrics.json         likewise
report.html          written on request (`ntt-jax report`)
lock                 held by the process that is working here
"""

import json
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import (
    check_output,
    lists_for_tuples,
    parse_json,
    read_bytes,
    remove_temporaries,
    show_path,
    write_json,
)
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.records import RecordFile, earlier_files, record_size, take_over

FORMAT = 1
MAX_RUN_BYTES = 2**26
ADVICE = "use --restart to start over, or another --out"


class RunFolder:
    """The run in a locked folder, with the given identity. Use as a context manager.

    `identity` is JSON-ready data that says what the run is made of, by names a person understands ("memory",
    "annotations", ...). A folder that holds a run with another identity is refused with the names that differ, unless
    `restart`, which removes what is there. `records` are those of finished work, found by their integer under `key`;
    those that several processes of an earlier version left are taken over.
    """

    def __init__(self, lock: FolderLock, identity: dict[str, Any], *, restart: bool = False, key: str = "image_id"):
        folder = self.folder = lock.folder
        self.results, self.metrics = folder / "results.json", folder / "metrics.json"
        self._run, records = folder / "run.json", folder / "finished.records"
        self.identity = lists_for_tuples(identity)
        for path in (self.results, self.metrics, self._run):  # now, not when the work is done
            check_output(path)
        files = [path for path in (records, *earlier_files(folder)) if path.exists() or path.is_symlink()]
        self.starts: list[dict[str, Any]] = []
        if restart:
            earlier = (folder / "report.html", self.metrics, self.results, *files, self._run)
            for path in earlier:  # all of them before the first is gone
                if path.is_dir() and not path.is_symlink():
                    found = "is a folder, expected a file of this program; remove it or give another folder"
                    raise InputError(f"{show_path(path)}: {found}")
            for path in earlier:
                path.unlink(missing_ok=True)
            self._write_run()
        elif any([record_size(path) for path in files]):
            self.starts = self._earlier_starts()
        else:  # nothing is finished yet, so nothing can be mixed up
            if self._run.exists():  # but it may be the file of another program
                self._earlier_starts(same=False)
            self._write_run()
        remove_temporaries(folder)
        self.records = RecordFile(records, key)
        take_over(self.records)

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
        """Add to run.json when and on what this process worked."""
        self.starts = [*self.starts, start]
        self._write_run()

    def _write_run(self) -> None:
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
