"""What each format writes, down to the bytes where it is small, and what happens to files of earlier runs."""

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from defusedxml import ElementTree
from found_photos import CLASSES, HEIGHT, WIDTH, detections, disc, make_photos, objects
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.formats import FORMATS, Classes, Output, Photo, check_formats, write_formats
from ntt_jax.notes import Notes


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture
def out(tmp_path):
    (tmp_path / "found").mkdir()
    return tmp_path / "found"


def test_csv(out, photos):
    write_formats(out, ["csv"], photos, CLASSES)
    text = (out / "objects.csv").read_text()
    assert text.splitlines()[:3] == [
        "image,object,class,score,area,x,y,width,height",
        f"harbour.jpg,1,boat,0.95,{objects()[0][1].sum()},10,10,60,60",
        f"harbour.jpg,2,sea gull,0.86,{objects()[1][1].sum()},16,6,105,75",
    ]
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["image"] for row in rows] == ["harbour.jpg"] * 6 + ["more/a b.png"] * 2
    assert rows[4]["class"] == "rope, thin" and rows[3]["area"] == rows[3]["width"] == "1"


EACH = {  # of each photo, by its name without the suffix
    "labelme": ("labelme/{}.json",),
    "yolo": ("yolo/labels/{}.txt",),
    "yolo-boxes": ("yolo-boxes/labels/{}.txt",),
    "voc": ("voc/Annotations/{}.xml",),
    "png": ("png/objects/{}.png", "png/classes/{}.png"),
}
ONCE = {
    "csv": ("objects.csv",),
    "coco": ("coco/annotations/instances_default.json",),
    "yolo": ("yolo/train.txt", "yolo/data.yaml", "yolo/classes.txt"),
    "yolo-boxes": ("yolo-boxes/train.txt", "yolo-boxes/data.yaml", "yolo-boxes/classes.txt"),
    "voc": ("voc/ImageSets/Main/default.txt",),
    "png": ("png/classes.txt",),
}


@pytest.mark.parametrize("name", sorted(EACH | ONCE))
def test_a_file_of_each_photo(out, photos, name):
    write_formats(out, [name], photos, CLASSES)
    expected = {file.format(stem) for file in EACH.get(name, ()) for stem in ("harbour", "more/a b", "empty")}
    assert files_below(out) == {*expected, *ONCE.get(name, ()), "formats.list"}


def test_every_format_has_its_own_place(out, photos):
    taken: set[str] = set()
    for name in FORMATS:
        write_formats(out, [name], photos, CLASSES)
        now = {path.name for path in out.iterdir()} - {"formats.list"}
        assert len(now - taken) == 1
        taken = now


def test_png(out, photos):
    notes = Notes()
    write_formats(out, ["png"], photos, CLASSES, notes)
    numbers, classes = (np.asarray(Image.open(out / f"png/{kind}/harbour.png")) for kind in ("objects", "classes"))
    assert numbers.dtype == classes.dtype == np.uint16 and numbers.shape == (HEIGHT, WIDTH)
    masks = [mask for _, mask in objects()]
    np.testing.assert_array_equal(numbers == 1, masks[0])
    np.testing.assert_array_equal(numbers == 2, masks[1] & ~masks[0])
    assert set(np.unique(classes[numbers == 2])) == {1} and classes[0, 0] == 1 and numbers[0, 0] == 6
    assert not np.asarray(Image.open(out / "png/objects/empty.png")).any()
    assert (out / "png/classes.txt").read_text() == "sea gull\nboat\nrope, thin\n"
    assert notes.lines() == ()
    hidden = Photo("h.png", Path("h.png"), detections([(0, disc(20, 20, 9)), (1, disc(20, 20, 5))]))
    write_formats(out, ["png"], [hidden], CLASSES, notes)
    assert notes.lines() == ("objects behind better ones, not to be seen in png/: 1 (h.png)",)


def test_voc(out, photos):
    write_formats(out, ["voc"], photos, CLASSES)
    root = ElementTree.parse(out / "voc/Annotations/more/a b.xml").getroot()
    assert root.findtext("filename") == "a b.png" and root.findtext("folder") == "more"
    assert [root.findtext(f"size/{key}") for key in ("width", "height", "depth")] == [str(WIDTH), str(HEIGHT), "3"]
    boxes = [[int(v.text) for v in box] for box in root.findall("object/bndbox")]
    assert boxes == [[11, 11, 70, 70], [17, 7, 121, 81]]  # inclusive, from 1
    assert [entry.findtext("name") for entry in root.findall("object")] == ["boat", "sea gull"]
    assert (out / "voc/ImageSets/Main/default.txt").read_text() == "harbour\nmore/a b\nempty\n"


