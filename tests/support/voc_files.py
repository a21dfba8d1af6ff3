"""A small PASCAL VOC on the disk, exactly as it is distributed."""

import pathlib

import numpy as np
from PIL import Image

XML = """<annotation>
\t<folder>{year}</folder>
\t<filename>{name}.jpg</filename>
\t<source>
\t\t<database>The VOC2007 Database</database>
\t</source>
\t<size>
\t\t<width>{width}</width>
\t\t<height>{height}</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>{segmented}</segmented>
{objects}</annotation>
"""
OBJECT = """\t<object>
\t\t<name>{name}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>0</truncated>
\t\t<difficult>{difficult}</difficult>
\t\t<bndbox>
\t\t\t<xmin>{0}</xmin>
\t\t\t<ymin>{1}</ymin>
\t\t\t<xmax>{2}</xmax>
\t\t\t<ymax>{3}</ymax>
\t\t</bndbox>
{parts}\t</object>
"""
PART = """\t\t<part>
\t\t\t<name>head</name>
\t\t\t<bndbox>
\t\t\t\t<xmin>1</xmin>
\t\t\t\t<ymin>1</ymin>
\t\t\t\t<xmax>2</xmax>
\t\t\t\t<ymax>2</ymax>
\t\t\t</bndbox>
\t\t</part>
"""
Box = tuple[int, int, int, int]


def write_image(
    year: pathlib.Path,
    name: str,
    objects: list[tuple[str, Box, bool]],
    *,
    size: tuple[int, int] = (90, 120),
    segmented: bool = False,
) -> None:
    """One image of height, width `size`: class, box (corners inclusive, from 1) and difficulty of each object.

    The masks, where it is segmented, are the boxes without their outermost pixels, which are the border 255.
    """
    height, width = size
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationObject"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    text = "".join(
        OBJECT.format(*box, name=kind, difficult=int(difficult), parts=PART if kind == "person" else "")
        for kind, box, difficult in objects
    )
    (year / "Annotations" / f"{name}.xml").write_text(
        XML.format(year=year.name, name=name, width=width, height=height, segmented=int(segmented), objects=text)
    )
    generator = np.random.default_rng(sum(name.encode()))
    pixels = generator.integers(0, 120, (height, width, 3)).astype(np.uint8)
    numbers = np.zeros((height, width), np.uint8)
    for number, (_, (x1, y1, x2, y2), _) in enumerate(objects, 1):
        pixels[y1 - 1 : y2, x1 - 1 : x2] += np.uint8(40 + 10 * number)
        numbers[y1 - 1 : y2, x1 - 1 : x2] = 255
        numbers[y1 : y2 - 1, x1 : x2 - 1] = number
    Image.fromarray(pixels).save(year / "JPEGImages" / f"{name}.jpg")
    if segmented:
        image = Image.fromarray(numbers)
        image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
        image.save(year / "SegmentationObject" / f"{name}.png")


def write_list(year: pathlib.Path, name: str, images: list[str]) -> pathlib.Path:
    """An image list, `Main/test` or the like."""
    path = year / "ImageSets" / f"{name}.txt"
    path.write_text("".join(f"{image}\n" for image in images))
    return path


def write_voc(folder: pathlib.Path) -> pathlib.Path:
    """VOCdevkit with three images of 2007, two of 2012; every year has Main/trainval and Segmentation/trainval."""
    devkit = folder / "VOCdevkit"
    older, newer = devkit / "VOC2007", devkit / "VOC2012"
    write_image(
        older, "000007", [("bus", (12, 12, 60, 70), False), ("person", (80, 20, 100, 60), True)], segmented=True
    )
    write_image(older, "000012", [("cow", (20, 15, 80, 75), False)])
    write_image(older, "000033", [("bird", (11, 11, 60, 60), False), ("bird", (65, 20, 105, 70), False)])
    write_image(newer, "2007_000033", [("bus", (15, 15, 90, 70), False)], segmented=True)
    write_image(newer, "2008_000002", [("tvmonitor", (1, 1, 120, 90), False)])
    for year, names in ((older, ["000007", "000012", "000033"]), (newer, ["2007_000033", "2008_000002"])):
        write_list(year, "Main/trainval", names)
        write_list(year, "Segmentation/trainval", names[:1])
    return devkit
