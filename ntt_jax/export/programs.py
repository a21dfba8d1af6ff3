"""The target pass and parts of it as serialized JAX programs (`jax.export`).

Arguments and results are plain arrays and dicts of them. Weights are arguments, so a program is small and serves any
checkpoint of its architecture. The number of classes K, the number of negatives N and the size of the canvas are
symbols: one program serves all of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax import export as jax_export

from ntt_jax.compiled.devices import published_numbers
from ntt_jax.config import DetectConfig
from ntt_jax.detection.merge import Candidates, Merged, describe_candidates
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.platform import tracing_for
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.pipeline import detect_images, draw_masks, encode_images, merge_proposals

BACKENDS = {"cpu": "cpu", "cuda": "gpu"}
"""Platforms that programs are made for, and JAX's name of the backend that each is."""
CANVAS_STEP = 512
"""The sides of the canvas that masks are drawn on are multiples of this, in pixels."""


class Program(NamedTuple):
    """A pure function and the shapes of its arguments, by name."""

    function: Callable[..., Any]
    arguments: dict[str, Any]


def weights_of(sam2: Sam2, dinov2: Encoder) -> dict[str, Array]:
    """Every parameter of both models by its path: "sam2.image_encoder.trunk...", "dinov2.blocks...."."""
    flat = nnx.to_flat_state(nnx.state((sam2, dinov2)))
    return {_name(path): variable[...] for path, variable in flat}


def programs(
    sam2: Sam2, dinov2: Encoder, config: DetectConfig, *, negatives: bool, class_count: int | None = None
) -> dict[str, Program]:
    """What is exported, by name.

    Shapes: S = SAM 2's image size, m = S / 4, D = `config.max_detections`, P = `config.points_per_side` squared, h and
    w the grid of patches, C the size of DINOv2's features. negatives: whether "classes" holds them. class_count: K, a
    symbol if None; needed where a mask may have several classes, which are as many rows then.

    detect: weights, classes, image `[S, S, 3]` uint8, size `[2]` int32 (height and width of the photo) ->
      boxes `[D, 4]` int32 x1, y1, x2, y2 inclusive, scores `[D]`, labels `[D]`, valid `[D]`, logits `[D, m, m]`.
    encode: weights, image -> "patches" `[h, w, C]`, "embedding", "high_res0", "high_res1" (`Sam2.encode_image`).
    match: classes, patches, mask_logits `[P, m, m]`, predicted_ious `[P]`, valid `[P]` bool, size -> as "detect".
    draw: logits `[D, m, m]`, count int32, size, canvas `[Y, X]` uint8 of which the shape alone counts, Y and X
      multiples of 512 -> masks `[D, Y, X]` bool of the first `count`.
    """
    definitions, state = nnx.split((sam2, dinov2))
    flat = nnx.to_flat_state(state)
    side, mask = sam2.config.image_size, sam2.config.mask_size
    grid, dim = dinov2.config.grid, dinov2.config.embed_dim
    points, rows = config.points_per_side**2, config.max_detections

    def models(weights: Mapping[str, Array]) -> tuple[Any, Any]:
        filled = nnx.from_flat_state([(path, variable.replace(weights[_name(path)])) for path, variable in flat])
        return nnx.merge(definitions, filled)

    def detect(weights: dict[str, Array], classes: dict[str, Array], image: Array, size: Array) -> dict[str, Array]:
        segmenting, encoding = models(weights)
        prototypes, others = classes["prototypes"], classes.get("negatives")
        found = detect_images(segmenting, encoding, prototypes, image[None], size[None], config, others)
        return _plain(*jax.tree.map(lambda x: x[0], found))

    def encode(weights: dict[str, Array], image: Array) -> dict[str, Array]:
        segmenting, encoding = models(weights)
        features, patches = encode_images(segmenting, encoding, image[None])
        high_res0, high_res1 = features.high_res
        found = {"patches": patches, "embedding": features.embedding, "high_res0": high_res0, "high_res1": high_res1}
        return {name: x[0] for name, x in found.items()}

    def match(
        classes: dict[str, Array], patches: Array, mask_logits: Array, predicted_ious: Array, valid: Array, size: Array
    ) -> dict[str, Array]:
        found = describe_candidates(mask_logits, (grid, grid))
        proposals = Candidates(found.weights, found.boxes, found.valid & valid), mask_logits, predicted_ious
        prototypes, others = classes["prototypes"], classes.get("negatives")
        merged = merge_proposals(patches, proposals, prototypes, size[0], size[1], config, others)
        return _plain(merged, mask_logits[merged.source])

    def draw(logits: Array, count: Array, size: Array, canvas: Array) -> Array:
        return draw_masks(logits, count, size, (canvas.shape[0], canvas.shape[1]), packed=False)

    scope = jax_export.SymbolicScope()

    def shape(text: str, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jax_export.symbolic_shape(text, scope=scope), dtype)

    weights = {_name(path): jax.ShapeDtypeStruct(variable.shape, variable.dtype) for path, variable in flat}
    count = "K" if class_count is None else class_count
    classes = {"prototypes": shape(f"{count}, {dim}")}
    classes |= {"negatives": shape(f"{count}, N, {dim}")} if negatives else {}
    image, size = shape(f"{side}, {side}, 3", jnp.uint8), shape("2", jnp.int32)
    return {
        "detect": Program(detect, {"weights": weights, "classes": classes, "image": image, "size": size}),
        "encode": Program(encode, {"weights": weights, "image": image}),
        "match": Program(
            match,
            {
                "classes": classes,
                "patches": shape(f"{grid}, {grid}, {dim}"),
                "mask_logits": shape(f"{points}, {mask}, {mask}"),
                "predicted_ious": shape(f"{points}"),
                "valid": shape(f"{points}", jnp.bool_),
                "size": size,
            },
        ),
        "draw": Program(
            draw,
            {
                "logits": shape(f"{rows}, {mask}, {mask}"),
                "count": shape("", jnp.int32),
                "size": size,
                "canvas": shape(f"{CANVAS_STEP}*y, {CANVAS_STEP}*x", jnp.uint8),
            },
        ),
    }


def serialize(program: Program, platform: str, matmul_precision: str) -> bytes:
    """A program for one platform of `BACKENDS`, traced as it is quickest there. This machine need not have it."""

    # A function of its own, so that nothing that was traced for another platform is taken from a cache.
    def run(*arguments: Any) -> Any:
        return program.function(*arguments)

    with published_numbers(matmul_precision), tracing_for(BACKENDS[platform]):
        made = jax_export.export(jax.jit(run), platforms=[platform])(*program.arguments.values())
    return bytes(made.serialize())


def _plain(merged: Merged, logits: Array) -> dict[str, Array]:
    return {
        "boxes": merged.boxes,
        "scores": merged.scores,
        "labels": merged.labels,
        "valid": merged.valid,
        "logits": logits,
    }


def _name(path: tuple[Any, ...]) -> str:
    return ".".join([("sam2", "dinov2")[path[0]], *map(str, path[1:])])
