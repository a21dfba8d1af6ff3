"""EXIF tags of an image, looked at before Pillow reads them: a small block can claim gigabytes.

An entry says where in the block its bytes lie, and thousands may say the same place. Versions of Pillow before 13 copy
them for each.
"""

import struct

from PIL import ExifTags, Image

from ntt_jax.errors import InputError

MAX_BESIDE = 32 * 1024**2
"""Bytes of all that is not pixels: thumbnails, profiles, comments, and what their tags claim."""
MAX_ENTRIES = 65_535
"""Tags of one block: more cannot be in an ordinary one."""
TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of each type."""


def refuse(what: str) -> InputError:
    """The refusal of a file that is expensive beyond its pixels."""
    return InputError(f"refused: {what}, far more than a photograph needs; save it again as PNG or JPEG")


def check_tags(data: bytes, start: int = 0) -> None:
    """Raise `InputError` if the tags of a block claim more bytes in all than any photograph has beside its pixels.

    The block goes from `start` to the end of `data`, with or without "Exif" in front; a damaged one says nothing.
    """
    while data.startswith(b"Exif\0\0", start):
        start += 6
    size = len(data) - start
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    if order is None:
        return
    for big in (False, True) if b"+" in data[start + 2 : start + 4] else (False,):
        try:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, start + (8 if big else 4))
            if place >= size:
                continue
            (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start + place)
        except struct.error:
            continue
        place, step = start + place + (8 if big else 2), 20 if big else 12
        count = min(count, (len(data) - place) // step)
        if count > MAX_ENTRIES:
            raise refuse(f"{count:,} tags")
        if count * size <= MAX_BESIDE:
            continue
        claimed = 0
        for entry in range(place, place + count * step, step):
            _, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
            claimed += min(TAG_SIZES.get(kind, 0) * number, size)
        if claimed > MAX_BESIDE:
            raise refuse("tags that claim the same bytes over and over")


def exif_block(image: Image.Image) -> bytes:
    """The block of an opened image whose tags Pillow would read; empty without one."""
    if (block := image.info.get("exif")) is None:
        profile = image.info.get("Raw profile type exif", "")  # text in a PNG, as ImageMagick writes it
        block = bytes.fromhex("".join(profile.split("\n")[3:]))
    return block


def late_orientation(data: bytes) -> int:
    """The orientation in an eXIf chunk that stands behind a PNG's pixels, 1 where there is none that is sound."""
    place = 8
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind == b"eXIf" and length < 2**20:
            block, exif = data[place + 8 : place + 8 + length], Image.Exif()
            try:
                check_tags(block)
                exif.load(block)
                tag = exif.get(ExifTags.Base.Orientation)
            except Exception:
                return 1
            return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1
        if kind == b"IEND":
            break
        place += length + 12
    return 1
