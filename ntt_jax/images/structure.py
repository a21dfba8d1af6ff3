"""What an image file is made of, looked at before a decoder sees it: bounds on all that makes small files expensive.

Pillow and the libraries below it read markers, chunks, blocks, tags and comments one by one, most of them in Python and
without a limit; a file of some megabytes made of nothing else keeps them busy for minutes or takes gigabytes. Each
format is walked here once, by the same rules, up to where its pixels begin. Honest files stay far below the bounds.
"""

import contextlib
import math
import re
import struct
from dataclasses import dataclass

from ntt_jax.errors import InputError
from ntt_jax.images.tags import MAX_BESIDE, TAG_SIZES, check_tags, refuse

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF")
"""The formats that are read. The others of Pillow are not: the EPS reader, for one, starts Ghostscript."""
RAW = ("BMP", "TIFF", "PPM")
"""Formats that may hold their pixels as they are, so that large parts of a file may be zeros."""
MAX_PARTS = 4096
"""Markers, chunks, extensions, boxes or tags in front of the pixels; photographs have about twenty."""
MAX_SCANS = 100
"""Passes of a progressive JPEG, each over the whole image; encoders make about ten."""
MAX_PASSED_PIXELS = 110_000_000
"""Pixels of a JPEG in several passes, for which the decoder holds all coefficients, two bytes each."""
_PIXELS_IN_PASSES = 2_000_000_000  # pixels times passes, beyond 20 passes
_MAX_PIECES = 256
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
    except (struct.error, IndexError, OverflowError):  # cut short: the decoder says so in its own words
        return Structure(kind, cut=True)


def _check_beside(parts: int, size: int) -> None:
    if parts > MAX_PARTS:
        raise refuse(f"more than {MAX_PARTS:,} parts beside its pixels")
    if size > MAX_BESIDE:
        raise refuse(f"more than {MAX_BESIDE:,} bytes beside its pixels")


def _check_pixels(kind: str, pixels: int, limit: int) -> None:
    if pixels > limit:
        raise InputError(f"the {kind} image is over the limit of {limit:,} pixels for its kind; save it as PNG or JPEG")


