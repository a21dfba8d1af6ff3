"""Which files of a folder are photos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images.photos import find_photos, photos_of_folder, read_list
from ntt_jax.images.reading import can_read_heif, read_image


def save(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (9, 7)).save(path, format="JPEG" if path.suffix == ".jpg" else "PNG")
    return path


def test_photos_alone_are_taken_and_the_rest_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ntt_jax.images.photos.can_read_heif", lambda: False)
    photos = [
        save(tmp_path / name) for name in ("a2.jpg", "a10.JPG", "b.png", "sub/c.jpg", "my_masks.png", "label/d.png")
    ]
    (tmp_path / "._a2.jpg").write_bytes(b"\0\5\x16\7")
    save(tmp_path / "__MACOSX/sub/c.jpg")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "IMG.HEIC").write_bytes(b"x")
    (tmp_path / "raw.CR2").write_bytes(b"x")
    (tmp_path / "annotations.json").write_text("{}")
    for name in ("a2.png", "b_mask.png", "b.mask.1.png", "b-label.png", "masks/c.png", "masks/c_mask_2.png"):
        save(tmp_path / name, "L")
    save(tmp_path / "found/overlays/a2.png")
    save(tmp_path / "found/masks/a2/001_x.png", "L")
    save(tmp_path / "found/png/objects/a2.png", "L")
    save(tmp_path / "found/yolo/images/a2.jpg")
    (tmp_path / "found/detections.json").write_text("{}")
    save(tmp_path / "now/a2_old.png")
    found = photos_of_folder(tmp_path, output=tmp_path / "now")
    assert sorted(found.files) == sorted(photos)
    assert [p.name for p in found.files if p.suffix.lower() == ".jpg"] == ["a2.jpg", "a10.JPG", "c.jpg"]
    lines = "\n".join(found.notes.lines())
    assert "pictures that ntt-jax wrote, not taken for photos: 5" in lines
    assert "masks beside photos, not taken for photos: 6" in lines and "raw.CR2" in lines
    if not can_read_heif():
        assert "IMG.HEIC" in lines and "ntt-jax[heif]" in lines


def test_masks_that_name_a_class_are_no_photos(tmp_path: Path) -> None:
    photos = [save(tmp_path / name) for name in ("a.jpg", "a_2.jpg", "a_edited.png", "bird/b.jpg", "c.png")]
    mask = Image.fromarray(np.eye(7, 9, dtype=np.uint8) * 255)
    for name in ("a_bus.png", "a_2_bus_3.png", "bus/a.png", "masks/bus/c_2.png", "bird/b_bird.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        mask.save(tmp_path / name)
    mask.save(tmp_path / "page_1.png")
    mask.save(tmp_path / "page_1_2.png")  # drawings, not masks of one another
    found = photos_of_folder(tmp_path)
    assert sorted(found.files) == sorted([*photos, tmp_path / "page_1.png", tmp_path / "page_1_2.png"])
    assert "masks beside photos, not taken for photos: 5" in "".join(found.notes.lines())


def test_a_colour_png_beside_a_photo_is_a_photo(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.jpg"), save(tmp_path / "a.png")]
    assert sorted(photos_of_folder(tmp_path).files) == files


def test_masks_alone_are_images(tmp_path: Path) -> None:
    file = save(tmp_path / "masks/a.png", "L")
    assert photos_of_folder(tmp_path).files == (file,)


def test_a_folder_of_nothing_but_companions(tmp_path: Path) -> None:
    (tmp_path / "._a.jpg").write_bytes(b"x")
    (tmp_path / "raw.dng").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no image .*raw.dng"):
        photos_of_folder(tmp_path)


def test_avif_is_read_and_heic_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), (200, 10, 10)).save(tmp_path / "a.avif")
    image = read_image(tmp_path / "a.avif")
    assert image.shape == (8, 16, 3) and np.abs(image[4, 8].astype(int) - [200, 10, 10]).max() < 12
    (tmp_path / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    if not can_read_heif():
        with pytest.raises(InputError, match=r"HEIC photo.*pillow-heif"):
            read_image(tmp_path / "b.HEIC")


def test_frames_come_by_number_and_names_differ(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    for number in (10, 9, 100):
        save(frames / f"frame{number}.png")
    assert list(find_photos([frames])) == ["frame9.png", "frame10.png", "frame100.png"]
    other = save(tmp_path / "frame9.jpg")
    assert list(find_photos([frames, other]))[-1] == "frame9_2.jpg"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        find_photos([tmp_path / "empty"])


def test_pictures_of_an_output_in_the_folder_itself(tmp_path: Path) -> None:
    photo = save(tmp_path / "a.png")
    for name in ("masks/a/001_b.png", "overlays/a.png", "png/objects/a.png"):
        save(tmp_path / name)
    assert len(photos_of_folder(tmp_path).files) > 1  # nothing says yet that these are ours
    (tmp_path / "finished.records").touch()
    (tmp_path / "formats.list").touch()
    assert photos_of_folder(tmp_path, output=tmp_path).files == (photo,)


@pytest.mark.parametrize("line", ["s3://" + "a" * 9000, "https://a/\x1b[2J.jpg", "https://a/\u202egpj.a"])
def test_addresses_that_nobody_has_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"https://a/b.jpg\n{line}\n", "utf-8")
    with pytest.raises(InputError, match="line 2: expected an address"):
        read_list(tmp_path / "list.txt")
