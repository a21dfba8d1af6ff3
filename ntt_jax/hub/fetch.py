"""One file from an address to the disk: resumed after any interruption, checked, and under its name only when whole.

It uses the HTTP client of `huggingface_hub`, so proxies, certificates and HF_HUB_OFFLINE work as people know them
there. That library starts a download again from the first byte when its process was killed; this one goes on.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ntt_jax.errors import InputError
from ntt_jax.files import open_in_place, parse_json, read_bytes, show_path, sync_folder, write_json
from ntt_jax.hub import cache
from ntt_jax.text import show

RETRIES = 5
"""Attempts in a row that bring nothing before a download is given up."""
WAIT = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
LONGEST_WAIT = 60.0
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(InputError):
    """A file did not arrive. The message says why; another source may have it."""


class StorageError(InputError):
    """The disk refuses what arrives; no other source will help."""


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    max_bytes: int | None = None,
    headers: dict[str, str] | None = None,
    what: str | None = None,
    quiet: bool = False,
) -> None:
    """Download `url` to `target`, unless that is there already.

    What has arrived waits in `target`.part. The next call goes on from there, in whatever process, if the server still
    has the same file (If-Range). A second process that wants the same file waits for the first.

    Args:
        size, sha256: of the file, where they are known; what differs is thrown away.
        max_bytes: of a file whose size is not known; a server that says more or sends more has another file.
        headers: to send along. They do not follow a redirect to another host if they authorise.
        what: name for messages (default: the file's).
        quiet: show no progress.

    Raises:
        DownloadError: it cannot be had, or is not what it should be; says how far it came.
        StorageError: the disk is full or cannot be written.
    """
    what = what or target.name
    if target.exists():
        return
    part = target.with_name(target.name + ".part")
    cache.make_folder(target.parent)
    lock = target.with_name(target.name + ".lock")
    with cache.locked(lock):
        if target.exists():
            return
        try:
            _complete(url, part, size, size if size is not None else max_bytes, headers or {}, what, quiet)
            _check(part, size, sha256, what)
            os.replace(part, target)
            _note(part).unlink(missing_ok=True)
            sync_folder(target.parent)
            with contextlib.suppress(OSError):  # whoever waits for it finds the file
                lock.unlink()
        except OSError as error:
            if isinstance(error, InputError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(
                    f"{show_path(target.parent)}: the disk is full; {_kept(part)}free some space and start again, "
                    "or set NTT_JAX_CACHE (HF_HOME for the Hub's files) to another disk"
                ) from None
            raise StorageError(f"{show_path(target)}: cannot be written: {error.strerror or error}") from None


def _complete(
    url: str, part: Path, size: int | None, limit: int | None, headers: dict[str, str], what: str, quiet: bool
) -> None:
    """Bring `part` to its whole length, in as many attempts as it takes."""
    failures, started = 0, _length(part)
    progress = _Progress(what, urlsplit(url).netloc, quiet)
    try:
        while True:
            before = _length(part)
            try:
                if _attempt(url, part, size, limit, headers, progress):
                    return
                problem, pause, patience = "the connection was closed early", None, RETRIES
            except Temporary as temporary:
                problem, pause, patience = str(temporary), temporary.pause, RETRIES
                if temporary.unreachable and _length(part) == started:  # no network, as it seems: say so soon
                    patience = 1
            failures = 0 if _length(part) > before else failures + 1
            if failures > patience or (pause or 0) > LONGEST_WAIT:
                wait = f" (it asks to wait {pause:.0f} s)" if (pause or 0) > LONGEST_WAIT else ""
                raise DownloadError(f"{problem}{wait}; {_kept(part)}the same command goes on from there")
            time.sleep(pause if pause is not None else WAIT * 2 ** max(failures - 1, 0))
    except KeyboardInterrupt:
        if _length(part) > started:
            print(file=sys.stderr)  # the bar's line ends
            show(f"ntt-jax: {what}: {_kept(part)}the same command goes on from there", to=sys.stderr)
        raise
    finally:
        progress.close()


class Temporary(Exception):
    """Worth another attempt, after `pause` seconds if the server says so. unreachable: there was no connection."""

    def __init__(self, message: str, pause: float | None = None, unreachable: bool = False):
        super().__init__(message)
        self.pause, self.unreachable = pause, unreachable


def _attempt(
    url: str, part: Path, size: int | None, limit: int | None, headers: dict[str, str], progress: "_Progress"
) -> bool:
    """One request. Returns whether the file is whole then; raises `Temporary` or `DownloadError`."""
    import httpx2
    from huggingface_hub import constants, get_session

    have, validator = _length(part), _validator(part, url)
    if have and (validator is None or (size is not None and have > size)):
        part.unlink()
        have = 0
    if size is not None and have == size:
        return True
    sent = {**headers, "Accept-Encoding": "identity"}
    if have:
        sent |= {"Range": f"bytes={have}-", "If-Range": str(validator)}
    try:
        with get_session().stream(
            "GET", url, headers=sent, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
        ) as response:
            if response.status_code == 416:  # nothing is left, or it is another file: the next attempt starts over
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return True
                part.unlink(missing_ok=True)
                raise Temporary("the server has another file now")
            check_status(response)
            resumed = response.status_code == 206
            begin, total = _range(response) if resumed else (0, _length_said(response))
            if resumed and begin != have:
                part.unlink(missing_ok=True)
                raise Temporary("the server answered with another part of the file")
            have = have if resumed else 0
            if size is not None and total not in (None, size):
                raise DownloadError(f"the server has {total} bytes, expected {size}: another file of this name")
            if limit is not None and (total or 0) > limit:
                raise _too_large(limit)
            if (free := shutil.disk_usage(part.parent).free) < (total or 0) - have:
                raise OSError(errno.ENOSPC, f"{free} bytes free")
            if not resumed:
                # The note first: without it, what is in the file is never taken for the beginning of another one.
                _note(part).unlink(missing_ok=True)
                _open_part(part, fresh=True).close()
                etag = response.headers.get("ETag") or response.headers.get("Last-Modified")
                if etag and not etag.startswith("W/"):
                    write_json(_note(part), {"url": url, "validator": etag})
            progress.start(total, have)
            with _open_part(part) as file:  # what has arrived is there, whenever the process is killed
                for chunk in response.iter_bytes():
                    if limit is not None and (have := have + len(chunk)) > limit:
                        part.unlink(missing_ok=True)
                        raise _too_large(limit)
                    file.write(chunk)
                    progress.update(len(chunk))
                os.fsync(file.fileno())
            return total is None or _length(part) == total
    except httpx2.TimeoutException:
        seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
        raise Temporary(f"the server was silent for {seconds} s (HF_HUB_DOWNLOAD_TIMEOUT)") from None
    except (httpx2.ConnectError, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        raise Temporary(_no_connection(error), unreachable=isinstance(error, httpx2.ConnectError)) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError) as error:
        raise DownloadError(explain(error)) from None


def check_status(response: Any) -> None:
    """Raise `Temporary` or `DownloadError` unless the answer is what was asked for."""
    status = response.status_code
    if status in (200, 206):
        return
    if status in _TEMPORARY:
        raise Temporary(_STATUS.get(status, f"the server answers {status}"), _retry_after(response))
    raise DownloadError(_STATUS.get(status, f"the server answers {status}"))


_STATUS = {
    401: "not permitted (401): it is private or gated, or not there; log in with `hf auth login` or set HF_TOKEN",
    403: "not permitted (403): accept its terms on its page, `hf auth login` or set HF_TOKEN; or a proxy forbids it",
    404: "there is nothing at this address (404)",
    407: "the proxy wants a login (407): put it into HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
    429: "too many requests (429): wait a few minutes and start again",
}


def explain(error: Exception) -> str:
    """Why a request failed, in a few words."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy refuses ({_plain(error)}): check HTTPS_PROXY and NO_PROXY"
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx2.NetworkError):
        return _no_connection(error)
    return f"the request failed ({_plain(error)})"


