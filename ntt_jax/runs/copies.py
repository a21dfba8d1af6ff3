"""What a run wrote, copied to an address: every file by one put, which a store takes whole or not at all.

A store has no renaming that takes no time, so nothing is put under a temporary name there. What has arrived is noted
beside the files (copied.txt), with its SHA-256, so that the next start puts only what is new or has changed. The file
that speaks of the others comes last. Nothing is removed from the address.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ntt_jax.errors import InputError
from ntt_jax.files import open_in_place, show_path
from ntt_jax.formats import files_of
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.remote import PAUSE, TRIES, Address, put
from ntt_jax.runs.observer import Observer, work
from weight_port.files import sha256

NOTE = "copied.txt"
_AT_ONCE = 8


def copy_out(folder: Path, names: Iterable[str], address: Address, observer: Observer) -> int:
    """Copy files of a folder, by their names below it and in this order at last, to the address; returns how many.

    Those that an earlier call has copied there and that are the same now are left out. Raises `InputError` naming the
    file that could not be put; what has arrived before stays noted.
    """
    names = list(dict.fromkeys(names))
    with _Note(folder / NOTE, address) as note:
        *many, last = names

        def copied(name: str) -> tuple[str, str] | None:
            digest = sha256(folder / name)
            if note.arrived.get(name) == digest:
                return None
            _put(folder / name, address / name)
            return name, digest

        count = 0
        with work(observer, "copy", len(names), unit="files"):
            for part in (many, [last]):
                for done in map_ahead(copied, part, ahead=_AT_ONCE, workers=_AT_ONCE):
                    if done is not None:
                        note.add(*done)
                        count += 1
                    observer.step()
    return count


def written(folder: Path, pictures: Iterable[str], formats: Iterable[str], last: str) -> Iterator[str]:
    """Names of the files in these folders of a folder, links aside, of those that formats wrote there, and `last`."""
    for part in pictures:
        if not (top := folder / part).is_symlink():
            for file in sorted(top.rglob("*")):
                if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
                    yield file.relative_to(folder).as_posix()
    yield from files_of(folder, formats)
    yield last


def _put(file: Path, address: Address) -> None:
    for left in reversed(range(TRIES)):
        try:
            put(file, address)
            return
        except InputError as error:
            if not left or not isinstance(error.__cause__, OSError):
                raise
        time.sleep(PAUSE * 2 ** (TRIES - 1 - left))


class _Note:
    """Which files have arrived at an address, by name with their SHA-256. Use as a context manager."""

    def __init__(self, path: Path, address: Address):
        self._path, self._head = path, f"{address}\n"
        self.arrived: dict[str, str] = {}

    def __enter__(self) -> "_Note":
        self._file = os.fdopen(
            open_in_place(self._path), "r+", encoding="utf-8", errors="surrogateescape", newline="\n"
        )
        try:
            if self._file.readline() == self._head:
                for line in self._file:
                    digest, space, name = line.removesuffix("\n").partition("  ")
                    if space and line.endswith("\n"):
                        self.arrived[name] = digest
            else:  # new, or of another address
                self._file.seek(0)
                self._file.truncate()
                self._file.write(self._head)
            self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise
        return self

    def add(self, name: str, digest: str) -> None:
        """A file has arrived."""
        self.arrived[name] = digest
        self._file.write(f"{digest}  {name}\n")
        self._file.flush()

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()


def check_target(address: object) -> None:
    """Raise `InputError` unless files can be put at the address, as far as that is known without asking."""
    if not isinstance(address, Address):
        raise InputError(f"expected an address (s3://...), found {show_path(str(address))}; --out is the folder")
    if address.is_web:
        raise InputError(f"{address}: nothing can be put at a web address")
    address.check()
