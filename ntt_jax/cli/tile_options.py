"""Large images in tiles as options: `--tiles`, `--tile-size`, `--tile-overlap`."""

import argparse
import dataclasses
from typing import Any

from ntt_jax.cli.detection_options import limited
from ntt_jax.config import Limits
from ntt_jax.errors import InputError
from ntt_jax.tiles.layout import TileConfig


def add_tiles(parser: Any) -> None:
    """How large images are cut; without any of the options they are not."""
    group = parser.add_argument_group("large images (docs/tiles.md)")
    group.add_argument(
        "--tiles",
        type=_tiles,
        metavar="N",
        help="look at overlapping tiles too, N along the longer side of every image, or 'auto': tiles of the size that "
        "SAM 2 sees, for images more than 1.5 times larger (default: only at the whole image)",
    )
    group.add_argument(
        "--tile-size",
        type=limited(_given("size")),
        metavar="PIXELS",
        help="look at tiles of this side in place of a number",
    )
    group.add_argument(
        "--tile-overlap",
        type=limited(_given("overlap")),
        metavar="X",
        help="what neighbouring tiles share at least, as a part of a side; smaller objects are whole in some tile "
        f"(default: {TileConfig.overlap})",
    )


def tile_config(args: argparse.Namespace) -> TileConfig | None:
    """What the options of `add_tiles` say; None: no tiles. Raises `InputError` for those that do not go together."""
    if args.tiles is not None and args.tile_size is not None:
        raise InputError("give --tiles or --tile-size, not both")
    if args.tiles is None and args.tile_size is None:
        if args.tile_overlap is not None:
            raise InputError("--tile-overlap: there are no tiles; give --tiles or --tile-size as well")
        return None
    overlap = TileConfig.overlap if args.tile_overlap is None else args.tile_overlap
    return TileConfig(size=args.tile_size or 0, count=args.tiles or 0, overlap=overlap)


def _tiles(text: str) -> int:
    """How many tiles; 0 for "auto"."""
    return 0 if text == "auto" else limited(_given("count"), "'auto' or ")(text)


def _given(name: str) -> Limits:
    """The limits without the 0 that stands for "not given"."""
    return dataclasses.replace(TileConfig.limits(name), also=())
