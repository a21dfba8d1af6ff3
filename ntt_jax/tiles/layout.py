"""Which parts of a large image are looked at: overlapping tiles, all of one size. Host only, without JAX."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ntt_jax.config import Checked, DetectConfig, Limits, constant
from ntt_jax.errors import InputError
from ntt_jax.files import describe

MAX_TILES = 10_000
"""Tiles of one image; more are refused, for they are a slip of the pen."""
AUTO_FROM = 1.5
"""Without a size, images are cut whose longer side is more than so many times SAM 2's."""


class Tile(NamedTuple):
    """A part of an image in pixels: first column and row, and those behind the last."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class TileConfig(Checked):
    """How images are cut into tiles, and what becomes of objects that several tiles see.

    size: side of a tile in pixels. count: in place of it, tiles along the longer side of every image. Neither: the side
    of SAM 2's own input, for images whose longer side is more than 1.5 times that.
    overlap: what two neighbours share at least, as a part of a tile's side.
    merge_threshold: two detections of a class are one object if they share this part of the smaller one.

    Raises `InputError` for a value that may not be, or for both size and count.
    """

    _WHAT = "tiles: "
    size: int = constant(0, Limits(int, 32, 2**15, also=(0,)))
    count: int = constant(0, Limits(int, 1, 100, also=(0,)))
    overlap: float = constant(0.25, Limits(float, 0, 0.9))
    merge_threshold: float = constant(0.5, Limits(float, 0, 1, open_low=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size and self.count:
            raise InputError("tiles: give a size in pixels or a count along the longer side, not both")


def as_tiles(value: Any) -> TileConfig | None:
    """What is said of tiles: None, how many along the longer side, "auto", or a `TileConfig`. Raises `InputError`."""
    if value is None or isinstance(value, TileConfig):
        return value
    if value == "auto" and isinstance(value, str):
        return TileConfig()
    if isinstance(value, int) and not isinstance(value, bool) and value:
        return TileConfig(count=value)
    raise InputError(f'tiles: expected a number of tiles, "auto", a TileConfig or None, found {describe(value)}')


def check_tiles(tiles: TileConfig | None, config: DetectConfig) -> None:
    """Raise `InputError` for tiles together with boxes from elsewhere, which are those of whole images."""
    if tiles is not None and config.proposals != "none":
        raise InputError("tiles and proposals from elsewhere do not go together; leave one of the two out")


def tiles_of(height: int, width: int, config: TileConfig, model_side: int) -> list[Tile]:
    """The tiles of an image, row by row; none where the image is not larger than a tile.

    All are of one size, a square of `config.size` or as much of it as fits into the image; they cover the image, the
    first and the last end at its border, the others lie evenly between, sharing at least `config.overlap` of a tile.

    model_side: of SAM 2's input, in pixels. Raises `InputError` for more than `MAX_TILES`.
    """
    longer = max(height, width)
    if config.count:
        size = math.ceil(longer / (config.count - (config.count - 1) * config.overlap))
    else:
        size = config.size or model_side
    if longer <= (size if config.size or config.count else AUTO_FROM * model_side):
        return []
    rows, columns = (_starts(side, min(size, side), config.overlap) for side in (height, width))
    if len(rows) * len(columns) > MAX_TILES:
        raise InputError(
            f"tiles: {width} x {height} pixels make {len(rows) * len(columns):,} tiles of {size} pixels, over the limit"
            f" of {MAX_TILES:,}; give larger tiles"
        )
    return [Tile(left, top, left + min(size, width), top + min(size, height)) for top in rows for left in columns]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    """Where tiles of `size` begin along a side of `length`: from 0 to length - size, evenly."""
    step = max(1.0, size * (1 - overlap))
    # A hair less: a division that should come out even must not make one tile more.
    count = 1 + math.ceil((length - size) / step - 1e-9)
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]
