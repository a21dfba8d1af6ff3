"""Models and memory behind `memory`, `evaluate` and `segment`: loading them, and whether they belong together."""

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import options
from ntt_jax.config import DetectConfig, DinoV2Config, arithmetic
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.text import show

if TYPE_CHECKING:
    from collections.abc import Collection

    from ntt_jax.compiled.predictor import Predictor
    from ntt_jax.compiled.reference_encoder import ReferenceEncoder
    from ntt_jax.datasets.dataset import CocoDataset
    from ntt_jax.memory.bank import MemoryBank
    from ntt_jax.report.page import ReferenceSource


FILES = ("sam2", "dinov2", "memory", "annotations", "images", "reference_annotations", "reference_images")
"""Options that name a file or folder: where a run noted them, `report` finds them again."""


def look_at_images(
    args: argparse.Namespace, dataset: "CocoDataset", folder: Path, image_ids: "Collection[int] | None" = None
) -> "CocoDataset":
    """`image_files.survey` with `--exif`, which may change names, sizes and orientation; what it notes is said."""
    from ntt_jax.datasets.image_files import survey

    found = survey(dataset, folder, exif=args.exif, image_ids=image_ids)
    for note in found.notes[len(dataset.notes) :]:
        warn(note)
    return found


def read_dataset(path: Path) -> "CocoDataset":
    """`load_dataset`; what was read in another way than it is written is said."""
    from ntt_jax.datasets import load_dataset

    dataset = load_dataset(path)
    for note in dataset.notes:
        warn(f"{show_path(path)}: {note}")
    return dataset


def exif_identity(args: argparse.Namespace) -> dict[str, str]:
    """What `--exif` adds to the description of a run: nothing by default."""
    return {} if args.exif == "upright" else {"exif": args.exif}


def read_encoder(path: Path) -> tuple[DinoV2Config, str]:
    """Configuration of a converted DINOv2 file, and the sha256 of the checkpoint it was converted from.

    That hash, not the file's own, says which encoder it is: converting once more does not make it another one.
    """
    from weight_port.port import read_converted

    weights = read_converted(path)
    if not isinstance(weights.config, DinoV2Config):
        raise InputError(f"--dinov2: {show_path(path)} holds {weights.config.name}, not a DINOv2")
    return weights.config, weights.metadata.get("source_sha256", "")


def load_predictor(
    args: argparse.Namespace, bank: "MemoryBank", config: DetectConfig, devices: list[Any], largest_side: int
) -> "Predictor":
    """The compiled target pass of the given checkpoints and memory, for images of up to about `largest_side`."""
    from ntt_jax.compiled.devices import core_devices
    from ntt_jax.compiled.predictor import Predictor

    cores = core_devices()
    return make_predictor(
        Predictor,
        args,
        config,
        devices if cores is None else cores,
        largest_side,
        prototypes=bank.memory.prototypes,
        negatives=bank.memory.negatives,
        divide="images" if cores is None else "points",
    )


def make_predictor(
    kind: "type[Predictor]",
    args: argparse.Namespace,
    config: DetectConfig,
    devices: list[Any] | None,
    largest_side: int,
    **more: Any,
) -> Any:
    """A `Predictor` or its like for the given checkpoints. more: its prototypes, negatives, what only it takes."""
    from ntt_jax.loading import load_dinov2, load_sam2

    dtype, precision = arithmetic(args.dtype)
    return kind(
        load_sam2(args.sam2, dtype),
        load_dinov2(args.dinov2, dtype),
        config=config,
        **more,
        batch_size=args.batch_size,
        devices=devices,
        matmul_precision=precision,
        canvas=min(largest_side, 640),
    )


def load_encoder(args: argparse.Namespace, devices: list[Any]) -> "ReferenceEncoder":
    """The compiled encoder of references with the given checkpoint."""
    from ntt_jax.compiled.reference_encoder import ReferenceEncoder
    from ntt_jax.loading import load_dinov2

    dtype, precision = arithmetic(args.dtype)
    dinov2 = load_dinov2(args.dinov2, dtype)
    return ReferenceEncoder(dinov2, batch_size=args.batch_size, devices=devices, matmul_precision=precision)


def show_patches(
    args: argparse.Namespace, bank: "MemoryBank | None", sources: "ReferenceSource | None"
) -> list[list[str]]:
    """`patch_pictures` of the references with `--dinov2`. Raises `InputError` if they, or their encoder, do not fit."""
    if bank is None or sources is None or sources.images is None:
        raise InputError(
            "--dinov2: the patches are those of the references, so memory, references and images are needed"
        )
    from ntt_jax.cli.progress import Progress
    from ntt_jax.memory.bank import require_encoder

    require_encoder(bank, *read_encoder(args.dinov2))
    options.start_jax(args)
    from ntt_jax.loading import load_dinov2
    from ntt_jax.report.patches import MAX_CLASSES, patch_pictures

    with Progress("patches", min(MAX_CLASSES, len(bank.class_names)), unit="classes") as progress:
        return patch_pictures(load_dinov2(args.dinov2, arithmetic(args.dtype)[0]), sources, step=progress.step)


def describe_start(args: argparse.Namespace, devices: list[Any], started: float, images: int) -> dict[str, Any]:
    """When, on what and with which files a run worked, for run.json."""
    import jax

    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "images": images,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "batch_size": args.batch_size,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "system": platform.platform(),
        "files": {name: os.path.abspath(path) for name in FILES if (path := getattr(args, name, None)) is not None},
    }


def say(message: str) -> None:
    """Something to know, on stderr."""
    show(f"ntt-jax: {message}", to=sys.stderr)


def warn(message: str) -> None:
    """A warning on stderr; the exit status stays 0."""
    say(f"warning: {message}")
