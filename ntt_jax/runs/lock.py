"""One run at a time in a folder."""

import contextlib
import os
import re
import socket
from pathlib import Path

from filelock import lock_descriptor

from ntt_jax.errors import InputError
from ntt_jax.files import open_in_place, show_path

_NAME = "lock"
_EARLIER = "lock-*"
"""The locks of the further processes of an earlier version."""


class FolderLock:
    """Keeps every other process out of `folder` until it is closed or the process ends, however.

    Use as a context manager. Raises `InputError`, naming the process that holds it, if the folder is taken; the folder
    is then as it was. The file `lock` says who holds it; it stays when the lock is free.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._handle = open_in_place(folder / _NAME)
        try:
            self._check_ours()
            for path in (folder / _NAME, *sorted(folder.glob(_EARLIER))):
                self._take(path)
            os.ftruncate(self._handle, 0)
            self._write(f"process {os.getpid()} on {socket.gethostname()}\n")
        except BaseException:
            os.close(self._handle)
            raise

    def _take(self, path: Path) -> None:
        """Lock `path`. Raises `InputError` if another process has it; of an earlier version's locks that is all."""
        earlier = path.name != _NAME
        handle = open_in_place(path, create=False) if earlier else self._handle
        try:
            taken = not lock_descriptor(handle, blocking=False)
        except OSError as error:
            raise InputError(
                f"{show_path(self.folder)}: its file system offers no file locks ({error.strerror}), without which "
                "two runs could mix; mount it with locks, or give another --out"
            ) from None
        finally:
            if earlier:
                os.close(handle)
        if taken:
            who = _read(handle, 200).decode(errors="replace").strip() if not earlier else "of an earlier version"
            raise InputError(
                f"{show_path(self.folder)} is in use by another ntt-jax ({who}); wait for it or give another --out"
            )

    def _check_ours(self) -> None:
        """Raise `InputError` if something else is written in the file of this name, which would be lost."""
        if not re.fullmatch(rb"(process \d+ on .*)?", _read(self._handle, 4096), re.DOTALL):
            path = show_path(self.folder / _NAME)
            raise InputError(f"{path}: a file of this name, but not of this program, is here; give another --out")

    def _write(self, text: str) -> None:
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, text.encode())

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._handle)


def _read(handle: int, count: int) -> bytes:
    """The first bytes of a file; none where the system lets nobody read what another process has locked (Windows)."""
    with contextlib.suppress(PermissionError):
        os.lseek(handle, 0, os.SEEK_SET)
        return os.read(handle, count)
    return b""
