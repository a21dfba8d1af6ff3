"""Files on the host: looked at before they are opened, read within limits, written whole or not at all.

Every file that this project reads goes through `open_input` (regular files only, so that nothing waits for a pipe),
every file that it writes through `replacing` (beside, then renamed) or, where it grows in place, `open_in_place`. None
of the two that write follows a symbolic link: what a link points at is somebody's own.
"""

import contextlib
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from ntt_jax.errors import InputError
from ntt_jax.text import article, one_line
from ntt_jax.text import describe as describe

PathLike = str | os.PathLike[str]

_SMALL = 2**24
TEMPORARY = f".*.{'[0-9a-f]' * 16}.tmp"
"""Pattern of the names of files that are being written (`replacing`), or were when the process was killed."""


def show_path(path: PathLike) -> str:
    """The path as it appears in messages: itself, or quoted where it would not stay on one line."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def open_input(path: PathLike, *, what: str = "file", max_bytes: int | None = None, empty: bool = False) -> IO[bytes]:
    """A regular file, opened to be read from its start. `what` names its kind in messages ("annotation file").

    Pipes, devices, sockets and folders are refused before they are opened and never waited for. Links are followed:
    data sets and caches are made of them. empty: whether an empty file will do.

    Raises `InputError`, naming the file, if it is missing, not regular, unreadable, empty or of more than `max_bytes`.
    """
    shown = show_path(path)
    try:
        expected = f"{shown}: expected a file" + ("" if what == "file" else f" ({what})")
        _require_regular(os.stat(path), expected)
        flags = os.O_RDONLY | _flag("O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", "O_BINARY")
        descriptor = os.open(path, flags)
        try:
            info = os.fstat(descriptor)  # another file may have taken its place
            _require_regular(info, expected)
            if info.st_size == 0 and not empty:
                raise InputError(f"{shown}: expected {article(what)}, found an empty file")
            if max_bytes is not None and info.st_size > max_bytes:
                raise InputError(f"{shown}: the {what} is larger than the limit of {max_bytes:,} bytes")
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown}: cannot read the {what}: {reason(error)}") from error


def read_bytes(path: PathLike, *, max_bytes: int, what: str, holes: bool = False) -> bytes:
    """The whole file. Raises `InputError` as `open_input`, and when the file grows beyond `max_bytes` meanwhile.

    holes: whether parts of a large file may never have been written. They read as zeros, which nothing but raw pixels
    has: a file that says it is gigabytes and takes no room on the disk is not read.
    """
    with open_input(path, what=what, max_bytes=max_bytes) as file:
        try:
            if not holes and has_hole(file):
                raise InputError(f"{show_path(path)}: the {what} has parts that were never written; copy it again")
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise InputError(f"{show_path(path)}: cannot read the {what}: {reason(error)}") from error
    if not data:
        raise InputError(f"{show_path(path)}: expected {article(what)}, found an empty file")
    if len(data) > max_bytes:
        raise InputError(f"{show_path(path)}: the {what} is larger than the limit of {max_bytes:,} bytes")
    return data


def check_output(path: PathLike) -> None:
    """Raise `InputError` unless `path` is free to be written: nothing is there, or a regular file to be replaced."""
    shown = show_path(path)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{shown}: cannot be written: {reason(error)}") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{shown}: is a folder, expected the name of the file to write")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{shown}: is {_kind(found.st_mode)}, which is not replaced; remove it or give another name")


def open_in_place(path: PathLike, *, create: bool = True, write: bool = True) -> int:
    """A descriptor of a file of ours that changes in place (a lock, records); made if it is not there.

    Nothing of the file is changed by opening it. Raises `InputError` for whatever else lies under its name (a link, a
    pipe, a folder) and for a file with a second name: what would be changed may be somebody's own. Raises
    `FileNotFoundError` without `create`, other `OSError` as the file system does.
    """
    with contextlib.suppress(FileNotFoundError):
        _require_ours(os.lstat(path), path)
    flags = (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0)
    flags |= _flag("O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", "O_BINARY")
    descriptor = os.open(path, flags, 0o644)
    try:
        _require_ours(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(folder: PathLike, inside: PathLike) -> None:
    """Make `folder` below the folder `inside`, with what lies between. Raises `InputError` where a link or a file is.

    A link below our own folder would lead what is written there, and what is cleared away there, to somebody else's.
    """
    root, target = os.path.abspath(inside), os.path.abspath(folder)
    if os.path.commonpath([root, target]) != root:
        raise InputError(f"{show_path(folder)}: lies outside {show_path(inside)}")
    place = root
    for part in os.path.relpath(target, root).split(os.sep):
        place = os.path.join(place, part)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(place)
            mode = os.lstat(place).st_mode
        except (OSError, ValueError) as error:
            raise InputError(f"{show_path(place)}: cannot make the folder: {reason(error)}") from error
        if not stat.S_ISDIR(mode):
            raise InputError(f"{show_path(place)}: is {_kind(mode)}, expected a folder; remove it or give another one")


def check_private(folder: PathLike) -> str | None:
    """Why somebody else could have placed or could place a file in `folder`, in words; None if nobody could.

    The folder, everything directly in it and the folders above must belong to this user (those above: or to the
    system), and nobody else may write to them. Raises `OSError` as the file system does.
    """
    if not hasattr(os, "getuid"):  # other systems protect a user's folders by other means
        return None
    mine, others = os.getuid(), stat.S_IWGRP | stat.S_IWOTH
    place = pathlib.Path(os.path.abspath(folder))
    for above in place.parents:
        found = above.stat()
        # 65534 stands for users of the system that a container does not know.
        if found.st_uid not in (mine, 0, 65534):
            return f"{show_path(above)} belongs to another user"
        if found.st_mode & others and not found.st_mode & stat.S_ISVTX:
            return f"{show_path(above)} can be written by other users"
    found = place.stat()
    if found.st_uid != mine:
        return "it belongs to another user"
    if found.st_mode & others:
        return "it can be written by other users"
    with os.scandir(place) as entries:
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            if info.st_uid != mine or not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
                return f"{show_path(entry.name)} in it is not a file of this user"
            if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
                return f"{show_path(entry.name)} in it has a second name elsewhere"
            if info.st_mode & others and found.st_mode & (stat.S_IXGRP | stat.S_IXOTH):
                return f"{show_path(entry.name)} in it can be written by other users"
    return None


def remove_temporaries(folder: PathLike) -> None:
    """Remove what a process that was killed while it wrote a file has left; folders of such names are not ours."""
    for left in pathlib.Path(folder).glob(TEMPORARY):
        with contextlib.suppress(OSError):
            left.unlink()


def reason(error: BaseException) -> str:
    """What went wrong, in one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(str(text), 200)


