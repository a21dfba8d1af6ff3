"""Pictures of numbers, 16 bits, of each photo: `png/objects/NAME.png` and `png/classes/NAME.png`.

In the first a pixel holds the number of its object in the photo, from 1, best first (the `object` of `objects.csv`); in
the second the number of its class, from 1, a line of `png/classes.txt`. 0 is background. Where objects overlap, the
best is in front. (`--pictures masks` writes each mask alone.)
"""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from ntt_jax.formats.output import Output
from ntt_jax.formats.photo import Classes, Format, Photo
from ntt_jax.text import one_line


def write(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write two pictures for each photo, and the list of classes."""
    for photo in photos:
        numbers = object_numbers(photo)
        labels = np.concatenate([[0], photo.detections.labels + 1]).astype(np.uint16)
        output.write(f"png/objects/{photo.stem}.png", _png(numbers))
        output.write(f"png/classes/{photo.stem}.png", _png(labels[numbers]))
        hidden = int(np.count_nonzero(photo.areas)) - int(np.count_nonzero(np.unique(numbers)))
        if hidden:
            output.notes.add("objects behind better ones, not to be seen in png/", photo.name, count=hidden)
    output.write("png/classes.txt", "".join(f"{one_line(name)}\n" for name in classes.names))


def object_numbers(photo: Photo) -> np.ndarray:
    """Of each pixel the number of the best object there, from 1; 0 where there is none: uint16 `[H, W]`."""
    numbers = np.zeros((photo.height, photo.width), np.uint16)
    for index in reversed(range(len(photo))):
        numbers[photo.mask(index)] = index + 1
    return numbers


def _png(numbers: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbers).save(buffer, "PNG")
    return buffer.getvalue()


PNG = Format("png", "16-bit pictures of object and class numbers", write)
