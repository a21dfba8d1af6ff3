"""Measure how the cost of each step grows with the work, with the package's small models; draws and prints the curves.

    python scripts/growth.py --out out/growth            # growth.json, growth.png and a table

Points (of the prompt grid), classes, shots and image sides grow one at a time. Every row holds the seconds of one call
after compilation (the smallest of a few), the bytes XLA sets aside for it or, where the host works too, the process's
peak resident memory during the call, and the exponent of growth since the row before: log(cost ratio) / log(work
ratio). 1 is linear; for images the work is the number of pixels. Needs the `torch` and `bench` extras.
"""

import argparse
import functools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from measured import circumstances
from PIL import Image

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DetectConfig
from ntt_jax.demo.demo import convert_checkpoints
from ntt_jax.demo.scenes import base_classes, make_scene
from ntt_jax.detection.merge import merge_candidates
from ntt_jax.images.preprocess import encoder_input, resize_for_sam, sam_input
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.pipeline import propose_masks

POINTS_PER_SIDE = (8, 16, 32, 64)
CLASSES = (1, 10, 80, 400, 1203)
SHOTS = (1, 3, 10, 30, 100)
SIDES = (240, 480, 640, 1000, 2000, 4000)
REFERENCE_CLASSES = 4

Row = dict[str, Any]


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """The shortest of `repeats` calls, after one that does not count."""
    call()
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def compiled_row(work: int, repeats: int, function: Callable[..., Any], *inputs: Any) -> Row:
    """Time and memory of a compiled function."""
    compiled = jax.jit(function).lower(*inputs).compile()
    memory = compiled.memory_analysis()
    seconds = seconds_of(lambda: jax.block_until_ready(compiled(*inputs)), repeats)
    size = memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else 0
    return {"work": work, "seconds": seconds, "mebibytes": size / 2**20}


