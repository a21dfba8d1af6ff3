"""A table of the objects: `objects.csv`, one row each. The smallest of the formats."""

import csv
import io
from collections.abc import Iterable

from ntt_jax.detection.on_host import decimals
from ntt_jax.formats.output import Output
from ntt_jax.formats.photo import Classes, Format, Photo

COLUMNS = ("image", "object", "class", "score", "area", "x", "y", "width", "height")
"""object: its number in the image, from 1, best first. area in pixels; the box is the mask's, in pixels."""


def write(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write objects.csv: a header, then the objects of each photo in its turn."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for photo in photos:
        found = photo.detections
        rows = zip(found.labels, decimals(found.scores), photo.areas, photo.boxes, strict=True)
        for number, (label, score, area, box) in enumerate(rows, 1):
            table.writerow([photo.name, number, classes.names[label], score, area, *box])
    output.write("objects.csv", text.getvalue())


CSV = Format("csv", "a table: image, class, score, area and box of each object", write)