def test_yolo_boxes(out, photos):
    write_formats(out, ["yolo-boxes"], photos, CLASSES)
    first = [float(v) for v in (out / "yolo-boxes/labels/harbour.txt").read_text().splitlines()[0].split()]
    np.testing.assert_allclose(first, [1, 40 / WIDTH, 40 / HEIGHT, 60 / WIDTH, 60 / HEIGHT], atol=1e-6)
    assert (out / "yolo-boxes/labels/empty.txt").read_text() == ""


def test_names_of_formats():
    assert check_formats(["yolo", "csv", "yolo"]) == ("yolo", "csv")
    with pytest.raises(InputError, match=r"expected some of csv, coco.*found 'yolo8'"):
        check_formats(["yolo8"])


NASTY = (
    "../../up",
    "a\nb",
    'q"\\',
    "\ud800",
    "\x85\u2028",
    "é 鳥 😀",
    "",
    "- x: {y}",
    "/etc/passwd",
    "=1+1",
    "<&>\x00",
)


def test_class_names_are_data(out, photos):
    classes = Classes(NASTY, tuple(range(1, len(NASTY) + 1)))
    labels = [(k, disc(10 + 11 * k, 40, 5)) for k in range(len(NASTY))]
    photo = Photo("one.png", photos[0].file, detections(labels))
    write_formats(out, list(FORMATS), [photo], classes)
    assert all(
        path.startswith(("coco/", "labelme/", "yolo", "voc/", "png/", "parquet/")) or "/" not in path
        for path in files_below(out)
    )
    for folder in ("yolo", "yolo-boxes"):
        content = yaml.safe_load((out / folder / "data.yaml").read_text("utf-8"))
        assert content["names"] == dict(enumerate(NASTY))
        assert len((out / folder / "classes.txt").read_text("utf-8").split("\n")) == len(NASTY) + 1
    labelme = json.loads((out / "labelme/one.json").read_text())
    assert [shape["label"] for shape in labelme["shapes"]] == list(NASTY)
    coco = json.loads((out / "coco/annotations/instances_default.json").read_text())
    assert [category["name"] for category in coco["categories"]] == list(NASTY)
    assert len(list(csv.reader(io.StringIO((out / "objects.csv").read_text("utf-8"))))) == len(NASTY) + 1
    root = ElementTree.parse(out / "voc/Annotations/one.xml").getroot()
    assert [entry.findtext("name") for entry in root.findall("object")][5] == "é 鳥 😀"


@pytest.mark.parametrize("name", ["../a.png", "b/../../a.png", "a\0.png"])
@pytest.mark.parametrize("format_name", FORMATS)
def test_no_name_leads_out_of_the_folder(out, photos, format_name, name):
    before = files_below(out.parent)
    photo = Photo(name, photos[0].file, photos[0].detections)
    refused = pytest.raises(InputError, match="leads out") if format_name in EACH else contextlib.nullcontext()
    with refused:
        write_formats(out, [format_name], [photo], CLASSES)
    assert all(path.startswith("found/") for path in files_below(out.parent) - before)


def test_names_that_do_not_fit_on_a_line(out, photos):
    notes = Notes()
    photo = Photo("two\nlines.png", photos[0].file, photos[0].detections)
    write_formats(out, ["yolo", "voc"], [photo, photos[2]], CLASSES, notes)
    assert (out / "yolo/train.txt").read_text() == "./images/empty.png\n"
    assert (out / "voc/ImageSets/Main/default.txt").read_text() == "empty\n"
    assert len(notes.lines()) == 2 and (out / "yolo/labels/two\nlines.txt").exists()


def test_what_is_out_of_date_goes_and_nothing_else(out, photos):
    (out / "labelme").mkdir()
    (out / "labelme/mine.json").write_text("{}")
    write_formats(out, ["labelme", "voc", "csv"], photos, CLASSES)
    before = files_below(out)
    notes = Notes()
    write_formats(out, ["labelme"], photos[:1], CLASSES, notes)
    gone = {"labelme/more/a b.json", "labelme/empty.json"}
    assert files_below(out) == before - gone and not (out / "labelme/more").exists()
    assert notes.lines() == ()
    write_formats(out, ["voc"], [], CLASSES)
    assert not (out / "voc/Annotations").exists() and (out / "labelme/mine.json").read_text() == "{}"