def peak_resident() -> float:
    """Peak resident memory in MiB since `reset_peak` (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**10


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def random_prototypes(count: int, patches: jax.Array) -> jax.Array:
    """Unit vectors `[count, C]` around the mean of patches `[h, w, C]`, so that a single one finds something, too."""
    mean = np.asarray(jnp.mean(patches, axis=(0, 1)))
    vectors = np.random.default_rng(0).standard_normal((count, len(mean))).astype(np.float32)
    vectors = mean / np.linalg.norm(mean) + vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return jnp.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def encode_patches(dinov2: Encoder, images: jax.Array) -> jax.Array:
    """The first of images `[B, S, S, 3]` -> `[h, w, C]` float32."""
    return jax.jit(lambda m, x: m(encoder_input(x, m.config.input_size)))(dinov2, images)[0].astype(jnp.float32)


def grow_points_and_classes(sam2: Sam2, dinov2: Encoder, image: np.ndarray, repeats: int):
    """Decoding by points per side, and labels, NMS and merging by points and by classes."""
    images = jnp.asarray(resize_for_sam(image, sam2.config.image_size))[None]
    features = jax.jit(lambda m, x: m.encode_image(sam_input(x)))(sam2, images)[0]
    patches = encode_patches(dinov2, images)
    height, width = image.shape[:2]
    decode, merge, classes = [], [], []
    for side in POINTS_PER_SIDE:
        config = DetectConfig(points_per_side=side, pred_iou_threshold=0.0)
        propose = functools.partial(propose_masks, grid=(patches.shape[0], patches.shape[1]), config=config)
        decode.append(compiled_row(side**2, repeats, propose, sam2, features))
        proposed = jax.jit(propose)(sam2, features)
        after = functools.partial(merge_candidates, height=height, width=width, config=config)
        merge.append(compiled_row(side**2, repeats, after, patches, *proposed, random_prototypes(20, patches)))
        if side == 32:
            for count in CLASSES:
                prototypes = random_prototypes(count, patches)
                classes.append(compiled_row(count, repeats, after, patches, *proposed, prototypes))
    return {
        "decoder, by points": decode,
        "after the decoder, by points": merge,
        "after the decoder, by classes": classes,
    }


def grow_shots(dinov2: Encoder, repeats: int) -> list[Row]:
    """A memory of a few classes by references per class: encoding and averaging; reading images is not in it."""
    encoder = ReferenceEncoder(dinov2, batch_size=4)
    config, rng, rows = dinov2.config, np.random.default_rng(0), []
    side, grid = config.input_size, config.grid
    crops = [rng.standard_normal((side, side, 3)).astype(np.float32) for _ in range(encoder.batch_size)]
    masks = [np.ones((grid, grid), np.float32)] * encoder.batch_size

    def build(shots: int) -> None:
        means: list[np.ndarray] = []
        while len(means) < shots * REFERENCE_CLASSES:
            means.extend(encoder(crops, masks))
        split = [means[k * shots : (k + 1) * shots] for k in range(REFERENCE_CLASSES)]
        jax.block_until_ready(memory_from_instance_means(split, [str(k) for k in range(REFERENCE_CLASSES)]).prototypes)

    for shots in SHOTS:
        reset_peak()
        rows.append(
            {"work": shots, "seconds": seconds_of(lambda s=shots: build(s), repeats), "mebibytes": peak_resident()}
        )
    return rows


def grow_images(sam2: Sam2, dinov2: Encoder, image: np.ndarray, repeats: int) -> list[Row]:
    """The whole pass over one image on the host and back: resize, segment, masks at full size, run lengths."""
    config = DetectConfig(points_per_side=16)
    patches = encode_patches(dinov2, jnp.asarray(resize_for_sam(image, sam2.config.image_size))[None])
    predictor = Predictor(sam2, dinov2, random_prototypes(20, patches), config)
    rows = []
    for side in SIDES:
        grown = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        list(predictor([grown]))  # compiled before memory counts
        reset_peak()
        seconds = seconds_of(lambda g=grown: list(predictor([g])), repeats)
        rows.append({"work": side**2, "side": side, "seconds": seconds, "mebibytes": peak_resident()})
    return rows


def with_exponents(rows: list[Row]) -> Iterator[Row]:
    before = None
    for row in rows:
        grown = {}
        if before is not None:
            step = math.log(row["work"] / before["work"])
            grown = {f"{key}_exponent": math.log(row[key] / before[key]) / step for key in ("seconds", "mebibytes")}
        yield {**row, **grown}
        before = row


def draw(curves: dict[str, list[Row]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(curves), figsize=(3.2 * len(curves), 6), layout="constrained")
    for column, (name, rows) in enumerate(curves.items()):
        for axis, key, unit in zip(axes[:, column], ("seconds", "mebibytes"), ("seconds", "MiB"), strict=True):
            work, cost = [row["work"] for row in rows], [row[key] for row in rows]
            axis.loglog(work, cost, "o-")
            axis.loglog(work, [cost[-1] * w / work[-1] for w in work], ":", color="grey", label="linear")
            axis.set_ylabel(unit)
            axis.grid(True, which="major", alpha=0.3)
        axes[0, column].set_title(name, fontsize=9)
        axes[1, column].set_xlabel("pixels" if "image" in name else name.rsplit(" ", 1)[-1])
    axes[0, 0].legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for growth.json and growth.png")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision("highest"):
        sam2_path, dinov2_path = convert_checkpoints(Path(folder))
        sam2, dinov2 = load_sam2(sam2_path), load_dinov2(dinov2_path)
        classes = base_classes()
        image = make_scene([7, 0], classes[:6], classes[6:]).image
        curves = grow_points_and_classes(sam2, dinov2, image, args.repeats)
        curves[f"memory of {REFERENCE_CLASSES} classes, by shots"] = grow_shots(dinov2, args.repeats)
        curves["whole image, by pixels"] = grow_images(sam2, dinov2, image, args.repeats)
    curves = {name: list(with_exponents(rows)) for name, rows in curves.items()}
    report = {
        **circumstances(),
        "curves": curves,
    }
    (args.out / "growth.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    draw(curves, args.out / "growth.png")
    for name, rows in curves.items():
        print(f"\n{name}\n{'work':>12} {'seconds':>9} {'exponent':>9} {'MiB':>9} {'exponent':>9}")
        for row in rows:
            exponents = (row.get(f"{key}_exponent", math.nan) for key in ("seconds", "mebibytes"))
            seconds, memory = (f"{value:9.2f}" if value == value else " " * 9 for value in exponents)
            print(f"{row['work']:12d} {row['seconds']:9.4f} {seconds} {row['mebibytes']:9.1f} {memory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
