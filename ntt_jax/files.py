"""Reading and writing files on the host: size limits, strict JSON, whole-or-nothing writes, one-line error texts."""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from typing import IO, Any

from ntt_jax.errors import InputError

PathLike = str | os.PathLike[str]

TEMPORARY = f".*.{'[0-9a-f]' * 16}.tmp"
"""Pattern of the names of files that are being written (`replacing`), or were when the process was killed."""


def show_path(path: PathLike) -> str:
    """The path as it appears in messages: itself, or quoted where it would not stay on one line."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def describe(value: Any, limit: int = 60) -> str:
    """A short, single-line account of any value of an untrusted file; never raises, whatever the nesting or size."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return "null" if value is None else repr(value)
    if isinstance(value, str):
        return ascii(value) if len(value) <= limit else f"{value[:limit]!a}..."
    if isinstance(value, (list, tuple)):
        if 0 < len(value) <= 4 and all(v is None or isinstance(v, (bool, int, float)) for v in value):
            return "[" + ", ".join(describe(v) for v in value) + "]"
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    return f"a {type(value).__name__}"


def read_bytes(path: PathLike, *, max_bytes: int, what: str) -> bytes:
    """The whole file. `what` names its kind in messages ("annotation file").

    Raises `InputError` if it is missing, not a regular file (a folder, a pipe), unreadable, empty, or larger than
    `max_bytes`.
    """
    shown = show_path(path)
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise InputError(f"{shown}: expected a file ({what}), found {kind}")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise InputError(f"{shown}: cannot read the {what}: {reason}") from error
    if not data:
        raise InputError(f"{shown}: expected a {what}, found an empty file")
    if len(data) > max_bytes:
        raise InputError(f"{shown}: the {what} is larger than the limit of {max_bytes:,} bytes")
    return data


def parse_json(data: bytes, path: PathLike, *, what: str) -> Any:
    """JSON (UTF-8, -16 or -32) from bytes. Raises `InputError` naming `path` and the line and column of the fault."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{show_path(path)}: the {what} is not valid JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise InputError(f"{show_path(path)}: the {what} is nested too deeply to be read") from error
    except ValueError as error:  # undecodable text, or an integer of more than 4300 digits
        raise InputError(f"{show_path(path)}: the {what} is not valid JSON: {type(error).__name__}") from error


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
    if os.path.isdir(target):
        raise InputError(f"{show_path(path)}: is a folder, expected the name of the file to write")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
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
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise InputError(f"{show_path(path)}: cannot be written: {reason}") from error


def write_bytes(path: PathLike, chunks: bytes | Iterable[bytes]) -> None:
    """Write a file whole or not at all, as `replacing` does, and with its errors."""
    with replacing(path) as file:
        for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
            file.write(chunk)


def write_json(path: PathLike, value: Any) -> None:
    """Write a value as indented JSON through `write_bytes`. NaN and infinities are refused (`ValueError`)."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("ascii"))


def sync_folder(folder: PathLike) -> None:
    """Make a new or renamed file's name durable, where the system can (Windows and some network systems cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
