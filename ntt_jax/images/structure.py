"""What an image file is made of, looked at before a decoder sees it: bounds on all that makes small files expensive.

Pillow and the libraries below it read markers, chunks, blocks, tags and comments one by one, most of them in Python and
without a limit; a file of some megabytes made of nothing else keeps them busy for minutes or takes gigabytes. Each
format is walked here once, by the same rules, up to where its pixels begin. Honest files stay far below the bounds.
"""

import math
import re
import struct
from dataclasses import dataclass

from ntt_jax.errors import InputError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF")
"""The formats that are read. The others of Pillow are not: the EPS reader, for one, starts Ghostscript."""
RAW = ("BMP", "TIFF", "PPM")
"""Formats that may hold their pixels as they are, so that large parts of a file may be zeros."""
MAX_PARTS = 4096
"""Markers, chunks, extensions, boxes or tags in front of the pixels; photographs have about twenty."""
MAX_BESIDE = 32 * 1024**2
"""Bytes of all that is not pixels: thumbnails, profiles, comments."""
MAX_SCANS = 100
"""Passes of a progressive JPEG, each over the whole image; encoders make about ten."""
_MAX_JUNK = 65536
_MAX_FRAMES = 20_000
_SLOW_PIXELS = 1_000_000  # what Pillow decodes pixel by pixel, in Python
# Decoders that hold several copies of the whole image, four bytes a pixel and more.
_WIDE_PIXELS = 40_000_000
_BOXED_PIXELS = 64_000_000  # AVIF and HEIC: phones make up to 50 million
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"P4", "PPM"),
    (b"P5", "PPM"),
    (b"P6", "PPM"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# Compressions of TIFF: none, CCITT (three), LZW, JPEG (two), deflate (two), PackBits, Zstandard. Not LZMA, whose
# decoder takes what memory a header names, nor WebP and the rest, which no photographs use.
_TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32946, 32773, 50000)
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class Structure:
    """What the walk found. size: width and height by the header, where the walk meets them. cut: it met the end."""

    format: str
    size: tuple[int, int] | None = None
    cut: bool = False


