"""One open file, handed on: what was scanned is what is read, and nothing is mapped that somebody may cut."""

import hashlib
import os
import tempfile
import threading
import weakref
from typing import IO

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, open_input, reason, show_path

MAX_CHECKPOINT_BYTES = 64 * 2**30
"""A training checkpoint of the largest model with its optimiser is a quarter of it."""


class InputFile:
    """A regular file, open until nothing refers to it any more; read by position, so that readers share it.

    A file that is cut or replaced meanwhile ends in an `InputError`, or goes on as it was: no part of it is mapped into
    memory, where a cut would end the process.
    """

    def __init__(self, path: PathLike, *, what: str = "checkpoint", empty: bool = False):
        """Raises `InputError` if the file is missing, not regular, unreadable, empty or of more than 64 GB.

        empty: whether an empty file will do.
        """
        self.path = path
        self._file = open_input(path, what=what, max_bytes=MAX_CHECKPOINT_BYTES, empty=True)
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)
        info = os.fstat(self._file.fileno())
        self.size = info.st_size
        if info.st_size == 0 and not empty:
            raise InputError(f"{show_path(path)}: the file is empty; download or write it again")
        self.identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` bytes from `offset`, as uint8 of its own. Raises `InputError` if the file has no longer as many."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self._cut()
        out = np.empty(count, np.uint8)
        rest = out.data
        try:
            with self._lock:
                self._file.seek(offset)
                while len(rest):
                    got = self._file.readinto(rest[: 2**30])  # type: ignore[attr-defined]
                    if not got:
                        raise self._cut()
                    rest = rest[got:]
        except OSError as error:
            raise InputError(f"{show_path(self.path)}: cannot be read: {reason(error)}") from None
        return out

    def mapped(self, offset: int, count: int) -> np.ndarray:
        """`count` bytes from `offset`, read-only, for what may be larger than memory: a map of a copy on the disk.

        The copy has no name, so nobody can cut it: a map of the file itself would end the process without a line when
        the file is cut. It lies where temporary files do (TMPDIR). Raises `InputError` as `read`, or if there is no
        room for it.
        """
        try:
            with tempfile.TemporaryFile() as copy:
                for start in range(offset, offset + count, _PIECE):
                    copy.write(self.read(start, min(_PIECE, offset + count - start)).data)
                copy.flush()
                return np.asarray(np.memmap(copy, np.uint8, "r", 0, (count,)))
        except OSError as error:
            if isinstance(error, InputError):
                raise
            room = f"{count:,} bytes of it need room in {show_path(tempfile.gettempdir())} (TMPDIR)"
            raise InputError(f"{show_path(self.path)}: {room}: {reason(error)}") from None

    def content(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end of the file."""
        return self.read(offset, max(0, min(count, self.size - offset))).tobytes()

    def at_start(self) -> IO[bytes]:
        """The file itself, at its start, for a reader that goes through it once."""
        self._file.seek(0)
        return self._file

    def sha256(self) -> str:
        """sha256 of the whole file as 64 hexadecimal digits; made once for a file that stays as it is."""
        if self.identity not in _digests:
            digest, position = hashlib.sha256(), 0
            while position < self.size:
                count = min(2**20, self.size - position)
                digest.update(self.read(position, count).data)
                position += count
            while len(_digests) >= _KEPT:
                _digests.pop(next(iter(_digests)))
            _digests[self.identity] = digest.hexdigest()
        return _digests[self.identity]

    def _cut(self) -> InputError:
        return InputError(f"{show_path(self.path)}: was cut while it was read; write or download it again")


_PIECE = 2**24
_KEPT = 1000
_digests: dict[tuple[int, ...], str] = {}


def sha256(path: PathLike | InputFile) -> str:
    """sha256 of a file as 64 hexadecimal digits; of a file that did not change meanwhile it is made once a process.

    Raises `InputError` if it cannot be read.
    """
    return (path if isinstance(path, InputFile) else InputFile(path, what="file", empty=True)).sha256()
