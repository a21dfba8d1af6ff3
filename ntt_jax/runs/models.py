"""How the models of a job run, and what a process needs to know to load and run them."""

import functools
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DetectConfig, EncoderConfig, arithmetic
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.images.remote import Address, Location
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.tiles.layout import TileConfig
from ntt_jax.tiles.predictor import tiled
from weight_port.identity import fingerprint_of_file
from weight_port.port import read_converted


@dataclass(frozen=True)
class Compute:
    """How the models of a job run.

    dtype: "float32", "tensorfloat32" or "bfloat16" (`config.arithmetic`). batch_size: images that each device works on
    at once. devices: those to use, all of this process if None. divide: what they divide, "images" or the "points" of
    every image (`Predictor`). ray: address of a Ray cluster whose workers run the models in place of this process
    (docs/parallel.md), "auto" or "local"; `devices` then says on how many cores each divides the points.
    """

    dtype: str = "float32"
    batch_size: int = 1
    devices: Sequence[Any] | None = None
    divide: str = "images"
    ray: str | None = None

    def used(self) -> list[Any]:
        """The devices that images are divided among."""
        devices = list(jax.local_devices() if self.devices is None else self.devices)
        return devices[:1] if self.divide == "points" else devices


class EncoderFile(NamedTuple):
    """A converted file of an encoder: its configuration, and what says which encoder it is.

    source_sha256: of the checkpoint it was converted from; converting once more does not make it another encoder.
    weights: returns the fingerprint of its tensors (`weight_port.identity`), which are read for it: two checkpoints may
    hold the same.
    """

    config: EncoderConfig
    source_sha256: str
    weights: Callable[[], dict[str, Any]]


def read_encoder(path: Path) -> EncoderFile:
    """What a converted file of an encoder says of itself; its header is read. Raises `InputError` for other files."""
    weights = read_converted(path)
    if not isinstance(weights.config, EncoderConfig):
        raise InputError(f"{show_path(path)}: holds {weights.config.name}, not a DINOv2 or DINOv3")
    return EncoderFile(
        weights.config, weights.metadata.get("source_sha256", ""), functools.partial(fingerprint_of_file, weights)
    )


def load_encoder(dinov2: Path, compute: Compute) -> ReferenceEncoder:
    """The compiled encoder of references with the given checkpoint."""
    dtype, precision = arithmetic(compute.dtype)
    return ReferenceEncoder(
        load_dinov2(dinov2, dtype),
        batch_size=compute.batch_size,
        devices=compute.used(),
        matmul_precision=precision,
    )


@dataclass(frozen=True)
class TargetPass:
    """The target pass as a description that a process can be sent: `load` makes it.

    sam2, dinov2: converted checkpoints. prototypes `[K, C]` and negatives `[K, N, C]`: of the memory, as the `kind` of
    predictor takes them. largest_side: of the images, in pixels. tiles: how large images are cut, None: not at all.
    """

    sam2: Path
    dinov2: Path
    prototypes: Any
    negatives: Any
    config: DetectConfig
    largest_side: int
    kind: Callable[..., Any] = Predictor
    tiles: TileConfig | None = None

    def load(self, compute: Compute) -> Any:
        """The predictor: an iterable of images in, what is found in each out, in order."""
        dtype, precision = arithmetic(compute.dtype)
        predictor = self.kind(
            load_sam2(self.sam2, dtype),
            load_dinov2(self.dinov2, dtype),
            prototypes=self.prototypes,
            config=self.config,
            negatives=self.negatives,
            batch_size=compute.batch_size,
            devices=compute.devices or jax.local_devices(),
            divide=compute.divide,
            matmul_precision=precision,
            canvas=min(self.largest_side, 640),
        )
        return tiled(predictor, self.tiles)


def describe_start(
    compute: Compute, started: float, images: int, files: Mapping[str, Location | None]
) -> dict[str, Any]:
    """When, on what and with which files a job worked, for run.json. files: by the names of their options."""
    devices = compute.used()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "images": images,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "batch_size": compute.batch_size,
        **({} if compute.ray is None else {"ray": compute.ray}),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "system": platform.platform(),
        "files": {
            name: str(path) if isinstance(path, Address) else os.path.abspath(path)
            for name, path in files.items()
            if path is not None
        },
    }