def test_what_a_person_corrected_stays(out, photos):
    write_formats(out, ["labelme"], photos, CLASSES)
    corrected = out / "labelme/harbour.json"
    corrected.write_text("corrected")
    (out / "labelme/more/a b.json").write_text("corrected, too")
    notes = Notes()
    fewer = [Photo(photos[0].name, photos[0].file, photos[0].detections.select([0])), photos[2]]
    write_formats(out, ["labelme"], fewer, CLASSES, notes)
    assert corrected.read_text() == "corrected" and (out / "labelme/more/a b.json").read_text() == "corrected, too"
    (line,) = notes.lines()
    assert line.startswith("files that were made or changed by others, left as they are: 2 (the first: ")
    corrected.unlink()
    write_formats(out, ["labelme"], fewer, CLASSES)
    assert len(json.loads(corrected.read_text())["shapes"]) == 1


def test_a_run_that_was_killed_between_list_and_file(out, photos):
    write_formats(out, ["csv"], photos, CLASSES)
    listed = (out / "formats.list").read_bytes()
    with Output(out) as output, output.of("csv"):
        output.write("objects.csv", "other")  # listed, then written
    (out / "formats.list").write_bytes((out / "formats.list").read_bytes() + listed + b'["torn')
    notes = Notes()
    write_formats(out, ["csv"], photos[:1], CLASSES, notes)
    assert notes.lines() == () and (out / "objects.csv").read_text().count("\n") == 7
    assert (out / "formats.list").read_bytes().count(b"\n") == 1


def test_nothing_is_written_anew_that_is_there(out, photos):
    def written() -> tuple[int, int]:
        found = (out / "coco/annotations/instances_default.json").stat()
        return found.st_ino, found.st_mtime_ns

    write_formats(out, ["coco"], photos, CLASSES)
    before = written()
    write_formats(out, ["coco"], photos, CLASSES)
    assert written() == before


def test_links_are_not_followed(out, photos, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "harbour.json").write_text("precious")
    (out / "labelme").symlink_to(theirs, target_is_directory=True)
    with pytest.raises(InputError, match="symbolic link"):
        write_formats(out, ["labelme"], photos, CLASSES)
    (out / "labelme").unlink()
    write_formats(out, ["labelme"], photos, CLASSES)
    content = (out / "labelme/harbour.json").read_bytes()
    (out / "labelme").rename(tmp_path / "moved")
    (out / "labelme").symlink_to(tmp_path / "moved", target_is_directory=True)
    write_formats(out, ["labelme"], [], CLASSES)
    assert (tmp_path / "moved/harbour.json").read_bytes() == content and (
        theirs / "harbour.json"
    ).read_text() == "precious"
    (out / "formats.list").unlink()
    (out / "formats.list").symlink_to(theirs / "harbour.json")
    with pytest.raises(InputError, match="symbolic link"):
        write_formats(out, ["csv"], photos, CLASSES)


def test_a_list_from_somebody_else_removes_nothing_outside(out, photos, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("x")
    checksum = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of "x"
    names = ("../precious", str(precious), "a/../../precious")
    (out / "formats.list").write_text(
        "".join(json.dumps([checksum, "csv", name]) + "\n" for name in names) + "[1]\n{}\n"
    )
    write_formats(out, ["csv"], photos, CLASSES)
    assert precious.read_text() == "x"


def test_a_poisoned_list_says_nothing(out, photos):
    names = ["\ud800/a", "a" * 300 + "/b", "a" * 70_000, "a\0b", ".", "x/" * 5000 + "y"]
    lines = [json.dumps(["0" * 64, "csv", name]) for name in names]
    lines += [
        "[" * 200_000,
        "[" + "[]," * 100_000 + "0]",
        "[NaN, 1e999, -Infinity]",
        "9" * 5000,
        '{"a": 1, "b": 2, "c": 3}',
    ]
    (out / "formats.list").write_text("\n".join(lines) + "\n")
    write_formats(out, ["csv"], photos, CLASSES)
    assert files_below(out) == {"formats.list", "objects.csv"}
    assert len((out / "formats.list").read_text().splitlines()) == 1
