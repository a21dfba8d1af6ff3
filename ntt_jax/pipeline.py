"""Target images to detections (METHOD stage 3) as pure functions; `predictor` compiles them for long runs.

`segment` is the whole of stage 3 for one image. Its parts: `encode_images`, `propose_masks` (what depends on no
memory), `merge_proposals`, `draw_masks`. Boxes as prompts, more points and finer masks are in `finish_image` and
`all_points`; the published method has none of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int, Int32, Shaped, UInt8

from ntt_jax.config import DetectConfig
from ntt_jax.detection.boxes import propose_from_boxes, with_own_boxes
from ntt_jax.detection.extra_points import similar_points
from ntt_jax.detection.full_size import resize_masks
from ntt_jax.detection.merge import Candidates, Detections, Merged, describe_candidates, merge_candidates
from ntt_jax.detection.refine import refine_masks
from ntt_jax.errors import InputError
from ntt_jax.images.preprocess import encoder_input, sam_input
from ntt_jax.images.resize import pil_resize_bicubic
from ntt_jax.memory.aggregate import Memory
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.point_grid.decode_grid import decode_grid, grid_points
from ntt_jax.models.sam2.sam2_base import ImageFeatures, PromptDecoder, Sam2

Proposals = tuple[Candidates, Array, Array]
"""What an image's P prompts propose: candidates, their logits `[P, m, m]` and predicted IoUs `[P]`."""


def propose_masks(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    grid: tuple[int, int],
    config: DetectConfig,
    points: Array | None = None,
    **sizes: int,
) -> Proposals:
    """Steps 4 to 6 for one encoded image: what does not depend on any memory. Pure.

    grid: rows and columns of DINOv2's patches. points: `[P, 2]`, the image's whole grid of points if None.
    sizes: as for `decode_grid`. Returns the candidates (not `valid`: empty, or a predicted IoU that does
    not pass), their logits `[P, m, m]` and predicted IoUs `[P]`.
    """
    if points is None:
        points = jnp.asarray(grid_points(sam2.config.image_size, config.points_per_side))
    logits, ious, passing = decode_grid(sam2, features, points, pred_iou_threshold=config.pred_iou_threshold, **sizes)
    candidates = describe_candidates(logits, grid)
    return Candidates(candidates.weights, candidates.boxes, candidates.valid & passing), logits, ious


def _merge_image(
    sam2: Sam2,
    features: ImageFeatures,
    patches: Array,
    prototypes: Array,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
    negatives: Array | None,
    boxes: Array | None = None,
) -> tuple[Merged, Array]:
    """Steps 4 to 10 for one encoded image -> detections without masks, and their logits `[D, m, m]`."""
    proposals = None
    if config.proposals != "replace":
        points, there = None, None
        if config.extra_points:
            grid = jnp.asarray(grid_points(sam2.config.image_size, config.points_per_side))
            points, there = all_points(grid, patches, prototypes, config, sam2.config.image_size)
        proposals = propose_masks(sam2, features, (patches.shape[0], patches.shape[1]), config, points)
        proposals = proposals if there is None else only_there(proposals, there)
    return finish_image(sam2, features, patches, proposals, prototypes, height, width, config, negatives, boxes)


def all_points(
    grid: Array, patches: Array, prototypes: Array, config: DetectConfig, image_size: int
) -> tuple[Array, Array]:
    """The grid's points `[G, 2]` and `config.extra_points` more: `[P, 2]`, and which are there, `[P]` bool. Pure."""
    extra, there = similar_points(patches, prototypes, config.extra_points, image_size)
    return jnp.concatenate([grid, extra]), jnp.concatenate([jnp.ones(len(grid), bool), there])


def only_there(proposals: Proposals, there: Array) -> Proposals:
    """What `propose_masks` returned of points of which some, `there` `[P]` bool, are meant."""
    candidates, logits, ious = proposals
    return dataclasses.replace(candidates, valid=candidates.valid & there), logits, ious


def finish_image(
    sam2: Sam2 | PromptDecoder,
    features: ImageFeatures,
    patches: Array,
    proposals: Proposals | None,
    prototypes: Array,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
    negatives: Array | None,
    boxes: Array | None,
) -> tuple[Merged, Array]:
    """Steps 6 to 10 for what points have proposed (None: nothing), and what `config` adds to them. Pure.

    boxes: `[N, 5]` if the configuration takes `proposals` (`detection.boxes`).

    Returns:
      Detections without masks, and their logits `[D, m, m]`.
    """
    order_by, first, boxed = None, 0, None
    if config.proposals != "none":
        if boxes is None:
            raise InputError('proposals: the configuration takes boxes as prompts; give them, or set proposals="none"')
        grid = patches.shape[0], patches.shape[1]
        boxed = propose_from_boxes(sam2, features, grid, boxes, height, width, config)
        order_by, found = boxed.order, (boxed.candidates, boxed.logits, boxed.predicted_ious)
        if proposals is not None:
            first = proposals[2].shape[0]
            order_by = jnp.concatenate([proposals[2], order_by])
            found = jax.tree.map(lambda *both: jnp.concatenate(both), proposals, found)
        proposals = found
    if proposals is None:
        raise InputError("finish_image: expected proposals of points, or boxes")
    merged = merge_proposals(patches, proposals, prototypes, height, width, config, negatives, order_by)
    logits = proposals[1][merged.source]
    if config.refine != "none":
        ious = proposals[2][merged.source]
        merged, logits = refine_masks(sam2, features, merged, logits, ious, height, width, config)
    if boxed is not None and config.report_boxes == "proposal":
        merged = with_own_boxes(merged, boxed.boxes, first)
    return merged, logits


