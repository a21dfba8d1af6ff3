"""A zip from a server, unpacked within limits: what it may write is known before, and nothing it claims is believed.

Only files that were asked for are written, whole or not at all, into real folders below the one given. How many bytes
and files there may be comes from the caller, who knows what the true archive holds; the zip's own numbers are compared
with it, and what arrives is counted again while it is written.
"""

import io
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ntt_jax.errors import InputError
from ntt_jax.files import make_folder, open_input, reason, replacing, show_path
from ntt_jax.hub.fetch import StorageError, megabytes
from ntt_jax.text import counted

_LARGER = 2
"""A mirror may pack differently: so many times the known numbers are allowed."""
_MAX_RATIO = 100
"""Bytes out of one that is stored; annotation files give 5, deflate can give 1,032."""
_MAX_DIRECTORY_BYTES = 4 * 2**20
"""Of the zip's own list of files, which is held in memory at about ten times its size; COCO's takes 0.5 MB."""
_MAX_NAME = 200
_PIECE = 2**20


@dataclass(frozen=True)
class Archive:
    """A zip that is known.

    path: below the server's address. size, unpacked: about, in bytes. members: what is taken from it, names of files or
    of folders that end in /. files: how many those are.
    """

    path: str
    size: int
    unpacked: int
    members: tuple[str, ...]
    files: int

    @property
    def max_size(self) -> int:
        """Bytes beyond which what a server sends is another file."""
        return _LARGER * self.size


def unpack(path: Path, folder: Path, known: Archive) -> None:
    """Unpack the members of a zip; files that are there with their size are left alone.

    Raises:
        InputError: the zip is damaged (it is deleted then), or not the one that is known: it holds none of the members,
            more files or bytes than it can, names that lead out of the folder, links, or the same name twice; nothing
            is written then.
        StorageError: the disk has not the room for what it would write.
    """
    shown = show_path(path)
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            wanted = list(_wanted(archive, folder, known, shown))
            room, free = sum(one.file_size for one, _ in wanted), shutil.disk_usage(folder).free
            if room > free:
                raise StorageError(
                    f"{show_path(folder)}: not enough space: {megabytes(room)} to unpack from {shown}, "
                    f"{megabytes(free)} free; free some and start again"
                )
            for one, target in wanted:
                make_folder(target.parent, folder)
                with archive.open(one) as source, replacing(target) as out:
                    _copy(source, out, one.file_size)
    except InputError:
        raise
    # RuntimeError: encrypted, or of a version that is not known. The others: places and names that cannot be.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        path.unlink(missing_ok=True)
        raise InputError(f"{shown}: damaged ({error!s:.200}); it was deleted, start again") from None
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {reason(error)}") from None


def _wanted(
    archive: zipfile.ZipFile, folder: Path, known: Archive, shown: str
) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """The entries to write and where, all of them looked at before the first is."""
    folders = tuple(one for one in known.members if one.endswith("/"))
    chosen = [
        one
        for one in archive.infolist()
        if not one.is_dir() and (one.filename in known.members or one.filename.startswith(folders))
    ]
    if not chosen:
        raise InputError(f"{shown}: holds no {known.members[0]}; is it another archive?")
    advice = "it is not the archive that is known under this name; remove it and start again, or fetch it elsewhere"
    if len(chosen) > _LARGER * known.files:
        raise InputError(f"{shown}: holds {counted(len(chosen), 'file')} where {known.files} are known; {advice}")
    if (size := sum(one.file_size for one in chosen)) > _LARGER * known.unpacked:
        raise InputError(
            f"{shown}: would write {megabytes(size)} where {megabytes(known.unpacked)} are known; {advice}"
        )
    names: set[str] = set()
    for one in chosen:
        name, said = PurePosixPath(one.filename), f"{one.filename!a:.80}"
        odd = "\\" in one.filename or ":" in one.filename or not one.filename.isprintable()
        if odd or name.is_absolute() or ".." in name.parts or len(one.filename) > _MAX_NAME:
            raise InputError(f"{shown}: {said} would be written outside the folder, or is no name of a file; {advice}")
        if stat.S_IFMT(one.external_attr >> 16) not in (0, stat.S_IFREG):  # 0: made on a system without such modes
            raise InputError(f"{shown}: {said} is a link or a device, not a file; {advice}")
        if str(name).casefold() in names:
            raise InputError(f"{shown}: {said} stands there twice; {advice}")
        names.add(str(name).casefold())
        if one.header_offset < 0:
            raise zipfile.BadZipFile(f"{said} lies before the file's first byte")
        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"{said} is packed in another way than stored or deflated")
        if one.file_size > _MAX_RATIO * (one.compress_size + _PIECE // _MAX_RATIO):
            raise InputError(
                f"{shown}: {said} claims {megabytes(one.file_size)} from {megabytes(one.compress_size)}; {advice}"
            )
        target = folder.joinpath(*name.parts)
        if not (target.is_file() and target.stat().st_size == one.file_size):
            yield one, target


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> None:
    """`size` bytes, no more; the zip's checksum is compared when the last has been read."""
    written = 0
    while piece := source.read(_PIECE):
        written += len(piece)
        if written > size:
            raise zipfile.BadZipFile("more bytes than its own list says")
        out.write(piece)
    if written != size:
        raise zipfile.BadZipFile("fewer bytes than its own list says")


class _Bounded(io.BufferedReader):
    """A zip whose list of files is read as a whole, and is refused where that alone would fill the memory."""

    def __init__(self, path: Path):
        """Raises `InputError` as `open_input`."""
        super().__init__(cast(io.BufferedReader, open_input(path, what="zip archive")).detach())

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, but for more than `_MAX_DIRECTORY_BYTES` at once."""
        asked = -1 if size is None else size
        data = super().read(asked if 0 <= asked <= _MAX_DIRECTORY_BYTES else _MAX_DIRECTORY_BYTES + 1)
        if len(data) > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of files takes more than {megabytes(_MAX_DIRECTORY_BYTES)}")
        return data
