"""What several commands do with models and files before they call the package: read, load, and tell a person."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ntt_jax.cli import options
from ntt_jax.cli.progress import Progress
from ntt_jax.config import arithmetic
from ntt_jax.errors import InputError
from ntt_jax.text import show

if TYPE_CHECKING:
    from collections.abc import Collection

    from ntt_jax.datasets.dataset import CocoDataset
    from ntt_jax.memory.bank import MemoryBank
    from ntt_jax.report.page import ReferenceSource


def read_dataset(path: Path) -> "CocoDataset":
    """`load_dataset`; what was read in another way than it is written is said."""
    from ntt_jax.runs import inputs

    return inputs.read_dataset(path, Progress())


def look_at_images(
    args: argparse.Namespace, dataset: "CocoDataset", folder: Path, image_ids: "Collection[int] | None" = None
) -> "CocoDataset":
    """`image_files.survey` with `--exif`, which may change names, sizes and orientation; what it notes is said."""
    from ntt_jax.runs import inputs

    return inputs.look_at_images(dataset, folder, args.exif, Progress(), image_ids)


def show_patches(
    args: argparse.Namespace, bank: "MemoryBank | None", sources: "ReferenceSource | None"
) -> list[list[str]]:
    """`patch_pictures` of the references with `--dinov2`. Raises `InputError` if they, or their encoder, do not fit."""
    if bank is None or sources is None or sources.images is None:
        raise InputError(
            "--dinov2: the patches are those of the references, so memory, references and images are needed"
        )
    from ntt_jax.memory.bank import require_encoder
    from ntt_jax.runs.models import read_encoder
    from ntt_jax.runs.observer import work

    require_encoder(bank, *read_encoder(args.dinov2))
    options.start_jax(args)
    from ntt_jax.loading import load_dinov2
    from ntt_jax.report.patches import MAX_CLASSES, patch_pictures

    progress = Progress()
    with work(progress, "patches", min(MAX_CLASSES, len(bank.class_names)), unit="classes"):
        return patch_pictures(load_dinov2(args.dinov2, arithmetic(args.dtype)[0]), sources, step=progress.step)


def say(message: str) -> None:
    """Something to know, on stderr."""
    show(f"ntt-jax: {message}", to=sys.stderr)


def warn(message: str) -> None:
    """A warning on stderr; the exit status stays 0."""
    say(f"warning: {message}")