def merge_proposals(
    patches: Array,
    proposals: Proposals,
    prototypes: Array,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
    negatives: Array | None,
    order_by: Array | None = None,
) -> Merged:
    """Steps 6 to 10 for what `propose_masks` returned of an image with these patches `[h, w, C]`. Pure.

    order_by: as for `merge.label_rows`.
    """
    candidates, logits, ious = proposals
    return merge_candidates(
        patches.astype(jnp.float32),
        candidates,
        logits,
        ious,
        prototypes,
        height=height,
        width=width,
        config=config,
        negatives=negatives,
        order_by=order_by,
    )


def encode_images(
    sam2: Sam2, dinov2: Encoder, images: UInt8[Array, "B S S 3"]
) -> tuple[ImageFeatures, Float32[Array, "B h w C"]]:
    """Steps 2 and 3 for images `[B, S, S, 3]` uint8 -> SAM 2's features and patches `[B, h, w, C]`. Pure."""
    return sam2.encode_image(sam_input(images)), dinov2(encoder_input(images, dinov2.config.input_size))


def map_images(
    sam2: Sam2,
    dinov2: Encoder,
    images: Array,
    sizes: Array,
    one: Callable[..., Any],
    *more: Array,
) -> Any:
    """Encode images `[B, S, S, 3]` together, then `one(features, patches, size)` for each in turn, stacked. Pure.

    more: arrays `[B, ...]` of which `one` gets each image's part as well.
    """
    return jax.lax.map(lambda image: one(*image), (*encode_images(sam2, dinov2, images), sizes, *more))


def segment(
    sam2: Sam2,
    dinov2: Encoder,
    prototypes: Float[Array, "K C"],
    image: UInt8[Array, "H W 3"],
    config: DetectConfig | None = None,
    *,
    negatives: Float[Array, "K N C"] | None = None,
    boxes: Array | None = None,
    box_scores: Array | None = None,
) -> Detections:
    """Segment every instance of the prototypes' classes in one image: the whole of METHOD stage 3.

    Pure; jit it with `config` closed over or static. Every new image size compiles anew: for many images of many sizes
    use `Predictor`, which does not.

    Args:
      prototypes: `[K, C]`, one per class, L2-normalised (`aggregate_memory(...).prototypes`).
      image: `[H, W, 3]` uint8 RGB.
      config: constants; the default is the published ones.
      negatives: `[K, N, C]`, what looks like a class and is none (`match.similarities`).
      boxes: `[N, 4]` x1, y1, x2, y2 in pixels: prompts in place of the points, or beside them, as `config.proposals`
        says. Boxes without a size are passed over. box_scores: `[N]`, their objectness, 1 each if None.

    Returns:
      `Detections` with D = config.max_detections: masks `[D, H, W]`, boxes in pixels, best first.

    Raises:
      InputError: models in the wrong order, an image of another shape or type, prototypes or negatives of another
        encoder, a whole `Memory` in place of its prototypes.
    """
    config = DetectConfig() if config is None else config
    check_models(sam2, dinov2)
    if not hasattr(image, "ndim"):
        raise InputError(f"segment: expected an image as an array uint8 [H, W, 3], found {type(image).__name__}")
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != jnp.uint8:
        raise InputError(f"segment: expected an image uint8 [H, W, 3], found {image.dtype} {list(image.shape)}")
    prototypes, negatives = as_classes(prototypes, negatives, [dinov2.config.embed_dim])
    config, rows = _with_boxes(config, boxes, box_scores)
    height, width = image.shape[:2]
    size = sam2.config.image_size
    features, patches = encode_images(sam2, dinov2, pil_resize_bicubic(jnp.asarray(image), (size, size))[None])
    merged, logits = _merge_image(sam2, features[0], patches[0], prototypes, height, width, config, negatives, rows)
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)
    masks = resize_masks(logits, rows, jnp.sum(merged.valid), height, width, (height, width))
    return Detections(masks, merged.boxes, merged.scores, merged.labels, merged.valid)