def format_of(start: bytes) -> str | None:
    """The format by the first bytes of a file (16 do); None for what is not read."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp":
        return "AVIF" if start[8:12] in _AVIF_BRANDS else "HEIF" if start[8:12] in _HEIF_BRANDS else None
    return next((name for signature, name in _SIGNATURES if start.startswith(signature)), None)


def check_structure(data: bytes) -> Structure:
    """Walk a file of a known format. Raises `InputError`, without a path, for one that is expensive beyond its pixels.

    What is only damaged is left to the decoder.
    """
    kind = format_of(data[:16])
    assert kind is not None
    try:
        return _WALKS[kind](data)
    except (struct.error, IndexError):  # cut short: the decoder says so in its own words
        return Structure(kind, cut=True)


def _refuse(what: str) -> InputError:
    return InputError(f"refused: {what}, far more than a photograph needs; save it again as PNG or JPEG")


def _check_beside(parts: int, size: int) -> None:
    if parts > MAX_PARTS:
        raise _refuse(f"more than {MAX_PARTS:,} parts beside its pixels")
    if size > MAX_BESIDE:
        raise _refuse(f"more than {MAX_BESIDE:,} bytes beside its pixels")


def _check_pixels(kind: str, pixels: int, limit: int) -> None:
    if pixels > limit:
        raise InputError(f"the {kind} image is over the limit of {limit:,} pixels for its kind; save it as PNG or JPEG")


def _jpeg(data: bytes) -> Structure:
    place, parts, junk, progressive = 2, 0, 0, False
    while True:
        if data[place] != 0xFF or data[place + 1] in (0x00, 0xFF):  # passed over byte by byte
            marker = data.find(b"\xff", place + 1)
            junk += (marker if marker >= 0 else len(data)) - place
            if junk > _MAX_JUNK:
                raise _refuse(f"more than {_MAX_JUNK:,} bytes between its markers")
            if marker < 0:
                return Structure("JPEG")
            place = marker
            continue
        marker, place, parts = data[place + 1], place + 2, parts + 1
        _check_beside(parts, place)
        if marker == 0xDA:
            break
        progressive |= marker in (0xC2, 0xC6, 0xCA, 0xCE)
        if marker not in (0x01, *range(0xD0, 0xDA)):  # those have no length
            place += max(struct.unpack_from(">H", data, place)[0], 2)
    if progressive:
        end = data.find(b"\xff\xd9", place)
        if data.count(b"\xff\xda", place, end if end >= 0 else len(data)) > MAX_SCANS:
            raise _refuse(f"more than {MAX_SCANS} passes over its pixels")
    return Structure("JPEG")


def _png(data: bytes) -> Structure:
    place, parts, beside, pieces, content = 8, 0, 0, 0, 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND" or (pieces and kind == b"fcTL"):  # the end, or the second frame
            break
        if kind == b"IDAT":
            pieces, content = pieces + 1, content + length
            if pieces > 1000 + content // 256:
                raise _refuse("pixels in pieces of a few bytes")
        else:
            parts, beside = parts + 1, beside + length
            _check_beside(parts, beside)
        place += 12 + length
    width, height = struct.unpack_from(">II", data, 16)
    return Structure("PNG", (width, height))


def _gif(data: bytes) -> Structure:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    parts = blocks = 0
    while (kind := data[place]) != 0x2C:  # the first frame
        parts += 1
        _check_beside(parts, place)
        if kind == 0x3B:
            return Structure("GIF", (width, height))
        place += 1
        if kind == 0x21:
            place += 1
            while (size := data[place]) != 0:
                place, blocks = place + 1 + size, blocks + 1
                if blocks > 2 * _MAX_JUNK:
                    raise _refuse("comments in pieces of a few bytes")
            place += 1
    left, top, right, bottom = struct.unpack_from("<HHHH", data, place + 1)
    return Structure("GIF", (max(width, left + right), max(height, top + bottom)))


def _webp(data: bytes) -> Structure:
    place, parts, pixels = 12, 0, 0
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        parts += 1
        if parts > _MAX_FRAMES:
            raise _refuse(f"more than {_MAX_FRAMES:,} frames and other parts")
        start = place + 8
        if kind == b"VP8X":
            sides = (int.from_bytes(data[start + i : start + i + 3], "little") + 1 for i in (4, 7))
            pixels = max(pixels, next(sides) * next(sides))
        elif kind == b"VP8L":
            bits = struct.unpack_from("<I", data, start + 1)[0]
            pixels = max(pixels, ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1))
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, start + 6)
            pixels = max(pixels, (width & 0x3FFF) * (height & 0x3FFF))
        place = start + length + (length & 1)
    _check_pixels("WebP", pixels, _WIDE_PIXELS)
    return Structure("WEBP")


def _tiff(data: bytes) -> Structure:
    order, big = ("<" if data[:1] == b"I" else ">"), b"+" in data[2:4]
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
    place += 8 if big else 2
    _check_beside(count, 0)
    values, beside, numbers = {}, 0, {}
    for start in range(place, place + count * (20 if big else 12), 20 if big else 12):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, start)
        size = _TIFF_SIZES.get(kind, 0)
        numbers[tag], beside = number, beside + size * number
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if code and number == 1:
            (values[tag],) = struct.unpack_from(order + code, data, start + (12 if big else 8))
    if beside > len(data):
        raise _refuse("tags that claim more bytes than the file has")
    pixels = values.get(256, 0) * values.get(257, 0)
    pieces = max(numbers.get(273, 0), numbers.get(324, 0))
    _check_beside(0, beside - 16 * pieces)  # the places and lengths of strips and tiles are no comments
    if pieces > 64 + min(16 * pixels, 200_000):
        raise _refuse(f"{pieces:,} strips or tiles")
    if values.get(322, 0) * values.get(323, 0) > 4 * pixels + 2**20:
        raise _refuse("tiles much larger than the image")
    if values.get(259, 1) not in _TIFF_COMPRESSIONS:
        raise InputError(f"refused: TIFF compression {values[259]} is not read; save it again as PNG or JPEG")
    return Structure("TIFF", (values.get(256, 0), values.get(257, 0)))


def _bmp(data: bytes) -> Structure:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Structure("BMP", (width, height))
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    pixels = abs(width * height)
    if compression in (1, 2):  # run lengths
        _check_pixels("compressed BMP", max(pixels, len(data) // 4), _SLOW_PIXELS)
    return Structure("BMP", (abs(width), abs(height)))


def _ppm(data: bytes) -> Structure:
    space = rb"(?:\s|#[^\r\n]*[\r\n])+"
    number = space + rb"(\d{1,10})"
    head = re.match(rb"P([456])" + number + number + rb"(?:" + number + rb")?", data[:4096])
    if head is None:
        raise InputError("no size in the first 4,096 bytes; save it again as PNG or JPEG")
    kind, width, height, white = (int(v or 0) for v in head.groups())
    if kind != 4 and white not in (255, 65535 if kind == 5 else 255):
        _check_pixels(f"PPM (white {white})", width * height, _SLOW_PIXELS)
    return Structure("PPM", (width, height))


def _jpeg2000(data: bytes) -> Structure:
    place, parts = 0, 0
    if data[:4] != b"\xff\x4f\xff\x51":
        while True:  # boxes, up to the one of the code stream
            length, kind = struct.unpack_from(">I4s", data, place)
            head = 8
            if length == 1:
                (length,) = struct.unpack_from(">Q", data, place + 8)
                head = 16
            parts += 1
            _check_beside(parts, place)
            if kind == b"jp2c":
                place += head
                break
            if length < head:
                raise InputError("refused: a JPEG 2000 box without an end in front of the pixels")
            place += length
    right, bottom, left, top = struct.unpack_from(">IIII", data, place + 8)
    (components,) = struct.unpack_from(">H", data, place + 40)
    pixels = max(right - left, 0) * max(bottom - top, 0)
    _check_pixels("JPEG 2000", max(pixels, 1) * max(1, -(-components // 4)), _WIDE_PIXELS)
    return Structure("JPEG2000", (right - left, bottom - top))


def _boxes(data: bytes) -> Structure:
    """AVIF and HEIC: boxes of a length and a kind each, the pixels in "mdat".

    The size is the largest that an "ispe" box names, the image's as stored: a turn may swap the two numbers.
    """
    place, parts, beside, size = 0, 0, 0, (0, 0)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
        if length == 0:  # to the end
            break
        if length < 8:
            raise InputError("refused: a box without an end in front of the pixels")
        parts, beside = parts + 1, beside + (0 if kind == b"mdat" else length)
        _check_beside(parts, beside)
        if kind == b"meta":
            size = max(size, _extent(data[place : place + length]), key=math.prod)
        place += length
    kind = str(format_of(data[:16]))
    _check_pixels("HEIC" if kind == "HEIF" else kind, math.prod(size), _BOXED_PIXELS)
    return Structure(kind, size if math.prod(size) else None, cut=place > len(data))


def _extent(meta: bytes) -> tuple[int, int]:
    sizes = [(0, 0)]
    start = meta.find(b"ispe")
    while 0 <= start <= len(meta) - 16:
        sizes.append(struct.unpack_from(">II", meta, start + 8))
        if len(sizes) > MAX_PARTS:
            raise _refuse(f"more than {MAX_PARTS:,} parts")
        start = meta.find(b"ispe", start + 4)
    return max(sizes, key=math.prod)


_WALKS = {
    "AVIF": _boxes,
    "HEIF": _boxes,
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "WEBP": _webp,
    "TIFF": _tiff,
    "BMP": _bmp,
    "PPM": _ppm,
    "JPEG2000": _jpeg2000,
}
