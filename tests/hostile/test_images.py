"""Images that are expensive beyond their pixels are refused before a decoder sees them, or stopped while it works."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from stopwatch import cpu_seconds

from ntt_jax.errors import InputError
from ntt_jax.images import apart, mask_files
from ntt_jax.images.mask_files import mask_numbers, read_mask
from ntt_jax.images.reading import open_image_size, read_image
from ntt_jax.images.structure import check_structure
from ntt_jax.images.tags import check_tags

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


def tags(count, claimed, size):
    """An EXIF block of so many bytes whose tags claim the same ones over and over."""
    rows = b"".join(struct.pack("<HHLL", 1000 + i, 7, claimed, 16) for i in range(count))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", count) + rows + b"\0" * 4).ljust(size, b"\0")


def jpeg(*segments):
    whole = saved("JPEG")
    return whole[:2] + b"".join(m + struct.pack(">H", len(s) + 2) + s for m, s in segments) + whole[2:]


def passes(count, *, between=b"", components=1):
    """A JPEG whose last pass is there once more, so many times; or of components that are passed over one by one."""
    if components == 1:
        whole = saved("JPEG", progressive=True)
        return whole[:-2] + between + whole[whole.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"
    whole = saved("JPEG", subsampling=0)
    ones = [b"\xff\xda\0\x08\1" + bytes([i, 0x11 * (i > 1)]) + b"\0\x3f\0" + b"\0" * 40 for i in (1, 2, 3)]
    return whole[: whole.index(b"\xff\xda")] + b"".join(ones) * count + b"\xff\xd9"


def boxed(more):
    """A JPEG 2000 with more in the box that holds its header."""
    whole = saved("JPEG2000")
    place = whole.index(b"jp2h")
    (length,) = struct.unpack_from(">I", whole, place - 4)
    return whole[: place - 4] + struct.pack(">I", length + len(more)) + b"jp2h" + more + whole[place + 4 :]


def streamed(more):
    """A JPEG 2000 with more markers in front of its first tile."""
    whole = saved("JPEG2000", no_jp2=True)
    end = 4 + struct.unpack_from(">H", whole, 4)[0]
    return whole[:end] + more + whole[end:]


FRAME_CONTROL = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 1, 0, 0))
FRAME = b",\0\0\0\0\x08\0\x08\0\0\x02\x02\x4c\x01\0;"
BOMBS = {
    "jpeg fill": b"\xff\xd8" + b"\xff" * 1_000_000,
    "jpeg junk": b"\xff\xd8\xff\xe0\0\2" + b"\xff\0" * 500_000,
    "jpeg segments": b"\xff\xd8" + b"\xff\xe1\0\2" * 200_000,
    "jpeg comments": b"\xff\xd8" + (b"\xff\xfe\xff\xff" + b"a" * 65533) * 600,
    "jpeg passes": saved("JPEG", progressive=True).replace(
        b"\xff\xd9", b"\xff\xda\0\x08\1\1\0\0\0\0" * 200 + b"\xff\xd9"
    ),
    "jpeg passes behind an end in a comment": passes(200, between=b"\xff\xfe\0\4\xff\xd9"),
    "jpeg passes over one component each": passes(100, components=3),
    "jpeg passes over a large image": passes(40).replace(struct.pack(">HH", 40, 60), struct.pack(">HH", 9999, 9999)),
    "jpeg passes over too large an image": passes(0).replace(
        struct.pack(">HH", 40, 60), struct.pack(">HH", 14000, 14000)
    ),
    "jpeg tags": jpeg((b"\xff\xe1", b"Exif\0\0" + tags(5000, 60_000, 65_000))),
    "jpeg tags in pieces": jpeg(*[(b"\xff\xe1", b"Exif\0\0" + b"a" * 8000)] * 300),
    "jpeg tags of several pictures": jpeg((b"\xff\xe2", b"MPF\0" + tags(5000, 60_000, 65_000))),
    "jpeg photoshop": jpeg((b"\xff\xed", b"Photoshop 3.0\0" + b"8BIM\4\0\0\0\0\0\0\0" * 5000)),
    "avif tags": b"\0\0\0\x10ftypavif\0\0\0\0" + struct.pack(">I", 640_008) + b"mdat" + tags(5000, 600_000, 640_000),
    "avif many tags": b"\0\0\0\x10ftypavif\0\0\0\0" + struct.pack(">I", 648) + b"mdat" + b"II*\0\0\0\0\0" * 80,
    "png chunks behind the pixels": png(PIXELS, FRAME_CONTROL, *[chunk(b"abCd", b"")] * 5000),
    "png frames": png(chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), FRAME_CONTROL, PIXELS, *[FRAME_CONTROL] * 21_000),
    "gif comments behind the first frame": gif(FRAME[:-1], b"!\xfe\1a\0" * 5000, FRAME),
    "gif pixels in pieces": gif(FRAME[:-5] + b"\1\0" * 200_000 + b"\0;"),
    "jpeg 2000 boxes in its header": boxed((struct.pack(">I", 8) + b"free") * 5000),
    "jpeg 2000 boxes in those": boxed(struct.pack(">I4s", 40_008, b"res ") + (struct.pack(">I", 8) + b"free") * 5000),
    "jpeg 2000 markers": streamed(b"\xff\x55\0\2" * 5000),
    "jpeg 2000 markers without a length": streamed(b"\xff\x55\0\0" * 5000),
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
    start = cpu_seconds()
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert cpu_seconds() - start < 10 and message.isprintable() and len(message) < 400
    assert any(words in message for words in ("refused", "over the limit", "not an image", "no size")), message


def test_tags_that_claim_gigabytes_are_not_copied(tmp_path, monkeypatch):
    """A PNG and a WebP say it after they are opened: the tags say nothing then, and the pixels are read."""
    block = tags(60_000, 900_000, 1_000_000)
    profile = b"Raw profile type exif\0\0" + zlib.compress(
        b"\nexif\n 9\n" + tags(9000, 200_000, 210_000).hex().encode()
    )
    files = {
        "chunk": png(chunk(b"eXIf", block), PIXELS),
        "late": png(PIXELS, chunk(b"eXIf", block)),
        "text": png(chunk(b"zTXt", profile), PIXELS),
        "webp": saved("WEBP", exif=tags(60_000, 20_000_000, 800_000)),
    }
    loaded = []
    monkeypatch.setattr(Image.Exif, "load", lambda self, data: loaded.append(data))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        read_image(tmp_path / name)
    assert loaded == []
    (tmp_path / "sound").write_bytes(png(PIXELS, chunk(b"eXIf", tags(9, 100, 1000))))
    read_image(tmp_path / "sound")
    assert len(loaded) == 1
    with pytest.raises(InputError, match="over and over"):
        check_tags(b"Exif\0\0" + block)
    big = (
        b"II+\0\x08\0\0\0"
        + struct.pack("<QQ", 16, 9000)
        + b"".join(struct.pack("<HHQQ", 1000 + i, 7, 10**9, 16) for i in range(9000))
    )
    with pytest.raises(InputError, match="over and over"):
        check_tags(big)
    for damaged in (b"", b"II*\0", b"MM\0+" + b"\xff" * 20, b"II*\0\xff\xff\xff\xff", tags(9, 10**9, 10)):
        check_tags(damaged)


def test_masks_of_many_frames_and_of_noise(tmp_path):
    directories = b"".join(struct.pack("<HI", 0, 0) for _ in range(3))
    whole = tiff()[: 8 + 2 + 9 * 12] + struct.pack("<I", 8 + 2 + 9 * 12 + 4 + 64) + b"\0" * 64 + directories
    photo = Image.fromarray(RGB).convert("P")
    files = {"a.tif": whole, "a.gif": saved("GIF", photo, save_all=True, append_images=[photo.rotate(90)] * 3)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="several pages or frames"):
            read_mask(tmp_path / name)
        assert read_image(tmp_path / name).ndim == 3
    noise = np.arange(40_000, dtype=np.uint16).reshape(200, 200)
    with pytest.raises(InputError, match="39,999 values, over the limit"):
        mask_numbers(noise).instances()
    (number, mask), *others = mask_numbers(noise // 10_000).instances()
    assert number == 1 and len(others) == 2 and np.asarray(mask).sum() == 10_000


def test_wide_masks_have_a_limit_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_files, "_MAX_WIDE_PIXELS", 2399)
    monkeypatch.setattr(mask_files, "_ROWS", 60 * 7)
    image = Image.fromarray(RGB // 255)
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="60 x 40 pixels in colours or more than 8 bits"):
        read_mask(tmp_path / "a.png")
    image.convert("L").save(tmp_path / "a.png")
    read_mask(tmp_path / "a.png")
    monkeypatch.setattr(mask_files, "_MAX_WIDE_PIXELS", 2400)
    expected = RGB.astype(np.int64) @ np.array([65536, 256, 1])
    np.testing.assert_array_equal(mask_numbers(RGB).values, expected)  # some rows at a time


def test_offsets_beyond_any_file(tmp_path):
    """What the fuzzer found: the place of the first directory of a BigTIFF beyond what a C integer holds."""
    (tmp_path / "a.tif").write_bytes(b"II+\0\x08\0\0\0" + b"\xff" * 40)
    for read in (read_image, open_image_size):
        with pytest.raises(InputError):
            read(tmp_path / "a.tif")


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
    check_structure(saved("JPEG", photo, progressive=True, comment=b"\xff\xda\xff\xd9" * 900))
    check_structure(jpeg(*[(b"\xff\xe1", b"Exif\0\0" + tags(9, 60_000, 65_000))] * 2))
    check_structure(passes(9, components=3))
    check_structure(saved("GIF", photo, save_all=True, append_images=[photo] * 50, comment=b"a" * 5000))
    check_structure(saved("PNG", photo, save_all=True, append_images=[photo.rotate(90)] * 50))