def _with_boxes(config: DetectConfig, boxes: Any, scores: Any) -> tuple[DetectConfig, Array | None]:
    """The configuration and rows `[N, 5]` of boxes `[N, 4]` and scores `[N]`, which may be traced."""
    if boxes is None:
        if scores is not None:
            raise InputError("box_scores: given without boxes")
        return config, None
    if np.ndim(boxes) != 2 or np.shape(boxes)[1] != 4 or not np.shape(boxes)[0]:
        raise InputError(f"boxes: expected [N, 4] of x1, y1, x2, y2 in pixels, found {list(np.shape(boxes))}")
    rows = jnp.asarray(boxes, jnp.float32)
    scores = jnp.ones(len(rows), jnp.float32) if scores is None else jnp.asarray(scores, jnp.float32)
    if scores.shape != rows.shape[:1]:
        raise InputError(f"box_scores: expected [{len(rows)}], one for each box, found {list(scores.shape)}")
    return config.taking_boxes(), jnp.concatenate([rows, scores[:, None]], axis=1)


def detect_images(
    sam2: Sam2,
    dinov2: Encoder,
    prototypes: Float[Array, "K C"],
    images: UInt8[Array, "B S S 3"],
    sizes: Int32[Array, "B 2"],
    config: DetectConfig,
    negatives: Float[Array, "K N C"] | None = None,
    boxes: Float32[Array, "B R 5"] | None = None,
) -> tuple[Merged, Float[Array, "B D m m"]]:
    """Stage 3 but for drawing the masks, for a batch of images of any sizes. Pure.

    Args:
      prototypes: `[K, C]`. images: `[B, S, S, 3]` uint8, resized by `resize_for_sam`.
      sizes: `[B, 2]` int32, height and width of the original images. negatives: `[K, N, C]`.
      boxes: `[B, N, 5]` float32, if the configuration takes `proposals`: corners in pixels of the original images and
        the objectness, 0 where there is none (`detection.boxes`).

    Returns:
      `Merged` with a leading batch axis, and the logits of its rows, `[B, D, m, m]`.
    """

    def one(features: ImageFeatures, patches: Array, size: Array, *boxes: Array) -> tuple[Merged, Array]:
        return _merge_image(sam2, features, patches, prototypes, size[0], size[1], config, negatives, *boxes)

    return map_images(sam2, dinov2, images, sizes, one, *(() if boxes is None else (boxes,)))


def detect_shard(
    shared: tuple[Any, ...], rows: tuple[Array, Array], there: Array, *, config: DetectConfig
) -> tuple[Merged, Array]:
    """`detect_images` as a per-shard function for `parallel.sharded` and `parallel.pmapped`.

    shared: both models, prototypes, and negatives if there are any; rows: images and sizes.
    """
    del there
    sam2, dinov2, prototypes, *negatives = shared
    return detect_images(sam2, dinov2, prototypes, *rows, config, *negatives)


def draw_masks(
    logits: Float[Array, "n m m"], count: Array, size: Int[Array, "2"], canvas: tuple[int, int], *, packed: bool
) -> Shaped[Array, "n H W"]:
    """Full-size masks of the first `count` rows of `[n, m, m]` logits, on a canvas of this height and width.

    `[n, *canvas]` bool, or, `packed`, the last axis an eighth as long, uint8 (eight columns to a byte, high bit first).
    """
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)
    masks = resize_masks(logits, rows, count, size[0], size[1], canvas)
    return jnp.packbits(masks, axis=-1) if packed else masks


def check_models(sam2: Any, dinov2: Any) -> None:
    """Raise `InputError` unless these are the two models, in this order."""
    for name, model, kind, words in (
        ("sam2", sam2, Sam2, "a Sam2"),
        ("dinov2", dinov2, Encoder, "a DinoVisionTransformer or DINOv3ViTModel"),
    ):
        if not isinstance(model, kind):
            raise InputError(f"{name}: expected {words}, found {type(model).__name__}")


def as_classes(prototypes: Any, negatives: Any, size: Sequence[int]) -> tuple[Array, Array | None]:
    """Prototypes `[n, *size]` as float32, and negatives, with one axis more before the last. Raises `InputError`."""
    if isinstance(prototypes, Memory):
        raise InputError("prototypes: expected an array [K, C], found a whole Memory; give its .prototypes")
    shape, advice = np.shape(prototypes), "was the memory made with another encoder?"
    if len(shape) != 1 + len(size) or shape[1:] != tuple(size) or not shape[0]:
        raise InputError(f"prototypes: expected [K, {str(list(size))[1:]}, found {list(shape)}; {advice}")
    if negatives is None:
        return jnp.asarray(prototypes, jnp.float32), None
    found = np.shape(negatives)
    if len(found) != len(shape) + 1 or found[:-2] + found[-1:] != shape:
        expected = ", ".join(map(str, [*shape[:-1], "N", shape[-1]]))
        raise InputError(f"negatives: expected [{expected}], found {list(found)}; {advice}")
    return jnp.asarray(prototypes, jnp.float32), jnp.asarray(negatives, jnp.float32)
