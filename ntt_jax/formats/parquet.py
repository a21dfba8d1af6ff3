"""A table of the objects in parts: `parquet/part-00000.parquet`, ..., for more photos than one file should hold.

One row for each object, its mask as COCO's compressed run lengths. A part ends with the photo that fills it, so its
content follows from the photos alone, and no more than one part is in memory.
"""

import importlib.util
from collections.abc import Iterable
from typing import Any

from ntt_jax.detection.on_host import decimals
from ntt_jax.formats.output import Output
from ntt_jax.formats.photo import Classes, Format, Photo

PART_ROWS = 100_000
"""Objects that fill a part: some 30 MB of run lengths."""

AVAILABLE = importlib.util.find_spec("pyarrow") is not None
ADVICE = "pip install 'ntt-jax[parquet]' (pyarrow) for parquet"


def write(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write the parts; an empty one where nothing was found, so that the columns are there."""
    rows: list[dict[str, Any]] = []
    number = 0
    for photo in photos:
        rows += _rows(photo, classes)
        if len(rows) >= PART_ROWS:
            _write_part(output, number, rows)
            number, rows = number + 1, []
    if rows or not number:
        _write_part(output, number, rows)


def _rows(photo: Photo, classes: Classes) -> Iterable[dict[str, Any]]:
    found = photo.detections
    columns = zip(found.labels, decimals(found.scores), photo.areas, photo.boxes, found.rles, strict=True)
    for number, (label, score, area, box, rle) in enumerate(columns, 1):
        x, y, width, height = (int(side) for side in box)
        yield {
            "image": _text(photo.name),
            "image_height": photo.height,
            "image_width": photo.width,
            "object": number,
            "class": _text(classes.names[label]),
            "category_id": classes.category_ids[label],
            "score": float(score),
            "area": int(area),
            "x": x,
            "y": y,
            "width": width,
            "height": height,
            "rle": rle["counts"],
        }


def _text(name: str) -> str:
    """The name as UTF-8 can hold it, in the way of the other formats."""
    return name.encode("utf-8", "backslashreplace").decode()


def _write_part(output: Output, number: int, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    whole = ("image_height", "image_width", "object", "x", "y", "width", "height")
    types = dict.fromkeys(whole, pyarrow.int32()) | {"category_id": pyarrow.int64(), "area": pyarrow.int64()}
    types |= {"image": pyarrow.string(), "class": pyarrow.string(), "rle": pyarrow.string(), "score": pyarrow.float64()}
    order = ("image", "image_height", "image_width", "object", "class", "category_id", "score", "area")
    schema = pyarrow.schema([(name, types[name]) for name in (*order, "x", "y", "width", "height", "rle")])
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), buffer, compression="zstd")
    output.write(f"parquet/part-{number:05}.parquet", buffer.getvalue().to_pybytes())


PARQUET = Format("parquet", "tables in parts: one row per object, masks as run lengths, for very many photos", write)
