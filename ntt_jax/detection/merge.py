"""Candidates of one image to its detections (METHOD stage 3, steps 6 to 10)."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from ntt_jax.config import DetectConfig
from ntt_jax.detection import rules
from ntt_jax.detection.full_size import full_size_overlaps, resize_masks
from ntt_jax.detection.match import assign_labels, mask_weights, object_features
from ntt_jax.detection.nms import class_aware_nms, mask_boxes
from ntt_jax.errors import InputError
from ntt_jax.memory.aggregate import require_arrays
from ntt_jax.models.platform import ACCELERATOR_MASKS, CPU_MASKS


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first, padded to a fixed number D. Where `valid` is False all else is 0 or -1.

    masks: `[D, H, W]` bool. boxes: `[D, 4]` int32 x1, y1, x2, y2 in pixels, inclusive (COCO's box is x1, y1, x2 - x1,
    y2 - y1). scores: `[D]` float32. labels: `[D]` int32 class index, -1 where not valid. valid: `[D]` bool.
    """

    masks: Array
    boxes: Array
    scores: Array
    labels: Array
    valid: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """What matching and merging need to know of P candidate masks, beside their logits.

    weights: `[P, h, w]` float32 share of every patch. boxes: `[P, 4]` int32 on the mask grid. valid: `[P]` bool,
    whether the mask has a pixel. All can be computed chunk by chunk as masks are decoded.
    """

    weights: Array
    boxes: Array
    valid: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Merged:
    """Detections without their masks: `source` `[D]` int32 says which candidate's logits each one is made of."""

    source: Array
    boxes: Array
    scores: Array
    labels: Array
    valid: Array


