"""Files that are not the images they say they are, made from a random generator, for scripts/fuzz_uploads.py."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def bad_image(generator: random.Random, sound: bytes) -> tuple[str, bytes]:
    """What is done to it, and the bytes. sound: an image that can be read."""
    roll = generator.random()
    if roll < 0.12:
        name, make = generator.choice(list(_BOMBS.items()))
        return name, make(generator)
    if roll < 0.2:
        return "noise", generator.randbytes(generator.choice([0, 1, 8, 100, 5000, 200_000]))
    if roll < 0.27:
        return "other type", generator.choice(_OTHERS)
    name, data = generator.choice(_sound_images(sound))
    return f"spoiled {name}", spoiled(generator, data)


def spoiled(generator: random.Random, data: bytes) -> bytes:
    """The bytes with some of them changed, left out, or there twice."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 4, 16])):
        place = generator.randrange(len(changed) + 1) if generator.random() < 0.5 else generator.randrange(64)
        action = generator.randrange(6)
        if action == 0:
            del changed[place:]
        elif action == 1:
            changed[place : place + 4] = generator.choice(
                [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff"]
            )
        elif action == 2:
            changed[place:place] = generator.randbytes(generator.choice([1, 7, 300]))
        elif action == 3:
            del changed[place : place + generator.choice([1, 4, 50])]
        elif action == 4:
            changed[place : place + 1] = generator.randbytes(1)
        else:
            part = changed[place : place + generator.randrange(1, 400)]
            changed[place:place] = part * generator.choice([1, 20])
    return bytes(changed)


_made: list[tuple[str, bytes]] = []


def _sound_images(sound: bytes) -> list[tuple[str, bytes]]:
    """Small images of every format that Pillow writes here; those that are decoded apart take long, and are rarer."""
    if not _made:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), np.uint8)
        made = [("scene", sound)]
        for kind, modes in {
            "PNG": ("RGB", "RGBA", "P", "1", "I;16", "LA"),
            "JPEG": ("RGB", "L", "CMYK"),
            "GIF": ("P", "L"),
            "BMP": ("RGB", "P", "1"),
            "PPM": ("RGB", "L"),
            "WEBP": ("RGB", "RGBA"),
            "TIFF": ("RGB",),
            "JPEG2000": ("RGB",),
            "AVIF": ("RGB",),
        }.items():
            for mode in modes:
                buffer = io.BytesIO()
                try:
                    image = Image.fromarray(pixels).convert("RGB" if mode != "I;16" else "I;16")
                    image.convert(mode).save(buffer, kind)
                except (OSError, KeyError, ValueError):
                    continue
                made.append((f"{kind} {mode}", buffer.getvalue()))
        frames = [Image.new("P", (9, 9), i) for i in range(3)]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
        made.append(("GIF of frames", buffer.getvalue()))
        _made.extend(made)
    return _made


def _png(width: int, height: int, *, data: bytes, extra: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _text_bomb(generator: random.Random) -> bytes:
    packed = zlib.compress(b"\0" * 20_000_000, 9)
    content = b"key\0\0" + packed
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    rows = zlib.compress((b"\0" + b"\1\2\3" * 8) * 8)
    return _png(8, 8, data=rows, extra=chunk * generator.choice([1, 3]))


_BOMBS: dict[str, Callable[[random.Random], bytes]] = {
    "PNG bomb": lambda g: _png(
        s := g.choice([20_000, 60_000, 2**31 - 1]), s, data=zlib.compress(b"\0" * 30_000_000, 9)
    ),
    "long PNG": lambda g: _png(1, g.choice([30_000, 150_000]), data=zlib.compress(b"\0\1\2\3" * 150_000, 9)),
    "PNG text bomb": _text_bomb,
    "GIF bomb": lambda g: b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
    "BMP bomb": lambda g: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 65535, 65535, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "PPM bomb": lambda g: g.choice(
        [b"P6 99999999 99999999 255\n", b"P5 " + b"9" * 5000 + b" 1 255\n", b"P3 2 2 255\n-1"]
    ),
    "JPEG bomb": lambda g: b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\3\1\x11\0\2\x11\0\3\x11\0" + g.randbytes(200),
}
_OTHERS = [
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
    b"%PDF-1.7\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"PK\x03\x04" + b"\0" * 40,
    b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    b"\x80\x04cos\nsystem\n(S'echo'\ntR.",
    b"{}",
    b"#!/bin/sh\necho\n",
    b"\xff\xd8\xff\xd9",
    b"RIFF\xff\xff\xff\xffWEBPVP8X",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    b"II*\0\x08\0\0\0" + b"\xff" * 200,
]
