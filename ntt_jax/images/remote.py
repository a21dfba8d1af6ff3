"""Files that lie elsewhere, read through fsspec: `https://`, `s3://`, `gs://` and whatever else it reaches.

An `Address` is what a person wrote (on the command line, in a list of their own); a name inside an annotation file
never becomes one. What comes from there is bytes of a stranger: fetched whole, within a limit, never left on the disk.
"""

import contextlib
import errno
import functools
import logging
import re
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import reason
from ntt_jax.text import article, one_line

SECONDS = 300.0
"""How long one file may take to arrive, tries that failed among it."""
TRIES = 4
"""How often a file is asked for, where the network or the server is at fault."""
PAUSE = 0.5
"""Seconds before the second try; twice as long before each further one."""
_CONNECT, _SILENCE = 10.0, 30.0  # seconds
_CHUNK = 2**20
_DEPTH = 32  # folders within folders that are listed
MAX_LISTED = 10_000_000
MAX_FOLDERS = 100_000
"""Folders that one listing goes into, a request each: a web server's links may go round in circles."""

_SCHEME = re.compile(r"([A-Za-z][\w+.-]+(?:::[\w+.-]+)*)://", re.A)
_CHAINED = re.compile(r"::[\w+.-]+://", re.A)
_SIGNATURE = re.compile(r"x-(amz|goog)-", re.I)
# What tells one content from another in what stores say of a file, by how sure it is.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "generation",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file or folder is, as fsspec writes it: "s3://bucket/photos/a.jpg".

    It stands where a `Path` does for reading: `/` joins a name, and as text it is what messages and run.json show,
    without a password and a query, which may be a key. version: what tells its content from an earlier one, if known.
    """

    url: str
    version: str = ""

    def __fspath__(self) -> str:
        """The address as it is shown."""
        if not self.is_web:
            return self.url
        parts = urllib.parse.urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    __str__ = __fspath__

    def __truediv__(self, name: str) -> "Address":
        """The address of a file below this folder."""
        return Address(f"{self.url.rstrip('/')}/{urllib.parse.quote(name) if self.is_web else name}")

    @property
    def name(self) -> str:
        """The last part."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path) if self.is_web else self.url
        return PurePosixPath(path.rstrip("/")).name

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def identity(self) -> str:
        """What stands for the content: the address without what signs it, and the version."""
        url = self.url
        if self.is_web:
            parts = urllib.parse.urlsplit(url)
            asked = [one for one in parts.query.split("&") if not _SIGNATURE.match(one)]
            url = parts._replace(query="&".join(asked)).geturl()
        return f"{url}\n{self.version}"

    def check(self) -> None:
        """Raise `InputError` unless what reads such an address is installed. Asks nobody."""
        _connect(self)

    def exists(self) -> bool:
        """Whether a file is there. Raises `InputError` where that cannot be found out."""
        try:
            with _opened(self):
                return True
        except FileNotFoundError:
            return False
        except Exception as error:
            raise _unreadable(self, "image", error) from _as_os_error(error)

    @property
    def is_web(self) -> bool:
        """Whether a web server has it."""
        return self.url[:7].lower() == "http://" or self.url[:8].lower() == "https://"


Location = Path | Address
"""A file or folder, here or elsewhere."""


def location(text: str) -> Location:
    """What a person's text means: an address where it begins with "NAME://", else a path."""
    found = _SCHEME.match(text)
    if found is None:
        return Path(text)
    if found[1].lower() in ("file", "local"):
        return Path(text[found.end() :])
    return Address(text)


def is_pattern(address: Address) -> bool:
    """Whether an address stands for many files ("*", "[")."""
    return _before_pattern(address.url) is not None


def _before_pattern(path: str) -> str | None:
    """The folder of which a pattern names files; None if it is none. The host may have brackets."""
    host = path.find("/", path.find("://") + 3) if "://" in path else -1
    found = re.search(r"[*\[]", path[host + 1 :])
    return None if found is None else path[: host + 1 + found.start()].rpartition("/")[0]