def _no_connection(error: Exception) -> str:
    import httpx2

    if isinstance(error, httpx2.ConnectError):
        return f"no connection ({_plain(error)})"
    return f"the connection broke ({_plain(error)})"


def _plain(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"//[^/@\s]*@", "//", text)[:120]  # no passwords of proxies


def _retry_after(response: Any) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"\d{1,6}", text) else None


def _range(response: Any) -> tuple[int | None, int | None]:
    """Of a part: where it begins, and the length of the whole file; None, None where the server does not say both."""
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else (None, None)


def _length_said(response: Any) -> int | None:
    """Of a whole file, if the server says it."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"\d{1,18}", length) else None


def _too_large(limit: int) -> DownloadError:
    return DownloadError(f"the server sends more than {megabytes(limit)}: another file of this name")


def _open_part(part: Path, *, fresh: bool = False) -> IO[bytes]:
    """The file that grows, at its end; emptied if `fresh`. No link is followed: what it leads to is somebody's own."""
    file = os.fdopen(open_in_place(part), "r+b", buffering=0)
    try:
        if fresh:
            file.truncate(0)
        file.seek(0, os.SEEK_END)
    except BaseException:
        file.close()
        raise
    return file


def _length(part: Path) -> int:
    try:
        return part.lstat().st_size
    except OSError:
        return 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator(part: Path, url: str) -> str | None:
    """What the server called this version of the file when its beginning arrived."""
    note = _note(part)
    if not note.is_file():
        return None
    try:
        content = parse_json(read_bytes(note, max_bytes=10_000, what="note"), note, what="note")
    except InputError:
        return None
    same = isinstance(content, dict) and content.get("url") == url and isinstance(content.get("validator"), str)
    return content["validator"] if same else None


def _kept(part: Path) -> str:
    return f"{megabytes(_length(part))} are kept, " if _length(part) else ""


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def _check(part: Path, size: int | None, sha256: str | None, what: str) -> None:
    """Throw away what is not the file that was asked for."""
    from weight_port.files import sha256 as digest

    found = _length(part)
    if size is not None and found != size:
        part.unlink(missing_ok=True)
        raise DownloadError(f"{what} has {found} bytes, expected {size}; it was thrown away, start again")
    if sha256 is not None and found and (arrived := digest(part)) != sha256:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"{what} is damaged: its sha256 is {arrived[:12]}..., expected {sha256[:12]}...; it was thrown away, start "
            "again"
        )


class _Progress:
    """A bar on a terminal; elsewhere one line at the start."""

    def __init__(self, what: str, host: str, quiet: bool):
        self.what, self.host, self.quiet, self.bar = what, host, quiet, None

    def start(self, total: int | None, have: int) -> None:
        """The server has answered: `have` of `total` bytes are here."""
        if self.bar is not None or self.quiet:
            return
        from huggingface_hub.utils import tqdm

        size = "" if total is None else f" ({megabytes(total)}{f', {megabytes(have)} are here' if have else ''})"
        show(f"ntt-jax: downloading {self.what}{size} from {self.host}", to=sys.stderr)
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=self.what, disable=None if terminal else True
        )

    def update(self, count: int) -> None:
        """`count` more bytes are here."""
        if self.bar is not None:
            self.bar.update(count)

    def close(self) -> None:
        """The end, whatever it was."""
        if self.bar is not None:
            self.bar.close()
