"""Images that are expensive beyond their pixels are refused before a decoder sees them, or stopped while it works."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images import apart
from ntt_jax.images.reading import read_image
from ntt_jax.images.structure import check_structure

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def saved(kind, image=None, **more):
    buffer = io.BytesIO()
    (Image.fromarray(RGB) if image is None else image).save(buffer, kind, **more)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


PIXELS = chunk(b"IDAT", zlib.compress(b"\0" * 72))


def tiff(*entries, tail=b""):
    base = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 0)}
    base |= {277: (3, 1, 1), 278: (4, 1, 8), 279: (4, 1, 64)} | {tag: rest for tag, *rest in entries}
    rows = b"".join(struct.pack("<HHLL", tag, *rest) for tag, rest in sorted(base.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(base)) + rows + b"\0" * 68 + tail


def gif(*parts):
    return b"GIF89a\x08\0\x08\0\x80\0\0" + b"\0" * 6 + b"".join(parts)


def webp(width, height, tail=b""):
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + sides + tail
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width, height, compression, data):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + head + b"\1\2\3\0" * 256 + data


def jpeg2000(width, height, components=3):
    return b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">8IH", width, height, 0, 0, width, height, 0, 0, components)


FRAME = b",\0\0\0\0\x08\0\x08\0\0\x02\x02\x4c\x01\0;"
BOMBS = {
    "jpeg fill": b"\xff\xd8" + b"\xff" * 1_000_000,
    "jpeg junk": b"\xff\xd8\xff\xe0\0\2" + b"\xff\0" * 500_000,
    "jpeg segments": b"\xff\xd8" + b"\xff\xe1\0\2" * 200_000,
    "jpeg comments": b"\xff\xd8" + (b"\xff\xfe\xff\xff" + b"a" * 65533) * 600,
    "jpeg passes": saved("JPEG", progressive=True).replace(
        b"\xff\xd9", b"\xff\xda\0\x08\1\1\0\0\0\0" * 200 + b"\xff\xd9"
    ),
    "png chunks": png(*[chunk(b"abCd", b"")] * 5000, PIXELS),
    "png empty pieces": png(*[chunk(b"IDAT", b"")] * 5000, PIXELS),
    "png beside": png(PIXELS, chunk(b"eXIf", b"\0" * 40_000_000)),
    "gif comments": gif(b"!\xfe\1a\0" * 5000, FRAME),
    "gif pieces": gif(b"!\xff" + b"\1a" * 200_000 + b"\0", FRAME),
    "gif beyond its screen": gif(b"," + struct.pack("<HHHHB", 65000, 65000, 535, 535, 0) + b"\2\2\x4c\1\0;"),
    "webp canvas": webp(14000, 14000),
    "webp frames": webp(8, 8, (b"ANMF" + struct.pack("<I", 0)) * 30_000),
    "tiff tags": tiff(*[(40000 + i, 7, 1000, 400) for i in range(5000)], tail=b"\0" * 6_000_000),
    "tiff one block for many tags": tiff(*[(40000 + i, 7, 90_000, 400) for i in range(50)], tail=b"\0" * 100_000),
    "tiff strips": tiff((273, 4, 500_000, 400), (279, 4, 500_000, 400), tail=b"\0" * 4_000_400),
    "tiff tiles": tiff((322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 300), (325, 4, 1, 64)),
    "tiff lzma": tiff((259, 3, 1, 34925), tail=b"\xfd7zXZ\0" + b"\0" * 100),
    "bmp of runs": bmp(2, 1000, 1, b"\xff\1" * 3_000_000),
    "bmp of a wide row": bmp(200_000_000, 1, 1, b"\0\2\xff\xff"),
    "ppm plain": b"P3 14000 14000 255\n" + b"1 " * 1000,
    "ppm comment": b"P6\n#" + b"a" * 1_000_000 + b"\n8 8 255\n" + b"\0" * 192,
    "ppm white": b"P6 14000 14000 7\n" + b"\0" * 1000,
    "jpeg 2000 area": jpeg2000(14000, 14000),
    "jpeg 2000 components": jpeg2000(6000, 6000, 16384),
    "jpeg 2000 boxes": b"\0\0\0\x0cjP  \r\n\x87\n" + (struct.pack(">I", 8) + b"free") * 10_000,
    "jpeg 2000 box without end": b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4sQ", 1, b"free", 0),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_structure(tmp_path, name):
    path = tmp_path / "a.jpg"
    path.write_bytes(BOMBS[name])
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert time.monotonic() - start < 3 and message.isprintable() and len(message) < 400
    assert any(words in message for words in ("refused", "over the limit", "not an image", "no size")), message


def test_sparse_files_are_not_read(tmp_path):
    for start in (b"GIF89a\x08\0\x08\0\0\0\0", BOMBS["webp canvas"], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\0\2"):
        for size in (100_000_000, 3 * 2**30):
            with open(tmp_path / "a.img", "wb") as file:
                file.write(start)
                file.truncate(size)
            with pytest.raises(InputError, match=r"never written|larger than the limit"):
                read_image(tmp_path / "a.img")


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "P", "CMYK"])
@pytest.mark.parametrize("kind", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "JPEG2000"])
def test_a_process_apart_gives_the_same_pixels(tmp_path, kind, mode):
    if kind == "JPEG2000" and mode in ("1", "P", "CMYK"):
        pytest.skip("Pillow writes none")
    image = Image.fromarray(RGB).convert(mode)
    more = {} if kind == "JPEG2000" else {"compression": kind}
    path = tmp_path / "a"
    path.write_bytes(saved("JPEG2000" if kind == "JPEG2000" else "TIFF", image, **more))
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)


def test_rows_come_together_in_any_number(tmp_path, monkeypatch):
    from ntt_jax.images import reading

    image = Image.fromarray(RGB)
    (tmp_path / "a.tif").write_bytes(saved("TIFF", image, compression="tiff_lzw"))
    (tmp_path / "a.png").write_bytes(saved("PNG", image.quantize(32), transparency=3))
    (tmp_path / "b.png").write_bytes(saved("PNG", image.convert("RGBA")))
    whole = {path: read_image(path) for path in tmp_path.iterdir()}
    monkeypatch.setattr(reading, "_AT_ONCE", 60 * 4 * 7)
    for path, expected in whole.items():
        np.testing.assert_array_equal(read_image(path), expected)


def test_a_decoder_that_takes_too_long_or_too_much_is_stopped(tmp_path, monkeypatch):
    data = saved("TIFF", Image.new("RGB", (3000, 3000)), compression="tiff_lzw")
    monkeypatch.setattr(apart, "_BASE_BYTES", 0)
    monkeypatch.setattr(apart, "BYTES_PER_PIXEL", 0)
    with pytest.raises(apart.ApartError, match="did not finish"):
        list(apart.decode_apart(data, "TIFF", 9_000_000))
    monkeypatch.undo()
    monkeypatch.setattr(apart, "SECONDS", 0.01)
    with pytest.raises(apart.ApartError, match="did not finish"):
        list(apart.decode_apart(data, "TIFF", 9_000_000))


def test_what_libraries_print_stays_off_the_terminal(tmp_path, capfd):
    data = bytearray(saved("TIFF", compression="tiff_lzw"))
    data[8:200] = b"\xff" * 192
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError):
        read_image(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")


def test_honest_files_have_an_ordinary_structure():
    photo = Image.fromarray(RGB)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"):
        found = check_structure(saved(kind, photo))
        assert found.format == kind and found.size in (None, (60, 40)) and not found.cut
    check_structure(saved("JPEG", photo, progressive=True, exif=b"Exif\0\0" + b"\0" * 60_000))
    check_structure(saved("GIF", photo, save_all=True, append_images=[photo] * 50, comment=b"a" * 5000))
    check_structure(saved("PNG", photo, save_all=True, append_images=[photo.rotate(90)] * 50))
