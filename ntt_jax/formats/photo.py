"""What a format is given: photos, what was found in them, and the classes."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from ntt_jax.detection.on_host import HostDetections, OfImage
from ntt_jax.images.polygons import POLYGON_ERROR, Part, mask_parts
from ntt_jax.images.remote import Location
from ntt_jax.images.rle import decode_rle, rle_areas, rle_boxes

if TYPE_CHECKING:
    from ntt_jax.formats.output import Output


@dataclass(frozen=True)
class Classes:
    """The K classes by index: their names, as the memory has them, and their COCO category ids."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Photo(OfImage):
    """A photo and what was found in it, best first.

    name: its name in the output, a path with slashes below the folder it was found in; no two are alike without their
      suffixes. file: where the photo lies.
    polygon_error: how far, in pixels, polygons may be from the borders of masks (`mask_parts`).

    The sizes and coordinates are those of the image as it was read: upright, unless the stored pixels were asked for.
    """

    name: str
    file: Location
    detections: HostDetections
    polygon_error: float = POLYGON_ERROR

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return str(PurePosixPath(self.name).with_suffix(""))

    @functools.cached_property
    def areas(self) -> np.ndarray:
        """Pixels of each mask, int64 `[n]`."""
        return rle_areas(self.detections.rles)

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """The box of each mask, int64 `[n, 4]`: x, y of its first pixels, and its width and height in pixels.

        The boxes of detections, with which average precision is computed, are one smaller in width and height.
        """
        return rle_boxes(self.detections.rles).astype(np.int64)

    def mask(self, index: int) -> np.ndarray:
        """One object's mask, bool `[H, W]`."""
        return decode_rle(self.detections.rles[index])

    @functools.cached_property
    def parts(self) -> list[list[Part]]:
        """Of each object the connected parts as polygons, the largest first."""
        found = [mask_parts(self.mask(index), self.polygon_error) for index in range(len(self))]
        return [sorted(parts, key=lambda part: -part.area) for parts in found]


@dataclass(frozen=True)
class Format:
    """A way to write photos: its name on the command line, what it is in one line, and the function."""

    name: str
    help: str
    write: "Callable[[Output, Iterable[Photo], Classes], None]"
