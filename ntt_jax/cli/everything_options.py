"""`ntt-jax segment --everything` and what it keeps, as options."""

import argparse
import dataclasses
from typing import Any

from ntt_jax.cli.detection_options import limited
from ntt_jax.errors import InputError
from ntt_jax.everything.settings import MaskSettings

# Beside --points-per-side, which the target pass has too.
_OPTIONS = {
    "pred_iou_thresh": ("X", "masks that SAM 2 itself rates X or lower are dropped"),
    "stability_score_thresh": ("X", "so are masks that change by more when the cut through their logits is moved"),
    "stability_score_offset": ("X", "how far it is moved, up and down"),
    "box_nms_thresh": ("X", "of two masks whose boxes overlap by more than X the lower rated one is dropped"),
    "crop_n_layers": ("N", "look also at N layers of crops of the photo, 4 crops, then 16, ..."),
    "crop_overlap_ratio": ("X", "overlap of the first layer's crops, as a part of the short side"),
    "crop_n_points_downscale_factor": ("N", "points a side of each layer, N times fewer than of the one before"),
    "crop_nms_thresh": ("X", "as --box-nms-thresh, between crops"),
}
# What only says something of classes.
_NOT_WITH = (
    *("memory", "references", "classes", "thresholds", "method", "tiles", "tile_size", "tile_overlap"),
    *("pred_iou_threshold", "nms_iou_threshold", "max_detections", "classes_per_mask", "negative_sigma"),
    *("proposals", "proposals_mode"),
)


def add_everything(parser: Any) -> None:
    """The flag and the settings; the defaults are those of SAM 2's automatic generator."""
    default = MaskSettings()
    group = parser.add_argument_group("everything in a photo (docs/everything.md)")
    group.add_argument(
        "--everything",
        action="store_true",
        help="all masks, without classes: no --memory, no DINOv2; --points-per-side and the settings below say which",
    )
    for name, (metavar, text) in _OPTIONS.items():
        value = getattr(default, name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=limited(MaskSettings.limits(name)),
            metavar=metavar,
            help=f"{text} (default: {value:.3g})",
        )


def check_everything(args: argparse.Namespace) -> None:
    """Raise `InputError` for options that do not go together with `--everything`, or not without it."""
    for name in _NOT_WITH if args.everything else _OPTIONS:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {'does not go with' if args.everything else 'is for'} --everything")
    if args.everything:
        mask_settings(args)


def mask_settings(args: argparse.Namespace) -> MaskSettings:
    """What the options say. Raises `InputError` for settings that do not go together."""
    given = {name: getattr(args, name) for name in ("points_per_side", *_OPTIONS)}
    return dataclasses.replace(MaskSettings(), **{name: value for name, value in given.items() if value is not None})
