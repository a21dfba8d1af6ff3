"""The constants of the target pass as options: the published ones, a file of others, and single ones beside it."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError

# What can be given as an option. Constants of other rules come from a file.
_OPTIONS = {
    "points_per_side": ("N", "SAM 2 is asked at N x N points of each image"),
    "pred_iou_threshold": ("X", "masks whose IoU SAM 2 predicts as X or lower are dropped"),
    "nms_iou_threshold": (
        "X",
        "if two boxes of a class overlap by more than X, the lower rated one is dropped",
    ),
    "max_detections": ("N", "at most N detections per image"),
    "classes_per_mask": ("N", "a mask may belong to its N best classes; -1 for all"),
    "negative_sigma": ("X", "how gently the memory's negative references lower a score; smaller is harsher"),
}


def limited(limits: Any, other: str = "") -> Callable[[str], Any]:
    """An argparse type: a value within `Limits` or of `Choices`. other: what else the message says is expected."""

    def parse(text: str) -> Any:
        try:
            return limits.check("", limits.kind(text))
        except ValueError:  # an InputError too
            raise argparse.ArgumentTypeError(f"expected {other}{limits}, found {text!r}") from None

    return parse


def constant(name: str) -> Callable[[str], int | float]:
    """An argparse type: a value that the constant `name` of `DetectConfig` may have."""
    return limited(DetectConfig.limits(name))


def method_file(path: str) -> DetectConfig:
    """An argparse type: the configuration in a file."""
    try:
        return DetectConfig.from_file(path)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_detection(parser: Any) -> None:
    """The constants of the target pass; the defaults are the published ones."""
    default = DetectConfig()
    group = parser.add_argument_group("what counts as a detection (the defaults are the published ones)")
    group.add_argument(
        "--method",
        type=method_file,
        metavar="FILE",
        help="constants from a file, as method.json of `ntt-jax tune`; the options below take precedence",
    )
    for name, (metavar, text) in _OPTIONS.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=constant(name),
            metavar=metavar,
            help=f"{text} (default: {getattr(default, name)})",
        )


def add_proposals(parser: Any) -> None:
    """`--proposals` and `--proposals-mode`: boxes from elsewhere as prompts."""
    group = parser.add_argument_group(
        "boxes of a detector or a proposal network as SAM 2's prompts (docs/proposals.md)"
    )
    group.add_argument(
        "--proposals",
        type=Path,
        metavar="FILE",
        help="boxes in COCO's results format: image_id or file_name, bbox, score (objectness)",
    )
    group.add_argument(
        "--proposals-mode",
        choices=("replace", "join"),
        help="in place of the grid of points, or beside it (default: replace, or what --method says)",
    )


def detect_config(args: argparse.Namespace) -> DetectConfig:
    """The configuration that the options of `add_detection` and `add_proposals` describe.

    Raises `InputError` if a method takes boxes and there are none, or the command does not take any.
    """
    given = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    config = dataclasses.replace(args.method or DetectConfig(), **given)
    if not hasattr(args, "proposals"):
        if config.proposals != "none":
            raise InputError(f"--method: takes boxes as prompts (proposals={config.proposals}); this command has none")
        return config
    if args.proposals is None:
        if args.proposals_mode is not None or config.proposals != "none":
            why = "--proposals-mode" if args.proposals_mode else f"--method (proposals={config.proposals})"
            raise InputError(f"{why}: needs boxes; give --proposals FILE")
        return config
    mode = args.proposals_mode or config.taking_boxes().proposals
    return dataclasses.replace(config, proposals=mode)
