"""One run at a time in a folder."""

import fcntl
import os
import re
import socket
import time
from pathlib import Path

from ntt_jax.errors import InputError
from ntt_jax.files import open_in_place, show_path
from ntt_jax.runs.processes import Processes


class FolderLock:
    """Keeps every other process out of this one's place in `folder` until it is closed or the process ends, however.

    Use as a context manager. Raises `InputError`, naming the process that holds it, if the place is taken.
    """

    def __init__(self, folder: Path, processes: Processes | None = None):
        self.folder, self.processes = folder, processes or Processes()
        self._seen: set[int] = set()
        handle = open_in_place(self._path(self.processes.index))
        self._check_ours(handle)
        for attempt in range(20):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt < 19:  # somebody may only be looking who holds it (`holder`)
                    time.sleep(0.01)
            except OSError as error:
                os.close(handle)
                raise InputError(
                    f"{show_path(self.folder)}: its file system offers no file locks ({error.strerror}), without which "
                    "two runs could mix; mount it with locks, or give another --out"
                ) from None
        else:
            who = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise self._taken(who)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle

    def _path(self, index: int) -> Path:
        return self.folder / (f"lock-{index}" if index else "lock")

    def _check_ours(self, handle: int) -> None:
        """Raise `InputError` if something else is written in the file of this name, which would be lost."""
        if not re.fullmatch(rb"(process \d+ on .*)?", os.pread(handle, 4096, 0), re.DOTALL):
            os.close(handle)
            path = show_path(self._path(self.processes.index))
            raise InputError(f"{path}: a file of this name, but not of this program, is here; give another --out")

    def _taken(self, who: str) -> InputError:
        return InputError(
            f"{show_path(self.folder)} is in use by another ntt-jax ({who}); wait for it or give another --out"
        )

    def holder(self, index: int) -> str | None:
        """Who holds the place of process `index`, in words; None if nobody does."""
        try:
            handle = open_in_place(self._path(index), create=False)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
        finally:
            os.close(handle)
        return None

    def watch(self) -> None:
        """Raise `InputError` if one of the other processes was here and is gone.

        Process 0 looks after all, the others after process 0: each question may be one to a file server.
        """
        for index in range(1, self.processes.count) if self.processes.index == 0 else (0,):
            if self.holder(index) is not None:
                self._seen.add(index)
            elif index in self._seen:
                raise self.ended(index)

    def ended(self, index: int) -> InputError:
        """The error that process `index` ended too early."""
        return InputError(
            f"process {index} of {self.processes.count} ended before its share was finished; what is finished is "
            f"saved in {show_path(self.folder)}: start all processes again to go on"
        )

    def check_alone(self) -> None:
        """Raise `InputError` if a process of an earlier start, when there were more of them, still works here."""
        for path in sorted(self.folder.glob("lock-*")):
            number = path.name.removeprefix("lock-")
            if number.isdecimal() and int(number) >= self.processes.count and (who := self.holder(int(number))):
                raise self._taken(who)

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._handle)