def _flag(*names: str) -> int:
    """Flags of `os.open` together, without those that this system does not know."""
    flags = 0
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISREG, "a file"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((words for is_kind, words in kinds if is_kind(mode)), "a device")


def _require_regular(info: os.stat_result, expected: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = _kind(info.st_mode)
        raise InputError(f"{expected}, found {kind}" + ("" if kind == "a folder" else ", not a regular file"))


def _require_ours(info: os.stat_result, path: PathLike) -> None:
    if not stat.S_ISREG(info.st_mode):
        found = f"is {_kind(info.st_mode)}, expected a file of this program"
    elif info.st_nlink > 1:
        found = f"is a file with {info.st_nlink} names (hard links), all of which would change"
    else:
        return
    raise InputError(f"{show_path(path)}: {found}; remove it or give another folder")


def has_hole(file: IO[bytes]) -> bool:
    """Whether the system knows of a part of a large file that was never written; where the file stands stays."""
    if not hasattr(os, "SEEK_HOLE"):
        return False
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    if size < _SMALL:
        return False
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        return os.lseek(descriptor, 0, os.SEEK_HOLE) < size
    except OSError:  # not every file system knows
        return False
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)


_STRANGERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; run `git lfs pull` where it came from"),
    (b"\x1f\x8b", "a file compressed with gzip; unpack it first"),
    (b"\x93NUMPY", "an array of NumPy; read it with numpy.load and give the array, or save it as PNG"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"<", "a page of HTML or XML, perhaps a server's answer in place of the file; download it again"),
)


def describe_stranger(data: bytes) -> str | None:
    """What a file is, by its first bytes, that people often have in place of JSON or an image; None for others."""
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((words for magic, words in _STRANGERS if start.startswith(magic)), None)


MAX_CONTAINERS = 500_000
"""Lists and objects that a JSON file may hold whatever its size; beyond, one for every 32 bytes of it.

An empty list is 3 bytes of text and 64 in memory. Honest files stay far below: COCO has one for every 120 bytes.
"""
_BYTES_PER_NUMBER = 6
"""A large file with more values than one for so many bytes is parsed with equal numbers shared: "-6," is 3 bytes of
text and 37 in memory, and 9 where it is one object for all. Others are parsed as quickly as they can be."""
_KEYS_PER_OBJECT = 32  # on average, beyond MAX_CONTAINERS: COCO has 7


