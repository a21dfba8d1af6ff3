"""Image files of every kind, good and bad."""

import io
import os
import pathlib
import random
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from coco_files import check_message
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ntt_jax.errors import InputError
from ntt_jax.images.reading import FORMATS, ImageHeader, open_image_size, read_header, read_image, turned

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GREY = RGB[:, :, 0]


def save(path: pathlib.Path, image: Image.Image, **more: Any) -> pathlib.Path:
    image.save(path, **more)
    return path


def refused(path: pathlib.Path, *parts: str, **more: Any) -> None:
    with pytest.raises(InputError) as caught:
        read_image(path, **more)
    check_message(caught.value, *parts)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.gif", "a.jp2"])
def test_lossless_colour(tmp_path: pathlib.Path, name: str) -> None:
    image = Image.fromarray(RGB)
    if name == "a.gif":
        image = image.quantize(256)
    path = save(tmp_path / name, image, **({"lossless": True} if name == "a.webp" else {}))
    array = read_image(path)
    assert array.dtype == np.uint8 and array.shape == (20, 30, 3) and array.flags.writeable
    np.testing.assert_array_equal(array, np.asarray(image.convert("RGB")))
    assert open_image_size(path) == (20, 30)


def test_photos_equal_pillow(coco_open: pathlib.Path) -> None:
    for path in sorted((coco_open / "images").iterdir())[:12]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected)
        assert open_image_size(path) == expected.shape[:2]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", mode) for mode in ("L", "1", "LA", "RGBA", "P")),
        *(("a.tif", mode) for mode in ("L", "1", "LA", "RGBA", "P", "CMYK", "YCbCr")),
        *(("a.jpg", mode) for mode in ("L", "1", "CMYK", "YCbCr")),
    ],
)
def test_modes(tmp_path: pathlib.Path, mode: str, name: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    path = save(tmp_path / name, image)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    if mode in ("L", "LA", "1"):
        assert (read_image(path) == read_image(path)[:, :, :1]).all()


def test_alpha_is_dropped(tmp_path: pathlib.Path) -> None:
    rgba = np.concatenate([RGB, RNG.integers(0, 256, (20, 30, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(rgba))), RGB)


def test_palette_with_transparency_does_not_warn(tmp_path: pathlib.Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    path = save(tmp_path / "a.png", image, transparency=bytes(range(0, 160, 10)))
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_grey_keeps_the_high_byte(tmp_path: pathlib.Path, dtype: str) -> None:
    values = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    values[0, :3] = 0, 255, 65535
    expected = np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, Image.fromarray(values.astype(dtype)))
        np.testing.assert_array_equal(read_image(path), expected)
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 30 20 65535\n" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(pgm), expected)


def test_16_bit_colour_keeps_the_high_byte(tmp_path: pathlib.Path) -> None:
    values = RNG.integers(0, 65536, (20, 30, 3)).astype(">u2")
    path = tmp_path / "a.png"
    path.write_bytes(png(30, 20, 16, 2, values.reshape(20, -1).view(np.uint8)))
    np.testing.assert_array_equal(read_image(path), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("array", [GREY.astype(np.int32), GREY.astype(np.float32)])
def test_32_bit_grey_is_refused(tmp_path: pathlib.Path, array: np.ndarray) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(array))
    refused(path, str(path), "32-bit grey")


def tagged(path: pathlib.Path, orientation: int, array: np.ndarray = RGB) -> pathlib.Path:
    """The array as it is stored, with an orientation tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if path.suffix == ".tif":
        return save(path, Image.fromarray(array), tiffinfo={0x0112: orientation})
    return save(path, Image.fromarray(array), exif=exif, lossless=True)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path: pathlib.Path, suffix: str, orientation: int) -> None:
    path = tagged(tmp_path / f"a{suffix}", orientation)
    plain = read_image(save(tmp_path / f"b{suffix}", Image.fromarray(RGB), lossless=True))
    upright, raw = read_image(path), read_image(path, exif="raw")
    np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(with_tag(plain, orientation))))
    np.testing.assert_array_equal(raw, plain)
    np.testing.assert_array_equal(turned(plain, orientation), upright)
    assert read_header(path).orientation == orientation
    assert open_image_size(path) == upright.shape[:2] and open_image_size(path, exif="raw") == raw.shape[:2]
    # Where only one of the two sizes is that of the annotations, that one is meant; else the upright one.
    for fits, expected in [((20, 30), raw if orientation >= 5 else upright), ((30, 20), upright), ((7, 7), upright)]:
        np.testing.assert_array_equal(read_image(path, fits=fits), expected)


def with_tag(array: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    return image


def test_orientation_behind_the_pixels_of_a_png(tmp_path: pathlib.Path) -> None:
    path = tagged(tmp_path / "a.png", 6)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert open_image_size(path) == (30, 20)
    np.testing.assert_array_equal(read_image(path), turned(RGB, 6))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_are_none(tmp_path: pathlib.Path, value: int) -> None:
    head = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"
    exif = head + value.to_bytes(2, "big") + bytes(6)
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), exif=exif)
    assert read_header(path) == ImageHeader(20, 30)
    save(path, Image.fromarray(RGB), exif=exif[:20])  # cut off
    assert read_image(path).shape == (20, 30, 3)


def test_first_frame_of_an_animation(tmp_path: pathlib.Path) -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    path = save(tmp_path / "a.gif", first, save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(path)[:, :, 0], GREY)


def test_content_decides_not_the_extension(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), format="PNG")
    np.testing.assert_array_equal(read_image(path), RGB)
    text = tmp_path / "b.jpg"
    text.write_text("this is not an image")
    refused(text, str(text), "not an image")
    postscript = tmp_path / "c.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    refused(postscript, "not an image")


def test_not_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "no.jpg", "no.jpg", "No such file")
    refused(tmp_path, str(tmp_path), "a folder")
    refused(tmp_path / "empty.jpg", "empty.jpg", "empty file")
    refused(tmp_path / "pipe.jpg", "pipe.jpg", "a pipe")
    refused(tmp_path / "a\nb.jpg", "a\\nb.jpg", "No such file")
    refused(tmp_path / "a\0b.jpg", "a\\x00b.jpg")
    with pytest.raises(InputError, match="No such file"):
        open_image_size(tmp_path / "no.jpg")


def png(width: int, height: int, bits: int, colour: int, rows: np.ndarray | None) -> bytes:
    """A PNG made by hand, so that its header can lie; without rows it has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = b"" if rows is None else b"".join(b"\0" + row.tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_decompression_bombs(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.png"
    limit = Image.MAX_IMAGE_PIXELS
    for side in (15_000, 100_000, 2**31 - 1):
        path.write_bytes(png(side, side, 8, 2, None))
        refused(path, str(path), "over the limit")
        assert open_image_size(path) == (side, side)
    path.write_bytes(png(10_000, 9_500, 8, 0, None))  # where Pillow would warn
    refused(path, "cannot read")
    refused(path, "over the limit of 1,000", max_pixels=1_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_sizes(tmp_path: pathlib.Path) -> None:
    np.testing.assert_array_equal(
        read_image(save(tmp_path / "a.png", Image.new("RGB", (1, 1), (1, 2, 3)))), [[[1, 2, 3]]]
    )
    large = read_image(save(tmp_path / "b.png", Image.new("1", (8000, 8000), 1)))
    assert large.shape == (8000, 8000, 3) and large[-1, -1].tolist() == [255] * 3
    refused(save(tmp_path / "a.png", Image.fromarray(RGB)), "30 x 20", "599", max_pixels=599)
    assert read_image(tmp_path / "a.png", max_pixels=600).shape == (20, 30, 3)


FILES: dict[str, bytes] = {}
for kind in sorted(set(FORMATS) - {"HEIF"}):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    FILES[kind] = buffer.getvalue()


def test_a_fresh_process_reads_every_format(tmp_path: pathlib.Path) -> None:
    """Pillow loads its readers one by one as they are needed; the tests above have loaded all."""
    for kind, data in FILES.items():
        (tmp_path / kind).write_bytes(data)
    # What cameras and telephones write as .jpg: several JPEGs in one file.
    save(tmp_path / "MPO", Image.fromarray(RGB), format="MPO", save_all=True, append_images=[Image.fromarray(RGB)])
    names = [str(tmp_path / kind) for kind in ("TIFF", "PNG", "MPO", *FILES)]
    code = (
        "import sys; from ntt_jax.images.reading import read_image; print({read_image(p).shape for p in sys.argv[1:]})"
    )
    command = [sys.executable, "-W", "error", "-c", code, *names]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("{(20, 30, 3)}\n", "")


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files(kind: str, tmp_path: pathlib.Path) -> None:
    data, path = FILES[kind], tmp_path / "a.jpg"
    whole = read_image_bytes(data, path)
    for part in (1, 8, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(InputError) as caught:
            read_image_bytes(data[:part], path)
        check_message(caught.value, str(path))
    assert whole.shape == (20, 30, 3)


def test_pillow_stays_quiet(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    samples_per_pixel = b"\x15\x01\x03\x00\x01\x00\x00\x00\x03\x00"  # TIFF tag 277, one short: 3
    assert samples_per_pixel in FILES["TIFF"]
    path = tmp_path / "a.tif"
    path.write_bytes(FILES["TIFF"].replace(samples_per_pixel, samples_per_pixel[:-2] + b"\xff\xff"))
    refused(path, str(path))
    assert capfd.readouterr() == ("", "")


def read_image_bytes(data: bytes, path: pathlib.Path) -> np.ndarray:
    path.write_bytes(data)
    return read_image(path, max_pixels=1_000_000)


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(FILES)), st.integers(0, 2**32), st.binary(max_size=6))
def test_spoiled_files_only_raise_input_errors(kind: str, seed: int, insert: bytes) -> None:
    path = pathlib.Path(os.environ["PYTEST_SCRATCH_IMAGE"])
    for i in range(seed, seed + 8):
        rng = random.Random(i)
        data = bytearray(FILES[kind])
        for _ in range(rng.randint(1, 4)):
            # Headers are where a decoder can be led astray: half of the faults go there.
            place = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))
            data[place : place + rng.randint(0, 4)] = rng.choice([insert, rng.randbytes(2), b"\xff\xff\xff\xff", b"\0"])
            data = data or bytearray(b"\0")
        try:
            array = read_image_bytes(bytes(data), path)
            assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
        except InputError as error:
            check_message(error, str(path))


@pytest.fixture(autouse=True)
def scratch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the fuzz test writes: hypothesis calls it many times within one use of the fixtures."""
    monkeypatch.setenv("PYTEST_SCRATCH_IMAGE", str(tmp_path / "spoiled.img"))


def test_threads_leave_the_settings_alone(tmp_path: pathlib.Path) -> None:
    paths = []
    for i in range(8):
        paths.append(save(tmp_path / f"{i}.{('png', 'tif')[i % 2]}", Image.fromarray(RGB)))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(read_image, paths * 20))
    assert all((array == RGB).all() for array in arrays)
    assert limit == Image.MAX_IMAGE_PIXELS and list(warnings.filters) == filters
