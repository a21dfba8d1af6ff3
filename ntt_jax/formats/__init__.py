"""What was found in photos, written for other tools: one file per format, and `FORMATS`, which names them.

A format is a name, a line of help and a function that writes what an iterable of photos holds:

    write(output, photos, classes)

`Output` is the folder: it writes atomically, keeps inside, replaces its own files and nobody else's. A `Photo` has a
name, the file, its detections on the host and, when asked for, their masks as polygons.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from ntt_jax.errors import InputError
from ntt_jax.files import describe
from ntt_jax.formats import coco, csv, labelme, parquet, png, voc, yolo
from ntt_jax.formats.output import Output, files_of
from ntt_jax.formats.photo import Classes, Format, Photo
from ntt_jax.notes import Notes

__all__ = ["FORMATS", "Classes", "Format", "Output", "Photo", "check_formats", "files_of", "write_formats"]

FORMATS: dict[str, Format] = {
    one.name: one for one in (csv.CSV, coco.COCO, labelme.LABELME, yolo.YOLO, yolo.YOLO_BOXES, voc.VOC, png.PNG)
}
if parquet.AVAILABLE:
    FORMATS[parquet.PARQUET.name] = parquet.PARQUET
"""The formats by name."""


def check_formats(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once. Raises `InputError` for one that is not in `FORMATS`."""
    chosen = tuple(dict.fromkeys(names))
    if unknown := [name for name in chosen if name not in FORMATS]:
        advice = "" if parquet.AVAILABLE else f"; {parquet.ADVICE}"
        raise InputError(f"formats: expected some of {', '.join(FORMATS)}, found {describe(unknown[0])}{advice}")
    return chosen


def write_formats(
    out: Path, names: Collection[str], photos: Iterable[Photo], classes: Classes, notes: Notes | None = None
) -> None:
    """Write what was found in photos into the folder `out`, in each of the formats named.

    What an earlier call with the same format wrote there and this one does not is removed. Files that somebody made or
    changed meanwhile stay as they are, also where this call would have written; the notes count them.

    Args:
      out: an existing folder; each format has a folder or a file of its own in it.
      names: of `FORMATS`, as `check_formats` returns them.
      photos: gone through once per format, so a list or what can be iterated again.
      notes: hears of what a format cannot say, and of files that stayed.

    Raises:
      InputError: as `files.replacing` and `make_folder`, and for a photo's name that would lead out of the folder.
    """
    with Output(out, notes) as output:
        for name in names:
            with output.of(name):
                FORMATS[name].write(output, photos, classes)
