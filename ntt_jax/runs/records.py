"""A file of finished work that survives whatever happens to the process: append-only, checksummed, synced.

One line per record: crc32 of the JSON text as eight hex digits, a space, the JSON text, a newline. A line whose
newline or checksum is wrong (a write that was cut off by a kill, a full disk or a power failure) ends the file: opening
it for writing drops that line and what may follow, and the work behind it is simply done again. The files are ours
alone: a link, a pipe or a file with a second name in their place is refused before anything is changed.
"""

import contextlib
import json
import os
import signal
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ntt_jax.errors import InputError
from ntt_jax.files import open_in_place, parse_json, show_path, sync_folder

MAX_RECORD = 2**26
"""Bytes of the longest line that is written and read; of real records only those of `ntt-jax tune` come near it."""
LINE_BYTES = 10
"""Bytes of a line beside the JSON text."""


class RecordReader:
    """The records at `path`, each found again by the integer under `key`; the last one of an id counts.

    Only the places are kept in memory, so the file may grow beyond it. Raises `OSError` as the file system does.
    """

    def __init__(self, path: Path, key: str = "image_id"):
        self.path, self.key = path, key
        self._places: dict[int, tuple[int, int]] = {}
        self._skipped: set[int] = set()
        self._end = 0
        self._file: IO[bytes] | None = None
        with self._open() as file:
            while (record := self._parse(line := file.readline(MAX_RECORD))) is not None:
                self._note(record, len(line))

    def _open(self) -> IO[bytes]:
        return os.fdopen(open_in_place(self.path, create=False, write=False), "rb")

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        record = _parse(line, self.path)
        return record if record is not None and isinstance(record.get(self.key), int) else None

    def _note(self, record: dict[str, Any], length: int) -> None:
        self._places[record[self.key]] = (self._end, length)
        (self._skipped.add if "skipped" in record else self._skipped.discard)(record[self.key])
        self._end += length

    def __contains__(self, id: int) -> bool:
        return id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def skipped(self, id: int) -> bool:
        """Whether the record says that the work was left out (it has the key "skipped")."""
        return id in self._skipped

    def read(self, id: int) -> dict[str, Any]:
        """The record of `id`, read back from the disk and checked again (`InputError` if it has changed)."""
        offset, length = self._places[id]
        if self._file is None:
            self._file = self._open()
        self._file.seek(offset)
        record = self._parse(self._file.read(length))
        if record is None or record[self.key] != id:
            raise InputError(
                f"{show_path(self.path)}: the record of {self.key} {id} has changed on the disk; use --restart"
            )
        return record

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class RecordFile(RecordReader):
    """The records at `path`, to be added to by this process alone.

    `dropped` is the number of bytes that opening it cut off, `added` that of the records written since. Raises
    `OSError` as the file system does, and `InputError` when the file has vanished while in use.
    """

    def __init__(self, path: Path, key: str = "image_id"):
        out = os.fdopen(open_in_place(path), "r+b", buffering=0)
        try:
            super().__init__(path, key)
        except BaseException:
            out.close()
            raise
        self._file = out
        self.added = 0
        size = os.fstat(out.fileno()).st_size
        self.dropped = size - self._end
        if self.dropped:
            out.truncate(self._end)
            os.fsync(out.fileno())
        sync_folder(path.parent)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write the records and return when they are on the disk. On an error the file is as it was before.

        Ctrl-C and SIGTERM wait until it is done. Raises `InputError` for a record over `MAX_RECORD`, which would end
        the file for whoever opens it next.
        """
        lines = [_line(record) for record in records]
        for record, line in zip(records, lines, strict=True):
            if len(line) > MAX_RECORD:
                raise InputError(
                    f"{show_path(self.path)}: {self.key} {record[self.key]}: what was found takes "
                    f"{len(line) / 2**20:.1f} MiB, over the limit of {MAX_RECORD // 2**20} for one record; ask for "
                    "fewer detections or give a smaller image"
                )
        with _uninterrupted():
            self._write(b"".join(lines))
            for record, line in zip(records, lines, strict=True):
                self._note(record, len(line))
            self.added += len(records)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        rest = memoryview(data)
        try:
            self._file.seek(0, os.SEEK_END)
            while rest:  # a nearly full disk takes a part of it
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # if not even that works, the next start drops the torn line
                self._file.truncate(self._end)
            error.filename = error.filename or str(self.path)
            raise
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise InputError(f"{show_path(self.path)}: the file was removed while the run was writing to it")


def take_over(records: RecordFile) -> None:
    """Move the records of the further processes of an earlier version (finished-1.records, ...) into `records`.

    Where two have an id, the record that does not say "skipped" counts. A kill in between loses nothing.
    """
    for path in earlier_files(records.path.parent):
        theirs = RecordReader(path, records.key)
        new = [id for id in theirs if id not in records or (records.skipped(id) and not theirs.skipped(id))]
        for start in range(0, len(new), 256):
            records.append([theirs.read(id) for id in new[start : start + 256]])
        theirs.close()
        path.unlink()


def earlier_files(folder: Path) -> list[Path]:
    """The files of records that only an earlier version wrote, one for each further process."""
    return [path for path in sorted(folder.glob("finished-*.records")) if path.stem[len("finished-") :].isdecimal()]


def record_size(path: Path) -> int:
    """Bytes of a file of records. Raises `InputError` for what is none: a link, a pipe, a folder."""
    handle = open_in_place(path, create=False, write=False)
    try:
        return os.fstat(handle).st_size
    finally:
        os.close(handle)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while inside. (Python runs their handlers in the main thread only.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: arrived.append(number)) for number in held]
    try:
        yield
    finally:
        for number, handler in zip(held, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in arrived:
            signal.raise_signal(number)


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes, path: Path) -> dict[str, Any] | None:
    """The record in a line, or None if it is not whole.

    Raises `InputError` for a line that is whole and yet no record: no kill leaves that, somebody wrote it.
    """
    if len(line) < 10 or line[8:9] != b" " or line[-1:] != b"\n":
        return None
    text = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = parse_json(text, path, what="record")
    except InputError as error:
        raise InputError(f"{error}; use --restart to start over, or another --out") from None
    return record if isinstance(record, dict) else None
