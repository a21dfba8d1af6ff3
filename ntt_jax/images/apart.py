"""Decoding in a process of its own, with limits: for libraries that can be led to take any time and any memory.

This file is run by the other process as a script: of this package it imports nothing, so that it starts quickly.
"""

import contextlib
import errno
import io
import json
import os
import struct
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

SECONDS = 20
"""How long a decoder may take for one image."""
BYTES_PER_PIXEL = 20
"""Memory that it may take for each pixel, beside what a process takes at all and the file itself."""
_BASE_BYTES = 2**29
_THREADS = 4
_ROWS = 2**22  # pixels that are handed over at once


class ApartError(Exception):
    """What the decoder said of the image, or how it ended, in words."""


def decode_apart(
    data: bytes, kind: str, pixels: int, *, allowed: int | None = None, more_paths: tuple[str, ...] = ()
) -> Iterator[Any]:
    """The image as Pillow images of a few rows each, from the top, decoded by another process.

    Args:
        data: the file. kind: Pillow's name of its format.
        pixels: width x height by the header, which the limit of memory follows.
        allowed: limit on the size that the decoder finds, where the header is read by the decoder alone.
        more_paths: folders of packages that the decoder needs beside Pillow's own.

    Yields:
        Rows; their `info` has the "size" of the whole image and its number of "frames".

    Raises:
        ApartError: what the decoder says of the file, or that it did not finish within its limits.
    """
    for about, rows in _messages(data, kind, pixels, allowed or pixels, more_paths, "pixels"):
        yield _image(about, rows)


def size_apart(data: bytes, kind: str, pixels: int, *, more_paths: tuple[str, ...] = ()) -> tuple[int, int]:
    """Width and height of the image, not decoded, by the decoder's library in another process; as `decode_apart`."""
    for about, _ in _messages(data, kind, pixels, sys.maxsize, more_paths, "size"):
        return about["whole"][0], about["whole"][1]
    raise ApartError("the decoder says nothing of its size")


def _image(about: dict[str, Any], rows: bytes) -> Any:
    from PIL import Image

    image = Image.frombytes(about["mode"], about["size"], rows)
    if about["palette"] is not None:
        image.putpalette(bytes.fromhex(about["palette"]), "RGB")
    if about["transparency"]:
        image.info["transparency"] = 0
    image.info |= {"size": tuple(about["whole"]), "frames": about["frames"]}
    return image


def _messages(
    data: bytes, kind: str, pixels: int, allowed: int, more_paths: tuple[str, ...], wanted: str
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What the other process says: about some rows, and the rows."""
    import subprocess  # most programs never need it

    from PIL import Image

    limit = _BASE_BYTES + 2 * len(data) + BYTES_PER_PIXEL * pixels
    pillow = os.path.dirname(os.path.dirname(os.path.abspath(Image.__file__)))
    paths = os.pathsep.join(dict.fromkeys((pillow, *more_paths)))
    helper = subprocess.Popen(
        [sys.executable, "-I", "-S", os.path.abspath(__file__), paths, kind, str(limit), str(allowed), wanted],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libtiff writes there what it thinks of the file
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # each thread's arena would count as 64 MB against the limit
    )
    assert helper.stdin is not None and helper.stdout is not None
    late = threading.Timer(SECONDS, helper.kill)
    late.start()
    try:
        with contextlib.suppress(OSError):  # if it has ended already: how, is said below
            helper.stdin.write(data)
            helper.stdin.close()
        while (head := _received(helper.stdout)) is not None:
            about = json.loads(head)
            if "error" in about:
                raise ApartError(about["error"])
            rows = _received(helper.stdout)
            if rows is None:
                break
            yield about, rows
            if about["last"]:
                return
        raise ApartError(f"the decoder did not finish within {SECONDS} s and {limit / 1e6:,.0f} MB")
    finally:
        late.cancel()
        helper.kill()
        helper.wait()
        helper.stdout.close()
        if not helper.stdin.closed:
            with contextlib.suppress(OSError):
                helper.stdin.close()


def _received(stream: IO[bytes]) -> bytes | None:
    """One message: its length in 8 bytes, then itself. None where it ends before."""
    size = stream.read(8)
    if len(size) < 8:
        return None
    (count,) = struct.unpack("<Q", size)
    content = stream.read(count)
    return content if len(content) == count else None


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def _main(paths: str, kind: str, limit: int, allowed: int, wanted: str) -> None:
    """The other process: the file on stdin, messages on stdout. wanted: "pixels", or the "size" alone."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # Windows has no such limits; the one of time is the parent's
    sys.path[:0] = paths.split(os.pathsep)
    out = sys.stdout.buffer
    try:
        import warnings

        from PIL import Image

        warnings.simplefilter("ignore")
        if kind == "HEIF":
            import pillow_heif  # pyright: ignore[reportMissingImports]

            pillow_heif.register_heif_opener()
        if kind == "AVIF":
            from PIL import AvifImagePlugin

            AvifImagePlugin.DEFAULT_MAX_THREADS = _THREADS
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=[kind]) as image:
            about: dict[str, Any] = {"whole": image.size, "frames": 1}
            if kind in ("HEIF", "AVIF"):  # of a TIFF, pages are counted by reading all of them
                about["frames"] = getattr(image, "n_frames", 1)
            if wanted == "size":
                _send(out, json.dumps({**about, "last": True}).encode())
                _send(out, b"")
                return
            if image.width * image.height > allowed:
                size = f"{image.width} x {image.height}"
                raise ValueError(f"the image is {size} pixels, over the limit of {allowed:,} pixels; make it smaller")
            image.load()
            palette = image.getpalette("RGB") if image.mode == "P" else None
            rows = max(1, _ROWS // image.width)
            for top in range(0, image.height, rows):
                bottom = min(image.height, top + rows)
                part = image.crop((0, top, image.width, bottom))
                about |= {
                    "mode": part.mode,
                    "size": part.size,
                    "palette": None if palette is None else bytes(palette).hex(),
                    "transparency": image.mode == "P" and "transparency" in image.info,
                    "last": bottom == image.height,
                }
                _send(out, json.dumps(about).encode())
                _send(out, part.tobytes())
    except MemoryError:
        os._exit(1)
    except Exception as error:
        if type(error).__name__ == "UnidentifiedImageError":  # whose text names an object of this process
            error = ValueError("cut short or damaged")
        if getattr(error, "errno", None) == errno.ENOMEM:
            error = ValueError("the decoder did not finish within its limit of memory")
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        _send(out, json.dumps({"error": text[:300]}).encode())


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
