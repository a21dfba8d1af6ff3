"""HEIC through every road: upright once, sized without decoding, bounded, refused in a line when spoiled."""

import io
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stopwatch import cpu_seconds

from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.image_files import survey
from ntt_jax.errors import InputError
from ntt_jax.images import apart, heif
from ntt_jax.images.photos import photos_of_folder
from ntt_jax.images.reading import open_image, open_image_size, read_header, read_image, read_index_image, turned

pillow_heif = pytest.importorskip("pillow_heif")
PIXELS = np.zeros((48, 80, 3), np.uint8)
PIXELS[:24, :40], PIXELS[24:, 40:] = (200, 30, 30), (30, 30, 200)


def heic(image=PIXELS, orientation=1, **more) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(image)).save(buffer, exif=exif.tobytes(), quality=95, **more)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def plain() -> bytes:
    return heic()


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("turned_by_encoder", [False, True])
def test_turned_once(tmp_path: Path, orientation: int, turned_by_encoder: bool) -> None:
    """A HEIC that is turned by its own property is not turned again by the tag; a tag alone turns nothing."""
    path = tmp_path / "a.heic"
    pillow_heif.register_heif_opener()
    if turned_by_encoder:  # Pillow's plugin turns the tag into the image's property, as phones write it
        exif = Image.Exif()
        exif[0x112] = orientation
        Image.fromarray(PIXELS).save(path, "HEIF", exif=exif.tobytes(), quality=95)
    else:
        path.write_bytes(heic(orientation=orientation))
    with Image.open(path) as shown:
        expected = np.asarray(shown.convert("RGB"))
    if turned_by_encoder:
        np.testing.assert_allclose(expected, turned(PIXELS, orientation), atol=12)
    for exif_reading in ("upright", "raw"):
        np.testing.assert_array_equal(read_image(path, exif=exif_reading), expected)
        assert open_image_size(path, exif=exif_reading) == expected.shape[:2]
    assert read_header(path).orientation == 1
    with open_image(path) as image:
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_the_roads_of_evaluate_and_segment(tmp_path: Path, plain: bytes) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(plain)
    (tmp_path / "x").mkdir()
    annotations = tmp_path / "x" / "a.json"
    annotations.write_text(
        '{"images":[{"id":1,"file_name":"img_1.heic"}],"categories":[{"id":1,"name":"a"}],"annotations":'
        '[{"id":1,"image_id":1,"category_id":1,"bbox":[0,0,9,9],"segmentation":[[0,0,9,0,9,9]]}]}'
    )
    dataset = survey(load_coco(annotations), tmp_path, exif="upright")
    assert (dataset.images[1].height, dataset.images[1].width) == (48, 80)
    assert read_image(dataset.image_path(tmp_path, 1)).shape == (48, 80, 3)
    assert [path.name for path in photos_of_folder(tmp_path).files] == ["IMG_1.HEIC"]


def test_an_alpha_channel_and_ten_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    alpha = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)])
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(alpha)).save(buffer, quality=95)
    path.write_bytes(buffer.getvalue())
    np.testing.assert_allclose(read_image(path), PIXELS, atol=12)
    wide = (np.ascontiguousarray(PIXELS).astype(np.uint16) << 8).byteswap(False)
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (80, 48), wide.byteswap(False).tobytes()).save(buffer, quality=95)
    path.write_bytes(buffer.getvalue())
    np.testing.assert_allclose(read_image(path), PIXELS, atol=12)


def test_limits(tmp_path: Path, plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(plain)
    with pytest.raises(InputError, match="80 x 48 pixels, over the limit of 3,839"):
        read_image(path, max_pixels=3839)
    assert read_image(path, max_pixels=3840).shape == PIXELS.shape
    with pytest.raises(InputError, match="HEIC photo"):
        read_index_image(path)
    at = plain.index(b"ispe") + 8
    for claim, words in ((60_000, "over the limit of 64,000,000"), (2**31, "over the limit")):
        path.write_bytes(plain[:at] + struct.pack(">II", claim, claim) + plain[at + 8 :])
        with pytest.raises(InputError, match=words):
            read_image(path)
    monkeypatch.setattr(apart, "SECONDS", 0)
    path.write_bytes(plain)
    with pytest.raises(InputError, match="did not finish within 0 s"):
        read_image(path)


def test_spoiled_files_end_in_a_line(tmp_path: Path, plain: bytes) -> None:
    rng = random.Random(0)
    path = tmp_path / "a.heic"
    spoiled = [plain[:count] for count in (13, 40, len(plain) // 2, len(plain) - 30)]
    for _ in range(6):
        data = bytearray(plain)
        for _ in range(3):
            data[rng.randrange(16, len(data))] ^= 1 << rng.randrange(8)
        spoiled.append(bytes(data))
    for number, data in enumerate(spoiled):
        path.write_bytes(data)
        start = cpu_seconds()
        try:
            assert read_image(path).shape[2] == 3
            assert number >= 4
        except InputError as error:
            assert str(error).startswith(str(path)) and str(error).isprintable() and len(str(error)) < 400
            assert number >= 4 or "cut short or damaged" in str(error) or "not an image" in str(error)
        assert cpu_seconds() - start < 10


def test_the_library_that_parses_strangers_runs_apart(tmp_path: Path, plain: bytes) -> None:
    """libheif does not see a byte in this process: only the helper opens the file."""
    import subprocess

    path = tmp_path / "a.heic"
    path.write_bytes(plain)
    code = (
        "import sys; from ntt_jax.images.reading import read_image, open_image_size, open_image\n"
        "read_image(sys.argv[1]); open_image_size(sys.argv[1])\n"
        "with open_image(sys.argv[1]): pass\n"
        "print([name for name in sys.modules if 'heif' in name])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['ntt_jax.images.heif']"


def test_without_the_library(tmp_path: Path, plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(plain)
    monkeypatch.setattr(heif.importlib.util, "find_spec", lambda name: None)
    for read in (read_image, open_image_size, read_header):
        with pytest.raises(InputError, match=r"HEIC photo.*ntt-jax\[heif\]"):
            read(path)