def _jpeg(data: bytes) -> Structure:
    place, parts, junk, passed, pixels = 2, 0, 0, False, 0
    components = 0
    blocks: dict[bytes, list[bytes]] = {b"Exif\0\0": [], b"MPF\0": []}
    while True:
        if data[place] != 0xFF or data[place + 1] in (0x00, 0xFF):  # passed over byte by byte
            marker = data.find(b"\xff", place + 1)
            junk += (marker if marker >= 0 else len(data)) - place
            if junk > _MAX_JUNK:
                raise refuse(f"more than {_MAX_JUNK:,} bytes between its markers")
            if marker < 0:
                return Structure("JPEG")
            place = marker
            continue
        marker, place, parts = data[place + 1], place + 2, parts + 1
        _check_beside(parts, place)
        if marker == 0xDA:
            break
        if marker in _FRAMES:
            passed |= marker in (0xC2, 0xC6, 0xCA, 0xCE)
            height, width, components = struct.unpack_from(">HHB", data, place + 3)
            pixels = height * width
        if marker not in _WITHOUT_LENGTH:
            length = max(struct.unpack_from(">H", data, place)[0], 2)
            if marker == 0xED:  # Photoshop's: blocks, read one by one
                parts += data.count(b"8BIM", place, place + length)
            if marker in (0xE1, 0xE2):  # Pillow joins the pieces of the one and of the other
                for start in blocks:
                    if data.startswith(start, place + 2):
                        blocks[start].append(data[place + 2 + len(start) : place + length])
            place += length
    for pieces in blocks.values():
        if len(pieces) > _MAX_PIECES:  # each of which Pillow adds to a copy of those before
            raise refuse(f"tags in {len(pieces):,} pieces")
        check_tags(b"".join(pieces))
    if passed or data[place + 2] < components:  # one pass holds them all, or the decoder looks for more
        passes = _passes(data, place, parts)
        if passes > min(MAX_SCANS, max(20, _PIXELS_IN_PASSES // max(pixels, 1))):
            raise refuse(f"{passes} passes over its {pixels:,} pixels")
        if pixels > MAX_PASSED_PIXELS:
            raise InputError(
                f"a JPEG in several passes (progressive) is over the limit of {MAX_PASSED_PIXELS:,} pixels for its "
                "kind; save it without them"
            )
    return Structure("JPEG")


_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _passes(data: bytes, place: int, parts: int) -> int:
    """How often a JPEG says that a pass over its pixels begins; the first one does right before `place`.

    From marker to marker, as the decoder goes: the end may also stand inside a comment.
    """
    passes = 1
    place += max(struct.unpack_from(">H", data, place)[0], 2)
    while (found := _MARKER.search(data, place)) is not None:
        marker, place, parts = data[found.start() + 1], found.end(), parts + 1
        if marker == 0xD9 or place + 2 > len(data):
            break
        passes += marker == 0xDA
        _check_beside(parts, 0)
        if marker not in _WITHOUT_LENGTH:
            place += max(struct.unpack_from(">H", data, place)[0], 2)
    return passes


def _png(data: bytes) -> Structure:
    place, parts, beside, pieces, content, frames = 8, 0, 0, 0, 0, 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            break
        if kind in (b"IDAT", b"fdAT"):
            pieces, content = pieces + 1, content + length
            if pieces > 1000 + content // 256 + 16 * frames:
                raise refuse("pixels in pieces of a few bytes")
        elif kind == b"fcTL":
            frames += 1
            if frames > _MAX_FRAMES:
                raise refuse(f"more than {_MAX_FRAMES:,} frames")
        else:
            parts, beside = parts + 1, beside + length
            _check_beside(parts, beside)
        place += 12 + length
    width, height = struct.unpack_from(">II", data, 16)
    return Structure("PNG", (width, height))


def _gif(data: bytes) -> Structure:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    start = _gif_frame(data, 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
    if start is None:
        return Structure("GIF", (width, height))
    left, top, right, bottom, flags = struct.unpack_from("<HHHHB", data, start + 1)
    found = Structure("GIF", (max(width, left + right), max(height, top + bottom)))
    with contextlib.suppress(IndexError):  # cut short behind its first frame, which is all that is read
        end = _gif_pieces(data, start + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
        _gif_frame(data, end)  # whoever asks whether there is a second one goes as far
    return found


def _gif_frame(data: bytes, place: int) -> int | None:
    """Where the next frame begins; None at the end of the file."""
    parts, first = 0, place
    while (kind := data[place]) != 0x2C:
        parts += 1
        _check_beside(parts, place - first)
        if kind == 0x3B:
            return None
        place = _gif_pieces(data, place + 2) if kind == 0x21 else place + 1
    return place


def _gif_pieces(data: bytes, place: int) -> int:
    """The end of a chain of pieces of up to 255 bytes each."""
    count, first = 0, place
    while (size := data[place]) != 0:
        place, count = place + 1 + size, count + 1
        if count > 2 * _MAX_JUNK + (place - first) // 64:
            raise refuse("pixels or comments in pieces of a few bytes")
    return place + 1


def _webp(data: bytes) -> Structure:
    place, parts, pixels = 12, 0, 0
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        parts += 1
        if parts > _MAX_FRAMES:
            raise refuse(f"more than {_MAX_FRAMES:,} frames and other parts")
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
        size = TAG_SIZES.get(kind, 0)
        numbers[tag], beside = number, beside + size * number
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if code and number == 1:
            (values[tag],) = struct.unpack_from(order + code, data, start + (12 if big else 8))
    if beside > len(data):
        raise refuse("tags that claim more bytes than the file has")
    pixels = values.get(256, 0) * values.get(257, 0)
    pieces = max(numbers.get(273, 0), numbers.get(324, 0))
    _check_beside(0, beside - 16 * pieces)  # the places and lengths of strips and tiles are no comments
    if pieces > 64 + min(16 * pixels, 200_000):
        raise refuse(f"{pieces:,} strips or tiles")
    if values.get(322, 0) * values.get(323, 0) > 4 * pixels + 2**20:
        raise refuse("tiles much larger than the image")
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
            place += head if kind in (b"jp2h", b"res ") else length  # into those that hold others
    right, bottom, left, top = struct.unpack_from(">IIII", data, place + 8)
    (components,) = struct.unpack_from(">H", data, place + 40)
    pixels = max(right - left, 0) * max(bottom - top, 0)
    _check_pixels("JPEG 2000", max(pixels, 1) * max(1, -(-components // 4)), _WIDE_PIXELS)
    first = place = place + 2
    with contextlib.suppress(struct.error):
        while data[place + 1 : place + 2] not in (b"", b"\x90", b"\xd9"):  # up to the first tile
            parts += 1
            (length,) = struct.unpack_from(">H", data, place + 2)
            place += 2 + max(length, 2)
            _check_beside(parts, place - first)
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
    if kind == "AVIF":  # whose tags Pillow reads as it opens the file
        for count, head in enumerate(_TAGS.finditer(data)):
            if count == _MAX_HEADS:
                raise refuse(f"more than {_MAX_HEADS} blocks of tags")
            check_tags(data, head.start())
    _check_pixels("HEIC" if kind == "HEIF" else kind, math.prod(size), _BOXED_PIXELS)
    return Structure(kind, size if math.prod(size) else None, cut=place > len(data))


_TAGS = re.compile(rb"II[*+]\0|MM\0[*+]|II\0[*+]|MM[*+]\0")
_MAX_HEADS = 64  # pixels look like one by chance once in a gigabyte


def _extent(meta: bytes) -> tuple[int, int]:
    sizes = [(0, 0)]
    start = meta.find(b"ispe")
    while 0 <= start <= len(meta) - 16:
        sizes.append(struct.unpack_from(">II", meta, start + 8))
        if len(sizes) > MAX_PARTS:
            raise refuse(f"more than {MAX_PARTS:,} parts")
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
