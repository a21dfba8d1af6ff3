"""YOLO as Ultralytics reads it: `yolo/labels/NAME.txt` for each photo, `yolo/data.yaml` and lists of names.

    yolo/data.yaml, classes.txt, train.txt     classes by index; the photos as yolo/images/NAME
    yolo/labels/NAME.txt                       of each object: class x1 y1 x2 y2 ..., as shares of width and height

`yolo-boxes` is the same with `class x y width height`, of the box's centre. The photos are not copied: they belong in
`images` beside `labels`. A line is one polygon, so holes and further parts are joined to it by lines without width.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ntt_jax.formats.output import Output
from ntt_jax.formats.photo import Classes, Format, Photo
from ntt_jax.images.polygons import join_parts
from ntt_jax.text import one_line

_DIGITS = 6  # of a share: less than 0.01 pixels up to 20,000 pixels


def write_polygons(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write `yolo/`, with polygons."""
    _write(output, photos, classes, "yolo", polygon_lines)


def write_boxes(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write `yolo-boxes/`, with boxes."""
    _write(output, photos, classes, "yolo-boxes", box_lines)


def polygon_lines(photo: Photo) -> list[str]:
    """A line for each object that has a pixel: its class, then x and y of the points of one polygon."""
    size = np.array([photo.width, photo.height])
    rings = [join_parts(parts) if parts else None for parts in photo.parts]
    found = zip(photo.detections.labels, rings, strict=True)
    return [_line(label, (ring / size).ravel()) for label, ring in found if ring is not None]


def box_lines(photo: Photo) -> list[str]:
    """A line for each object that has a pixel: its class, x and y of the box's centre, width, height."""
    size = np.array([photo.width, photo.height, photo.width, photo.height])
    corners, lengths = photo.boxes[:, :2], photo.boxes[:, 2:]
    boxes = np.concatenate([corners + lengths / 2, lengths], axis=1) / size
    found = zip(photo.detections.labels, boxes, photo.areas, strict=True)
    return [_line(label, box) for label, box, area in found if area]


def _write(
    output: Output, photos: Iterable[Photo], classes: Classes, folder: str, lines_of: Callable[[Photo], list[str]]
) -> None:
    listed: list[str] = []
    for photo in photos:
        output.write(f"{folder}/labels/{photo.stem}.txt", "".join(f"{line}\n" for line in lines_of(photo)))
        if photo.name.isprintable():
            listed.append(f"./images/{photo.name}\n")
        else:
            output.notes.add(f"photos whose names do not fit on a line, left out of {folder}/train.txt", photo.name)
    output.write(f"{folder}/train.txt", "".join(listed))
    output.write(f"{folder}/classes.txt", "".join(f"{one_line(name)}\n" for name in classes.names))
    output.write(f"{folder}/data.yaml", data_yaml(classes.names))


def data_yaml(names: Sequence[str]) -> str:
    """Ultralytics' description of the data. It wants both lists: who trains divides the photos."""
    listed = "".join(f"  {index}: {_quoted(name)}\n" for index, name in enumerate(names))
    return f"train: train.txt\nval: train.txt\nnames:\n{listed}"


def _line(label: int, shares: np.ndarray) -> str:
    numbers = (f"{share:.{_DIGITS}f}".rstrip("0").rstrip(".") for share in shares)
    return " ".join([str(int(label)), *numbers])


def _quoted(text: str) -> str:
    """A text in YAML's double quotes."""
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


YOLO = Format("yolo", "YOLO's label files with polygons (Ultralytics)", write_polygons)
YOLO_BOXES = Format("yolo-boxes", "YOLO's label files with boxes", write_boxes)