def parse_json(data: bytes, path: PathLike, *, what: str, strict: bool = False) -> Any:
    """JSON (UTF-8, -16 or -32) from bytes. Raises `InputError` naming `path` and the line and column of the fault.

    strict: refuse a key that stands twice in one object, and NaN and Infinity, which JSON itself does not know.
    So that a small file cannot fill the memory, lists, objects, keys and texts are counted first (`MAX_CONTAINERS`).
    """
    shown = show_path(path)
    if len(data) > MAX_CONTAINERS:
        objects, limit = data.count(b"{"), MAX_CONTAINERS + len(data) // 32
        if (found := objects + data.count(b"[")) > limit:
            raise InputError(f"{shown}: the {what} holds {found:,} lists and objects, more than {limit:,} for its size")
        if (keys := data.count(b":")) > MAX_CONTAINERS + _KEYS_PER_OBJECT * objects + len(data) // 64:
            raise InputError(f"{shown}: the {what} holds {keys:,} keys in {objects:,} objects, too many to be sound")
        if (found := data.count(b'"') // 2) > MAX_CONTAINERS + 2 * keys + len(data) // 64:
            raise InputError(f"{shown}: the {what} holds {found:,} texts for {keys:,} keys, too many to be sound")
    if (words := describe_stranger(data)) is not None:
        raise InputError(f"{shown}: expected {article(what)}, found {words}")
    rules: dict[str, Any] = {"object_pairs_hook": _unique_keys, "parse_constant": _no_constant} if strict else {}
    if len(data) > _SMALL and data.count(b",") > len(data) // _BYTES_PER_NUMBER:
        rules |= {"parse_int": _Shared(int).__getitem__, "parse_float": _Shared(float).__getitem__}
    try:
        return json.loads(data, **rules)
    except _NotStrict as error:
        raise InputError(f"{shown}: the {what} is not valid JSON: {error}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{shown}: the {what} is not valid JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise InputError(f"{shown}: the {what} is nested too deeply to be read") from error
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}"
        raise InputError(
            f"{shown}: the {what} is not valid JSON: not text in UTF-8 ({where}); save it in UTF-8"
        ) from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise InputError(f"{shown}: the {what} is not valid JSON: {type(error).__name__}") from error


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """A binary file to write and read that takes the place of `path` only when the block ends without an error.

    It is written beside `path` under a temporary name, flushed to the disk and renamed; whatever happens before that
    leaves `path` as it was and no temporary file behind, but for a kill. Raises `InputError` if the file system refuses
    (disk full, folder missing, no permission); other exceptions of the block pass through.
    """
    target = os.path.abspath(path)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".{os.path.basename(target)[:100]}.{secrets.token_hex(8)}.tmp")
    check_output(path)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _flag("O_BINARY", "O_CLOEXEC")
        descriptor = os.open(temporary, flags, 0o666)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{show_path(path)}: cannot be written: {reason(error)}") from error


def write_bytes(path: PathLike, chunks: bytes | Iterable[bytes]) -> None:
    """Write a file whole or not at all, as `replacing` does, and with its errors."""
    with replacing(path) as file:
        for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
            file.write(chunk)


def lists_for_tuples(value: Any) -> Any:
    """The value with a list in place of every tuple, as JSON gives it back."""
    if isinstance(value, dict):
        return {key: lists_for_tuples(one) for key, one in value.items()}
    return [lists_for_tuples(one) for one in value] if isinstance(value, (list, tuple)) else value


def write_json(path: PathLike, value: Any) -> None:
    """Write a value as indented JSON through `write_bytes`. NaN and infinities are refused (`InputError`)."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{show_path(path)}: cannot be written as JSON: {reason(error)}") from error
    write_bytes(path, (text + "\n").encode("ascii"))


def sync_folder(folder: PathLike) -> None:
    """Make a new or renamed file's name durable, where the system can (Windows and some network systems cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Shared(dict[str, Any]):
    """Numbers by their text, each made once if the text is short: there are not many of those."""

    def __init__(self, kind: Callable[[str], Any]):
        super().__init__()
        self._kind = kind

    def __missing__(self, text: str) -> Any:
        number = self._kind(text)
        if len(text) <= _BYTES_PER_NUMBER:
            self[text] = number
        return number


class _NotStrict(ValueError):
    """What `parse_json` refuses beyond the grammar."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _NotStrict("the same key twice in one object")
    return out


def _no_constant(name: str) -> Any:
    raise _NotStrict(f"{name} is no number")