def describe_candidates(mask_logits: Float[Array, "P m n"], grid: tuple[int, int]) -> Candidates:
    """Reduce mask logits `[P, m, n]` to `Candidates` for patch features of `grid` = (h, w)."""

    def some(logits: Array) -> tuple[Array, Array]:
        return mask_weights(logits > 0, grid), mask_boxes(logits)

    def describe(batch: int, logits: Array) -> tuple[Array, Array]:
        whole = logits.shape[0] // batch
        parts = lax.map(some, logits[: whole * batch].reshape(whole, batch, *logits.shape[1:]))
        parts = jax.tree.map(lambda part: part.reshape(whole * batch, *part.shape[2:]), parts)
        rest = some(logits[whole * batch :])
        return jax.tree.map(lambda *both: jnp.concatenate(both), parts, rest)

    weights, boxes = lax.platform_dependent(
        mask_logits,
        cpu=functools.partial(describe, CPU_MASKS),
        default=functools.partial(describe, ACCELERATOR_MASKS),
    )
    return Candidates(weights, boxes, boxes[:, 2] >= 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What is left of (candidate, class) pairs after NMS, in NMS order; where not `alive`, anything.

    candidate: `[M]` int32. label: `[M]` int32. score: `[M]` float32. alive: `[M]` bool.
    best_label: `[P]` int32, the best class of every candidate.
    """

    candidate: Array
    label: Array
    score: Array
    alive: Array
    best_label: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Overlaps:
    """Full-size pixel counts of the masks that are used, each in one slot of U.

    slot: `[P]` int32, the slot of every candidate. intersections: `[U, U]` int32, areas on the diagonal. boxes:
    `[U, 4]` int32 x1, y1, x2, y2 in pixels, inclusive.
    """

    slot: Array
    intersections: Array
    boxes: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extras:
    """What only rules beside the published ones ask of P candidates: areas in pixels of the mask grid, stability."""

    areas: Array
    stability: Array


def describe_extras(candidates: Candidates, mask_logits: Array, config: DetectConfig) -> Extras | None:
    """`Extras` of candidates with these logits `[P, m, n]`; None if no rule of `config` asks for them."""
    stable = bool(config.stability_threshold or config.stability_power)
    if not stable and not config.order_area_power:
        return None
    areas = jnp.sum(candidates.weights, axis=(1, 2))
    return Extras(areas, rules.stability(mask_logits, config.stability_offset) if stable else jnp.ones_like(areas))


def label_rows(
    objects: Array,
    boxes: Array,
    valid: Array,
    predicted_ious: Array,
    prototypes: Array,
    config: DetectConfig,
    negatives: Array | None = None,
    extras: Extras | None = None,
    order_by: Array | None = None,
) -> Rows:
    """Steps 6 and 7: classes of the candidates, then NMS.

    Args:
      objects `[P, C]`, boxes `[P, 4]`, valid `[P]`, predicted_ious `[P]`: of the candidates. prototypes `[K, C]`,
        negatives `[K, N, C]`: as `match.similarities`. extras: of `describe_extras`. order_by `[P]`: what NMS and merge
        go by in place of the predicted IoU.

    Returns:
      `Rows` with M = config.max_candidates, or all (candidate, class) pairs if there are fewer.
    """
    if extras is not None and config.stability_threshold:
        valid = valid & (extras.stability >= config.stability_threshold)
    similarity = rules.class_similarities(objects, valid, prototypes, negatives, config)  # [P, K]
    labels, scores = assign_labels(similarity, config.classes_per_mask)  # [P, n]
    valid = valid & jnp.all(jnp.isfinite(scores), axis=1)
    rank_by = predicted_ious if order_by is None else order_by
    if config.order_area_power or config.order_similarity_power:
        areas = rank_by if extras is None else extras.areas
        powers = config.order_area_power, config.order_similarity_power
        rank_by = rules.ranking(rank_by, areas, scores[:, 0], *powers)
    stability = None if extras is None else extras.stability
    scores = rules.weighted_scores(scores, labels, similarity, predicted_ious, prototypes, config, stability)

    # Best predicted IoU first; equal ones by index, as a stable sort leaves them. Rows of a candidate stay together.
    order = jnp.argsort(jnp.where(valid, -rank_by, jnp.inf), stable=True)
    there, threshold = valid[order], config.nms_iou_threshold
    if threshold == 1.0:  # No NMS. Rows without a score, which would suppress none, take no other's place.
        keep = there[:, None] & (scores[order] > 0)
    else:
        keep = class_aware_nms(boxes[order], labels[order], there, prototypes.shape[0], threshold)
    rows = keep.size
    row = jnp.nonzero(keep.reshape(-1), size=min(config.max_candidates, rows), fill_value=rows)[0]  # [M], in NMS order
    position = jnp.minimum(row, rows - 1)
    candidate = order[position // labels.shape[1]]
    rank = position % labels.shape[1]
    label, score = labels[candidate, rank], scores[candidate, rank]
    return Rows(candidate.astype(jnp.int32), label, score, (row < rows) & (score > 0), labels[:, 0])


def overlap_rows(
    rows: Rows, mask_logits: Array, num_classes: int, slots: int, *, height: int | Array, width: int | Array
) -> Overlaps:
    """Step 8: overlaps at full size of all masks that rows of one class share an image with.

    rows.candidate, label and alive may be of any length; labels lie below `num_classes`. slots: at least the number of
    candidates that occur in live rows.
    """
    count = mask_logits.shape[0]
    # Rows of one candidate share one mask: overlaps are counted between candidates, grouped by their best class.
    used = jnp.zeros(count, bool).at[jnp.where(rows.alive, rows.candidate, count)].set(True, mode="drop")
    by_label = jnp.argsort(jnp.where(used, rows.best_label, num_classes), stable=True)
    taken = by_label[:slots].astype(jnp.int32)
    slot = jnp.zeros(count, jnp.int32).at[taken].set(jnp.arange(slots, dtype=jnp.int32))
    has_class = jnp.zeros((slots, num_classes), jnp.float32)
    place = jnp.where(rows.alive, slot[rows.candidate], slots)
    has_class = has_class.at[place, rows.label].set(1.0, mode="drop")
    partners = jnp.dot(has_class, has_class.T) > 0
    intersections, boxes = full_size_overlaps(mask_logits, taken, jnp.sum(used), partners, height, width)
    return Overlaps(slot, intersections, boxes)


def best_rows(rows: Rows, objects: Array, overlaps: Overlaps, config: DetectConfig) -> Merged:
    """Steps 9 and 10: soft merge, then the best. objects `[P, C]`: features of the candidates."""
    slot = overlaps.slot[rows.candidate]
    areas = jnp.diagonal(overlaps.intersections)[slot]
    alive = rows.alive & (areas > 0)
    feature = objects[rows.candidate]
    cosines = jnp.einsum("ic,jc->ij", feature, feature, precision="highest")
    intersections = overlaps.intersections[slot[:, None], slot[None, :]]
    score = merged_scores(rows, cosines, intersections, areas, alive, config)
    if config.class_thresholds:
        alive = alive & rules.above_class_threshold(score, rows.label, config.class_thresholds)

    best = jnp.argsort(jnp.where(alive, -score, jnp.inf), stable=True)[: config.max_detections]
    best = jnp.pad(best, (0, config.max_detections - best.shape[0]))
    valid = alive[best] & (jnp.arange(best.shape[0]) < alive.shape[0])
    return Merged(
        source=jnp.where(valid, rows.candidate[best], 0).astype(jnp.int32),
        boxes=jnp.where(valid[:, None], overlaps.boxes[slot[best]], 0),
        scores=jnp.where(valid, score[best], 0.0),
        labels=jnp.where(valid, rows.label[best], -1),
        valid=valid,
    )


def merged_scores(
    rows: Rows, cosines: Array, intersections: Array, areas: Array, alive: Array, config: DetectConfig
) -> Array:
    """Step 9: the scores lowered where a mask lies in earlier ones of its class, in the way that `config` says."""
    if config.merge == "none":
        return rows.score
    if config.merge == "diffusion":
        contained = rules.containment(rows.label, intersections, areas, alive)
        normalised = config.diffusion_transition == "normalised"
        powers = config.diffusion_alpha, config.diffusion_power
        return rules.diffused_scores(rows.score, contained, *powers, normalised=normalised)
    if config.merge == "plain":
        cosines = jnp.ones_like(cosines)
    return soft_merge(rows.score, rows.label, cosines, intersections, areas, alive)


def merge_candidates(
    features: Float[Array, "h w C"],
    candidates: Candidates,
    mask_logits: Float[Array, "P m n"],
    predicted_ious: Float[Array, " P"],
    prototypes: Float[Array, "K C"],
    *,
    height: int | Array,
    width: int | Array,
    config: DetectConfig,
    negatives: Float[Array, "K N C"] | None = None,
    order_by: Array | None = None,
) -> Merged:
    """Steps 6 to 10 for described candidates; arguments and order as `detect`, but sizes may be traced int32 values.

    order_by: as for `label_rows`.
    """
    objects, has_direction = object_features(candidates.weights, features)
    valid = candidates.valid & has_direction
    extras = describe_extras(candidates, mask_logits, config)
    rows = label_rows(objects, candidates.boxes, valid, predicted_ious, prototypes, config, negatives, extras, order_by)
    slots = min(config.max_candidates, mask_logits.shape[0])
    overlaps = overlap_rows(rows, mask_logits, prototypes.shape[0], slots, height=height, width=width)
    return best_rows(rows, objects, overlaps, config)


def detect(
    features: Float[Array, "h w C"],
    mask_logits: Float[Array, "P m n"],
    predicted_ious: Float[Array, " P"],
    prototypes: Float[Array, "K C"],
    *,
    height: int,
    width: int,
    config: DetectConfig | None = None,
    valid: Bool[Array, " P"] | None = None,
    negatives: Float[Array, "K N C"] | None = None,
) -> Detections:
    """Label candidate masks by the class prototypes, remove duplicates, and keep the best at full size.

    METHOD stage 3, steps 6 to 10: object features by masked pooling, cosine with every prototype, greedy class-aware
    NMS in order of predicted IoU (ties by index), full-size masks, soft merge, the best by score. It does not apply
    the threshold on predicted IoUs (step 5): give `valid` for that.

    Args:
      features: `[h, w, C]` float, patch features of the image, not normalised.
      mask_logits: `[P, m, n]` float, finite; a pixel belongs to the mask where the logit is > 0.
      predicted_ious: `[P]` float.
      prototypes: `[K, C]` float, L2-normalised.
      height, width: size of the image in pixels, Python ints.
      config: constants; the default is the published ones.
      valid: `[P]` bool, candidates to consider; all by default.
      negatives: `[K, N, C]` float, instances that look like a class but are none (`match.similarities`); rows of zeros
        where a class has fewer.

    Returns:
      `Detections` with D = config.max_detections. Masks without a foreground pixel, on the mask grid or at full size,
      are left out; there is never a NaN.

    Raises:
      InputError: what is no array (a whole `Memory` as prototypes), shapes that do not fit together, sizes below 1, no
        classes.
    """
    config = DetectConfig() if config is None else config
    _check(features, mask_logits, predicted_ious, prototypes, height, width, valid, negatives)
    features, prototypes, mask_logits = jnp.asarray(features), jnp.asarray(prototypes), jnp.asarray(mask_logits)
    predicted_ious = jnp.asarray(predicted_ious)
    # Which pixels belong to a mask does not change smoothly: gradients flow through features and prototypes only.
    mask_logits = lax.stop_gradient(mask_logits.astype(jnp.float32))
    predicted_ious = lax.stop_gradient(predicted_ious.astype(jnp.float32))
    if mask_logits.shape[0] == 0:
        mask_logits = jnp.full((1, *mask_logits.shape[1:]), -1.0)
        predicted_ious, valid = jnp.zeros(1), None
    candidates = describe_candidates(mask_logits, (features.shape[0], features.shape[1]))
    if valid is not None:
        candidates = Candidates(candidates.weights, candidates.boxes, candidates.valid & valid)
    merged = merge_candidates(
        features,
        candidates,
        mask_logits,
        predicted_ious,
        prototypes,
        height=height,
        width=width,
        config=config,
        negatives=None if negatives is None else jnp.asarray(negatives),
    )
    count = jnp.sum(merged.valid)
    masks = resize_masks(mask_logits, merged.source, count, height, width, (height, width))
    return Detections(masks, merged.boxes, merged.scores, merged.labels, merged.valid)


def _check(features, mask_logits, predicted_ious, prototypes, height, width, valid, negatives) -> None:
    arrays = {"features": features, "mask_logits": mask_logits, "predicted_ious": predicted_ious}
    arrays |= {"prototypes": prototypes} | ({} if valid is None else {"valid": valid})
    require_arrays("detect", **arrays, **({} if negatives is None else {"negatives": negatives}))
    shapes = f"features {features.shape}, mask_logits {mask_logits.shape}, predicted_ious {predicted_ious.shape}, "
    shapes += f"prototypes {prototypes.shape}"
    fits = (
        features.ndim == mask_logits.ndim == 3
        and prototypes.ndim == 2
        and predicted_ious.shape == mask_logits.shape[:1]
        and features.shape[2] == prototypes.shape[1]
        and min(*features.shape, *mask_logits.shape[1:], prototypes.shape[0]) >= 1
        and (valid is None or valid.shape == predicted_ious.shape)
    )
    if not fits:
        raise InputError(
            f"detect: expected features [h, w, C], mask_logits [P, m, n], predicted_ious [P], "
            f"prototypes [K, C], K >= 1, found {shapes}"
        )
    if negatives is not None and (negatives.ndim != 3 or negatives.shape[::2] != prototypes.shape):
        raise InputError(f"detect: expected negatives [K, N, C] for {shapes}, found {negatives.shape}")
    if not (isinstance(height, int) and isinstance(width, int) and height >= 1 and width >= 1):
        raise InputError(f"detect: height and width must be Python ints of at least 1, found {height!r} x {width!r}")


def soft_merge(
    scores: Float[Array, " M"],
    labels: Int[Array, " M"],
    cosines: Float[Array, "M M"],
    intersections: Int[Array, "M M"],
    areas: Int[Array, " M"],
    valid: Bool[Array, " M"],
) -> Float[Array, " M"]:
    """Lower the score of every mask that lies inside an earlier mask of its class (METHOD stage 3, step 9).

    score_i *= sqrt(1 - max over j < i of the same class of |i and j| / |i| * clip(cos(f_i, f_j), 0, 1)).

    Args:
      scores `[M]` float32, labels `[M]`, in NMS order; cosines `[M, M]`; intersections `[M, M]` and areas `[M]` in
      pixels; valid `[M]` bool: other rows neither change nor matter.

    Returns:
      scores `[M]` float32.
    """
    order = jnp.arange(scores.shape[0])
    inside = intersections.astype(jnp.float32) / jnp.maximum(areas, 1).astype(jnp.float32)[:, None]
    related = (labels[:, None] == labels[None, :]) & (order[None, :] < order[:, None]) & valid[:, None] & valid[None, :]
    covered = jnp.max(jnp.where(related, inside * jnp.clip(cosines, 0.0, 1.0), 0.0), axis=1, initial=0.0)
    rest = 1.0 - covered
    # sqrt has no gradient at 0, where a mask is an exact repetition of a better one.
    return scores * jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1.0)), 0.0)
