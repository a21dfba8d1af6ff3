"""The folder that formats are written to: inside it, atomically, its own files only.

`formats.list` in the folder names the files that formats wrote, with a checksum of each content that was ever meant for
them. So a later run removes what is out of date, and leaves alone what a person made or corrected meanwhile. It is
written before the files: a killed run leaves no file that nobody knows.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType

from ntt_jax.errors import InputError
from ntt_jax.files import (
    check_output,
    make_folder,
    open_in_place,
    open_input,
    parse_json,
    read_bytes,
    show_path,
    write_bytes,
)
from ntt_jax.notes import Notes

LIST = "formats.list"
_MAX_LIST_BYTES = 256 * 1024**2
_MAX_LINE_BYTES = 2**16
_KEPT = "files that were made or changed by others, left as they are"
_ADVICE = "move them away to have them written anew"
_CHUNK = 2**20


class Output:
    """A folder as formats write to it; use it in a `with` block.

    root: an existing folder. notes: hears of files that are left as they are; a format may add to it.
    """

    def __init__(self, root: Path, notes: Notes | None = None):
        self.root = root
        self.notes = Notes() if notes is None else notes
        self._known: dict[str, dict[str, set[str]]] = {}  # by format and name: checksums
        self._written: set[str] = set()
        self._format = ""
        self._list = -1

    def __enter__(self) -> "Output":
        os.close(open_in_place(self.root / LIST))  # made if it is not there; refused if it is a link
        self._known = _read_list(self.root / LIST)
        self._save()  # whole lines only, so that more can be added
        self._list = open_in_place(self.root / LIST)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        os.close(self._list)
        if kind is None:
            self._save()

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Write the files of the format `name`; those of it that the block did not write are removed at its end."""
        self._format, self._written = name, set()
        yield
        known = self._known.get(name, {})
        for file in sorted(set(known) - self._written):
            self._remove(file, known.pop(file))

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, by its name below the folder, with slashes. Text becomes UTF-8.

        Raises `InputError` if the name would lead out of the folder, and as `files.replacing` and `make_folder`.
        """
        if not _inside(name):
            raise InputError(f"{show_path(name)}: a name that leads out of {show_path(self.root)}; nothing was written")
        data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
        path, checksum = self.root / name, hashlib.sha256(data).hexdigest()
        make_folder(path.parent, self.root)
        check_output(path)
        known = self._known.setdefault(self._format, {}).setdefault(name, set())
        self._written.add(name)
        found = _checksum(path)
        if found is not None and found not in known and found != checksum:
            self.notes.add(_KEPT, show_path(path), _ADVICE)
            return
        if checksum not in known:
            known.add(checksum)
            os.lseek(self._list, 0, os.SEEK_END)
            os.write(self._list, _line(self._format, name, checksum))
        if found != checksum:
            write_bytes(path, data)
        known.intersection_update({checksum})

    def _save(self) -> None:
        lines = [
            _line(name, file, checksum)
            for name, files in self._known.items()
            for file, checksums in files.items()
            for checksum in sorted(checksums)
        ]
        write_bytes(self.root / LIST, b"".join(lines))

    def _remove(self, name: str, checksums: set[str]) -> None:
        path = self.root / name
        if not _inside(name) or os.path.realpath(path.parent) != os.path.join(
            os.path.realpath(self.root), *_folders(name)
        ):
            return  # not what we wrote: a link lies on the way
        if os.path.islink(path) or not os.path.isfile(path):
            return
        if _checksum(path) not in checksums:
            self.notes.add(_KEPT, show_path(path), _ADVICE)
            return
        with contextlib.suppress(OSError):
            path.unlink()
            for folder in path.parents[: len(_folders(name))]:
                folder.rmdir()  # ends at the first that is not empty


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate, which no name of a file has
        return False
    odd = path.is_absolute() or ".." in path.parts or "\0" in name or not path.name
    return not odd and not os.path.isabs(name) and not os.path.splitdrive(name)[0]


def _folders(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts[:-1]


def _checksum(path: Path) -> str | None:
    """SHA-256 of a regular file, None if there is none. Raises `InputError` if it cannot be read."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    with open_input(path, empty=True) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _line(format_name: str, name: str, checksum: str) -> bytes:
    return f"{json.dumps([checksum, format_name, name])}\n".encode("ascii")


def files_of(root: Path, formats: Iterable[str]) -> list[str]:
    """Names of the files that these formats wrote below a folder, by its list, and that are there."""
    known = _read_list(root / LIST) if (root / LIST).exists() else {}
    names = (name for one in formats for name in sorted(known.get(one, ())))
    return [name for name in names if _inside(name) and (root / name).is_file() and not (root / name).is_symlink()]


def _read_list(path: Path) -> dict[str, dict[str, set[str]]]:
    """What the list says; a line that is not whole (the process was killed, the disk full) says nothing."""
    known: dict[str, dict[str, set[str]]] = {}
    if path.stat().st_size == 0:
        return known
    for line in read_bytes(path, max_bytes=_MAX_LIST_BYTES, what="list of written files").splitlines():
        try:
            row = parse_json(line, path, what="line") if len(line) <= _MAX_LINE_BYTES else None
        except InputError:
            continue
        if type(row) is list and len(row) == 3 and all(type(text) is str for text in row) and _inside(row[2]):
            checksum, format_name, name = row
            known.setdefault(format_name, {}).setdefault(name, set()).add(checksum)
    return known