def fetch(address: Address, *, max_bytes: int, what: str) -> bytes:
    """The whole file.

    Where the network or the server is at fault it is asked for `TRIES` times in all, within `SECONDS`.

    Raises:
      InputError: naming the address, if it is not there, not permitted, larger than `max_bytes` (known before it is
        fetched where the server says so), or could not be had; that this was not the file's own fault is then said by
        the `errno` of an `OSError` as its cause.
    """
    started, pause = time.monotonic(), PAUSE
    for left in reversed(range(TRIES)):
        try:
            with _opened(address) as file:
                return _whole(file, started, max_bytes, address, what)
        except InputError:
            raise
        except Exception as error:
            if not left or not _may_pass(error) or time.monotonic() - started + pause > SECONDS:
                raise _unreadable(address, what, error) from _as_os_error(error)
        time.sleep(pause)
        pause *= 2
    raise AssertionError  # the last try returns or raises


def put(file: Path, address: Address) -> None:
    """Put a file at the address, by one request or one upload in parts, which the store takes whole or not at all.

    Raises `InputError` naming the address; one whose cause is an `OSError` that the same request may not meet again.
    """
    system, path = _connect(address)
    try:
        system.put_file(str(file), path)
    except Exception as error:
        raise InputError(f"{address}: cannot be written: {_words(error)}") from (
            _as_os_error(error) if _may_pass(error) else None
        )


def listed(address: Address) -> Iterator[tuple[str, Address]]:
    """Files at an address that has "*" or "[" in it, or else below it: the name of each from there on, and its address.

    Raises `InputError` if that cannot be listed. Of each, what the store says of its content becomes the `version`.
    """
    system, path = _connect(address)
    before = _before_pattern(path)
    root = path.rstrip("/") if before is None else before
    try:
        found = _walk(system, path) if before is None else _glob(system, path)
        for count, (name, about) in enumerate(found):
            if count == MAX_LISTED:
                raise InputError(f"{address}: more than {MAX_LISTED:,} files; give the folders that matter")
            version = next((str(about[key]) for key in _VERSIONS if about.get(key)), "")
            size = "" if about.get("size") is None else str(about["size"])
            yield name[len(root) :].lstrip("/"), Address(system.unstrip_protocol(name), f"{version} {size}".strip())
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{address}: cannot be listed: {_words(error)}") from error


def _glob(system: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    found = system.glob(path, detail=True)
    for name in sorted(found):
        if found[name].get("type") != "directory":
            yield name, found[name]


def _walk(system: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    walked = system.walk(path, maxdepth=_DEPTH, detail=True, on_error="raise")
    for count, (_, folders, files) in enumerate(walked, 1):
        if count > MAX_FOLDERS:
            raise InputError(f"{path}: more than {MAX_FOLDERS:,} folders; give those that matter")
        folders_sorted = sorted(folders)
        for key in folders_sorted:  # the order in which they are gone into
            folders[key] = folders.pop(key)
        for key in sorted(files):
            yield files[key]["name"], files[key]


@functools.cache
def _system(scheme: str) -> Any:
    """fsspec's file system for addresses of a scheme; what it needs beside stands in fsspec's own settings."""
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        from ntt_jax.images.link_pages import Page

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True, "response_class": Page}}
    system = fsspec.filesystem(scheme, use_listings_cache=False, **options)  # a listing is read once
    # Some log each failure with a traceback, which Python prints where nobody has asked for logs: it is said in a line.
    logging.getLogger(type(system).__module__.partition(".")[0]).addHandler(logging.NullHandler())
    return system


