"""Reading image files in a process of its own, to see whether that process survives it."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ntt_jax.files import PathLike, show_path
from ntt_jax.images.reading import ImageHeader
from ntt_jax.images.remote import Address

SECONDS = 60
"""How long the process may be silent, its start among it."""
AHEAD = 8
"""Files that it has in hand at once: those that may have ended it."""

_READ = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ntt_jax.errors import InputError
from ntt_jax.images.reading import read_image
from ntt_jax.images.remote import location
try:
    read_image(location(json.loads(sys.stdin.read())))
except InputError:
    pass
"""

_LOOK = """
import hashlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
from ntt_jax.errors import InputError
from ntt_jax.files import open_input, reason
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.reading import read_header
hashed, ahead = json.loads(sys.argv[2]), int(sys.argv[3])
def look(path):
    try:
        digest = ""
        if hashed:
            with open_input(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        header = read_header(path)
        return [digest, header.height, header.width, header.orientation]
    except (InputError, OSError) as error:
        return str(error) if isinstance(error, InputError) else f"{path}: {reason(error)}"
for found in map_ahead(look, (json.loads(line) for line in sys.stdin), ahead=ahead - 1):
    print(json.dumps(found), flush=True)
"""


class Fatal(str):
    """Why a file cannot be used, if it is that a process ends by it."""


def fatal(path: PathLike) -> str | None:
    """How a process that reads the image ends, in words, if it ends without having read or refused it."""
    text = path.url if isinstance(path, Address) else os.fspath(path)
    nothing = subprocess.DEVNULL
    try:
        status = subprocess.run(
            _command(_READ), timeout=SECONDS, input=json.dumps(text).encode(), stdout=nothing, stderr=nothing
        ).returncode
    except subprocess.TimeoutExpired:
        return f"has not read it after {SECONDS} s"
    return _ending(status) if status else None


def headers_apart(paths: Sequence[PathLike], *, hashed: bool = False) -> Iterator[tuple[str, ImageHeader] | str]:
    """The header of each image file (`reading.read_header`), in order, read by another process.

    hashed: with the SHA-256 of the file's bytes; otherwise that is "". In place of a header that cannot be read: why,
    in one line; `Fatal` if a process ends by it.
    """
    done = 0
    while done < len(paths):
        for found in _looked(paths[done:], hashed):
            yield found
            done += 1
        # The process ended early: by one of those that it had in hand, which now have one each.
        for path in paths[done : done + AHEAD]:
            yield _looked_alone(path, hashed)
            done += 1


def _looked(paths: Sequence[PathLike], hashed: bool) -> Iterator[tuple[str, ImageHeader] | str]:
    """What one process finds, until it has looked at all, ended, or been silent for too long."""
    child = subprocess.Popen(
        _command(_LOOK, json.dumps(hashed), str(AHEAD)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_give, args=(child.stdin, paths)),
        threading.Thread(target=_take, args=(child.stdout, lines)),
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in paths:
            line = lines.get(timeout=SECONDS)
            if not line.endswith(b"\n"):
                return
            yield _parsed(line)
    except queue.Empty:
        return
    finally:
        child.kill()
        child.wait()
        for thread in threads:
            thread.join()


def _looked_alone(path: PathLike, hashed: bool) -> tuple[str, ImageHeader] | str:
    line = json.dumps(os.fspath(path)).encode() + b"\n"
    how = f"{show_path(path)}: a process that reads it "
    try:
        done = subprocess.run(
            _command(_LOOK, json.dumps(hashed), "1"), timeout=SECONDS, input=line, capture_output=True
        )
    except subprocess.TimeoutExpired:
        return Fatal(f"{how}has not read it after {SECONDS} s")
    return _parsed(done.stdout) if done.stdout.endswith(b"\n") else Fatal(how + _ending(done.returncode))


def _parsed(line: bytes) -> tuple[str, ImageHeader] | str:
    found = json.loads(line)
    return found if isinstance(found, str) else (found[0], ImageHeader(*found[1:]))


def _give(stream: Any, paths: Sequence[PathLike]) -> None:
    with contextlib.suppress(OSError):
        for path in paths:
            stream.write(json.dumps(os.fspath(path)).encode() + b"\n")
    with contextlib.suppress(OSError):
        stream.close()


def _take(stream: Any, lines: "queue.SimpleQueue[bytes]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(b"")


def _command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, json.dumps(sys.path), *arguments]


def _ending(status: int) -> str:
    try:
        return f"ends with {signal.Signals(-status).name}"
    except ValueError:
        return f"ends with status {status}"
