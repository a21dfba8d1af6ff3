"""A file of finished work that survives whatever happens to the process: append-only, checksummed, synced.

One line per record: crc32 of the JSON text as eight hex digits, a space, the JSON text, a newline. A line whose
newline, checksum or JSON is wrong (a write that was cut off by a kill, a full disk or a power failure) ends the file:
opening it for writing drops that line and what may follow, and the work behind it is simply done again.
"""

import contextlib
import json
import os
import signal
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ntt_jax.errors import InputError

MAX_RECORD = 2**28
"""Bytes of the longest line that is read; no real record comes near it."""


class RecordFile:
    """The records at `path`, each found again by its integer "image_id"; the last one of an id counts.

    Only the places are kept in memory, so the file may grow beyond it. `dropped` is the number of bytes that opening
    it cut off. Raises `OSError` as the file system does, and `InputError` when the file has vanished while in use.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115, closed by close()
        self._places: dict[int, tuple[int, int]] = {}
        self._end = self._scan()
        size = os.fstat(self._file.fileno()).st_size
        self.dropped = size - self._end
        if self.dropped:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
        sync_folder(path.parent)

    def _scan(self) -> int:
        """Note where each good record lies; returns the offset behind the last one."""
        end = 0
        with open(self.path, "rb") as file:
            while True:
                line = file.readline(MAX_RECORD)
                record = _parse(line)
                if record is None:
                    return end
                self._places[record["image_id"]] = (end, len(line))
                end += len(line)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, image_id: int) -> dict[str, Any]:
        """The record of `image_id`, read back from the disk and checked again."""
        offset, length = self._places[image_id]
        record = _parse(os.pread(self._file.fileno(), length, offset))
        if record is None or record["image_id"] != image_id:
            raise InputError(f"{self.path}: the record of image {image_id} has changed on the disk; use --restart")
        return record

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write the records and return when they are on the disk. On an error the file is as it was before.

        Ctrl-C and SIGTERM wait until it is done.
        """
        lines = [_line(record) for record in records]
        with _uninterrupted():
            self._write(b"".join(lines))
            for record, line in zip(records, lines, strict=True):
                self._places[record["image_id"]] = (self._end, len(line))
                self._end += len(line)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:  # a nearly full disk takes a part of it
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # if not even that works, the next start drops the torn line
                self._file.truncate(self._end)
            error.filename = error.filename or str(self.path)
            raise
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise InputError(f"{self.path}: the file was removed while the run was writing to it")

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        self._file.close()


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


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if it is not whole."""
    if len(line) < 10 or line[8:9] != b" " or line[-1:] != b"\n":
        return None
    text = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("image_id"), int) else None


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file's name durable: the folder that holds it goes to the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