def _connect(address: Address) -> tuple[Any, str]:
    """fsspec's file system, and the path in it. Raises `InputError` where it or its library is not known."""
    scheme = address.url.partition("://")[0].lower()
    if "::" in scheme or _CHAINED.search(address.url):
        raise InputError(f"{address}: addresses within addresses are not read")
    try:
        system = _system(scheme)
        return system, system._strip_protocol(address.url)
    except ImportError as error:
        if scheme in ("http", "https"):
            raise InputError(f"{address}: needs aiohttp; pip install 'ntt-jax[remote]'") from None
        raise InputError(f"{address}: {reason(error)}") from None
    except ValueError:
        import fsspec

        known = ", ".join(f"{name}://" for name in ("https", "s3", "gs", "az") if name in fsspec.available_protocols())
        raise InputError(f"{address}: {scheme!r} is not known; {known} and others of fsspec are") from None
    except Exception as error:  # of its library, for want of a setting
        raise InputError(f"{address}: {_words(error)}") from None


@contextlib.contextmanager
def _opened(address: Address) -> Iterator[Any]:
    """The file, to be read from its start."""
    system, path = _connect(address)
    # The web as a stream and without asking for the size first: one request, and its own errors.
    file = system.open(path, "rb", **({"block_size": 0, "size": 1} if address.is_web else {}))
    try:
        yield file
    finally:
        file.close()


def _whole(file: Any, started: float, max_bytes: int, address: Address, what: str) -> bytes:
    too_large = InputError(f"{address}: the {what} is larger than the limit of {max_bytes:,} bytes")
    if (_size(file) or 0) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    total = 0
    while part := file.read(_CHUNK):
        parts.append(part)
        total += len(part)
        if total > max_bytes:
            raise too_large
        if time.monotonic() - started > SECONDS:
            raise TimeoutError(errno.ETIMEDOUT, f"has not arrived after {SECONDS:.0f} s")
    if not total:
        raise InputError(f"{address}: expected {article(what)}, found an empty file")
    return b"".join(parts)


def _size(file: Any) -> int | None:
    response = getattr(file, "r", None)
    if response is None:
        return getattr(file, "size", None)
    said = response.headers.get("Content-Length", "")
    return int(said) if said.isdecimal() and len(said) < 20 else None


def _status(error: BaseException) -> int | None:
    """What a web server or a store answered, by the names that their libraries have for it."""
    for name in ("status", "status_code", "code"):  # aiohttp; Azure's; Google's
        status = getattr(error, name, None)
        if isinstance(status, int):
            if 400 <= status < 600:
                return status
            break  # too many redirections
    return 403 if isinstance(error, OSError) and str(error).startswith("Forbidden: ") else None  # gcsfs


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may well succeed in a moment."""
    if (status := _status(error)) is not None:
        return status in (408, 425, 429) or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotImplementedError):
        return False
    return isinstance(error, OSError | TimeoutError | EOFError) or "aiohttp" in type(error).__module__


def _as_os_error(error: BaseException) -> BaseException:
    """The error; one that is not the file's own as an `OSError` that says so, as a lost network disk does."""
    status = _status(error)
    if status is not None and 400 <= status < 500 and status not in (401, 407, 408, 425, 429):
        return error
    if isinstance(error, FileNotFoundError | ValueError | NotImplementedError):
        return error
    if isinstance(error, PermissionError) and not re.search(r"expired|InvalidAccessKeyId|credential", str(error), re.I):
        return error
    code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EHOSTUNREACH
    return OSError(code, _words(error))


def _words(error: BaseException) -> str:
    """What went wrong, in one line without the address, which may hold a key."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "there is none" + (f" (the server answers {status})" if status else "")
    if status in (401, 403):
        return f"no permission (the server answers {status})"
    if status is not None:
        return f"the server answers {status}"
    if isinstance(error, PermissionError):
        return f"no permission ({_first_line(error)})"
    if isinstance(error, TimeoutError):
        return reason(error) if error.args else "no answer in time"
    return f"{type(error).__name__}: {_first_line(error)}" if str(error) else type(error).__name__


def _first_line(error: BaseException) -> str:
    text = re.sub(r"(https?://)[^@\s/]*@", r"\1", str(error))
    return one_line(re.sub(r"\?[^\s'\"]*", "", text), 160)


def _unreadable(address: Address, what: str, error: BaseException) -> InputError:
    return InputError(f"{address}: cannot read the {what}: {_words(error)}")
