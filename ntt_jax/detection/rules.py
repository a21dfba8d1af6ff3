"""Rules beside the published ones, each off by default (`DetectConfig`): what scores are made of, who suppresses whom.

f is an object's feature and p a prototype, both of length 1. All functions are pure and keep their shapes.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32, Int

from ntt_jax.config import DetectConfig
from ntt_jax.detection.match import SMALLEST_DIVISOR, similarities

_DIFFUSED_ROWS, _DIFFUSED_LIMIT = 64, 1e12


def _apart(value: Array) -> Array:
    """The value, computed by itself. A product that meets a sum or a power in one compiled loop may be left unrounded
    there: the numbers of a rule would depend on what stands before it, and not be those of recorded proposals."""
    return jax.lax.optimization_barrier(value)


def stability(mask_logits: Float[Array, "P m n"], offset: float) -> Float32[Array, " P"]:
    """Share of the pixels above -offset that are above +offset: `[P, m, n]` -> `[P]` float32, 0 for empty masks.

    `calculate_stability_score` of SAM's automatic generator (segment-anything, sam2; offset 0.7 in SAM 2's settings).
    """
    inner = jnp.sum(mask_logits > offset, axis=(1, 2), dtype=jnp.float32)
    outer = jnp.sum(mask_logits > -offset, axis=(1, 2), dtype=jnp.float32)
    return inner / jnp.maximum(outer, 1.0)


def class_softmax(
    similarity: Float[Array, "P K"], classes: Bool[Array, " K"], temperature: float
) -> Float[Array, "P K"]:
    """softmax over the classes of similarity / temperature: `[P, K]` -> `[P, K]` float32.

    classes: `[K]` bool, which are there; others have no share. As in zero-shot classifiers (CLIP, arXiv 2103.00020).
    """
    # No smaller: float32 would divide by 0. The nearest class has the whole share long before.
    logits = jnp.where(classes[None, :], similarity / jnp.maximum(temperature, SMALLEST_DIVISOR), -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def centred(
    objects: Float[Array, "P C"], valid: Bool[Array, " P"], prototypes: Float[Array, "K C"]
) -> tuple[Float[Array, "P C"], Float[Array, "K C"]]:
    """Objects and prototypes with the mean valid object m subtracted: f - m and p - m, brought to length 1 again.

    Centring takes away what all objects share, which makes some prototypes the nearest of everything (hubs; Suzuki et
    al., "Centering similarity measures to reduce hubs", EMNLP 2013). objects `[P, C]`, valid `[P]`, prototypes
    `[K, C]`. A zero prototype stays zero.
    """
    # In whole numbers, which no compiler adds in an order of its own, or leaves unrounded where it fuses them.
    fixed = _fixed(objects, len(objects))
    total = jnp.sum(jnp.where(valid[:, None], fixed, 0), axis=0)
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1)
    mean = total // count  # rounded to the nearest below; float32 would not hold a total of so many bits
    mean = jnp.where(2 * (total - mean * count) >= count, mean + 1, mean)
    there = jnp.any(prototypes != 0, axis=1)
    moved = _fixed(_unit(prototypes), len(objects)) - mean[None, :]
    return _unit(fixed - mean[None, :]), _unit(jnp.where(there[:, None], moved, 0))


def _fixed(values: Array, terms: int) -> Array:
    """Numbers from -1 to 1 as int32 in units so small that `terms` of them can be added: 2^-20 for 1024."""
    return jnp.round(_apart(values) * _units(terms)).astype(jnp.int32)


def _units(terms: int) -> float:
    return 2.0 ** min(29, 30 - math.ceil(math.log2(terms)))


def _unit(vectors: Array) -> Array:
    """`unit_vectors` of `[n, C]` with the squares added as whole numbers."""
    vectors = _apart(vectors.astype(jnp.float32))
    largest = jnp.max(jnp.abs(vectors), axis=1, keepdims=True)
    scaled = _apart(vectors / jnp.where(largest > 0, largest, 1.0))
    total = jnp.sum(_fixed(scaled * scaled, vectors.shape[1]), axis=1, keepdims=True).astype(jnp.float32)
    length = _apart(jnp.sqrt(total / _units(vectors.shape[1])))
    return _apart(jnp.where(length > 0, scaled / jnp.where(length > 0, length, 1.0), 0.0))


def csls(
    cosines: Float[Array, "P K"], objects: Bool[Array, " P"], classes: Bool[Array, " K"], neighbours: int
) -> Float[Array, "P K"]:
    """Cross-domain similarity local scaling: 2 cos(f, p) - r(f) - r(p) (Conneau et al., arXiv 1710.04087).

    r(f) is the mean cosine of f with its nearest prototypes, r(p) that of p with its nearest objects; `neighbours` of
    them, or as many as there are.

    Args:
      cosines: `[P, K]`. objects: `[P]` bool and classes: `[K]` bool, which are there.

    Returns:
      `[P, K]` float32.
    """
    there = objects[:, None] & classes[None, :]
    of_objects = _mean_of_largest(jnp.where(there, cosines, -jnp.inf), jnp.sum(classes), neighbours)
    of_classes = _mean_of_largest(jnp.where(there, cosines, -jnp.inf).T, jnp.sum(objects), neighbours)
    return jnp.where(there, 2.0 * cosines - of_objects[:, None] - of_classes[None, :], 0.0)


def _mean_of_largest(values: Array, count: Array, most: int) -> Array:
    """Mean of the `most` largest of each row `[n, m]`, of which `count` are there -> `[n]`."""
    there = values.shape[1]
    if not isinstance(there, int):  # a symbol, in an exported program: at least `most` columns make its number known
        values = jnp.pad(values, ((0, 0), (0, most)), constant_values=-jnp.inf)
        there = most
    largest, _ = jax.lax.top_k(values, min(most, there))
    taken = jnp.minimum(count, largest.shape[1])
    used = (jnp.arange(largest.shape[1])[None, :] < taken) & jnp.isfinite(largest)
    return jnp.sum(jnp.where(used, largest, 0.0), axis=1) / jnp.maximum(taken, 1).astype(jnp.float32)


def ranking(
    predicted_ious: Array, areas: Array, similarity: Array, area_power: float, similarity_power: float
) -> Array:
    """What NMS and merge are ordered by, the largest first: predicted IoU * area^a * similarity^b, `[P]` each.

    The published order is that of predicted IoU alone (a = b = 0). Area: any unit.
    """
    key = jnp.maximum(predicted_ious, 0.0)
    if area_power:
        key = key * _apart(jnp.maximum(_apart(areas), 0.0) ** area_power)
    if similarity_power:
        key = key * _apart(jnp.maximum(_apart(similarity), 0.0) ** similarity_power)
    return key


def containment(
    labels: Int[Array, " M"], intersections: Int[Array, "M M"], areas: Int[Array, " M"], valid: Bool[Array, " M"]
) -> Float[Array, "M M"]:
    """W_ij = |M_i and M_j| / |M_i| for j before i of the same class, otherwise 0: `[M, M]` float32.

    labels `[M]`, in order; intersections `[M, M]`, areas `[M]` in pixels; valid `[M]` bool.
    """
    order = jnp.arange(labels.shape[0])
    inside = intersections.astype(jnp.float32) / jnp.maximum(areas, 1).astype(jnp.float32)[:, None]
    related = (labels[:, None] == labels[None, :]) & (order[None, :] < order[:, None])
    return jnp.where(related & valid[:, None] & valid[None, :], inside, 0.0)


def diffuse(contained: Float[Array, "M M"], alpha: float, *, normalised: bool) -> Float[Array, " M"]:
    """How much of every mask is explained by earlier ones, diffused over the graph of `containment`: `[M, M]` -> `[M]`.

    pi = alpha P pi + (1 - alpha) w with w_i = max_j W_ij: graph diffusion of FSOD-VFM (arXiv 2602.03137). P is W, or,
    `normalised`, W with rows that sum to 1: the text has the latter, its numbers were made with the former. P is
    strictly lower triangular, so the fixed point is a triangular solve: pi = (1 - alpha) (I - alpha P)^-1 w.

    With P = W, n alike masks make pi grow as (1 + alpha)^n, out of float32 from some 340 on. From 1 on a mask's score
    is 0 whatever pi is, so pi stops at 1e12, which is far enough to take what lies in such a mask to 1 as well. The
    solve goes in blocks of 64 rows, in which nothing can overflow.
    """
    w = jnp.max(contained, axis=1, initial=0.0)
    step = contained
    if normalised:
        total = jnp.sum(contained, axis=1, keepdims=True)
        step = contained / jnp.where(total > 0, total, 1.0)
    count = contained.shape[0]
    rows = max(1, min(count, _DIFFUSED_ROWS))
    more = -count % rows
    step, start = jnp.pad(step, ((0, more), (0, more))), jnp.pad((1.0 - alpha) * w, (0, more))
    identity = jnp.eye(rows, dtype=jnp.float32)

    def solve(pi: Array, first: Array) -> tuple[Array, None]:
        """pi of the next rows; those that come later are still 0."""
        own = jax.lax.dynamic_slice_in_dim(step, first, rows)
        before = _apart(jnp.dot(own, pi, precision="highest"))
        system = identity - alpha * jax.lax.dynamic_slice_in_dim(own, first, rows, axis=1)
        known = jax.lax.dynamic_slice_in_dim(start, first, rows) + alpha * before
        found = jax.scipy.linalg.solve_triangular(system, known, lower=True, unit_diagonal=True)
        return jax.lax.dynamic_update_slice_in_dim(pi, jnp.minimum(found, _DIFFUSED_LIMIT), first, axis=0), None

    pi, _ = jax.lax.scan(solve, jnp.zeros_like(start), rows * jnp.arange((count + more) // rows))
    return pi[:count]


def diffused_scores(
    scores: Float[Array, " M"], contained: Float[Array, "M M"], alpha: float, power: float, *, normalised: bool
) -> Float[Array, " M"]:
    """score_i * max(0, 1 - pi_i)^power with `diffuse`. With alpha 0 and power 1/2: soft merge without the cosine."""
    rest = jnp.maximum(0.0, 1.0 - diffuse(contained, alpha, normalised=normalised))
    return scores * jnp.where(rest > 0, jnp.where(rest > 0, rest, 1.0) ** power, 0.0)


def above_class_threshold(
    scores: Float[Array, " M"], labels: Int[Array, " M"], thresholds: tuple[float, ...]
) -> Bool[Array, " M"]:
    """Whether a score reaches its class's threshold, `[M]`, `[M]` -> `[M]` bool; classes after the last have none."""
    table = jnp.asarray((*thresholds, 0.0), jnp.float32)
    return scores >= table[jnp.clip(labels, 0, len(thresholds))]


def class_similarities(
    objects: Array, valid: Array, prototypes: Array, negatives: Array | None, config: DetectConfig
) -> Array:
    """`match.similarities` `[P, K]`, with hubness taken away as `config` says; arguments as `merge.label_rows`.

    CSLS takes the similarities as they are: clamped at 0 and lowered by negatives. Its result is clamped at 0 too, and
    halved: it goes up to 2, and a score to 1.
    """
    if config.hubness == "centre":
        objects, prototypes = centred(objects, valid, prototypes)
    similarity = similarities(objects, prototypes, negatives, config.negative_sigma)
    if config.hubness == "csls":
        classes = jnp.any(prototypes != 0, axis=1)
        similarity = 0.5 * jnp.maximum(0.0, csls(similarity, valid, classes, config.csls_neighbours))
    return similarity


def weighted_scores(
    scores: Array,
    labels: Array,
    similarity: Array,
    predicted_ious: Array,
    prototypes: Array,
    config: DetectConfig,
    stability: Array | None,
) -> Array:
    """Scores `[P, n]` of the labels, times the powers and the softmax that `config` asks for; by default as they are.

    predicted_ious, stability: `[P]`. labels: `[P, n]`. similarity: `[P, K]`. prototypes: `[K, C]`, 0 for no class.
    """
    if config.softmax_temperature:
        share = class_softmax(_apart(similarity), jnp.any(prototypes != 0, axis=1), config.softmax_temperature)
        scores = scores * jnp.take_along_axis(_apart(share), labels, axis=1)
    if config.iou_power:
        scores = scores * _apart(jnp.maximum(_apart(predicted_ious), 0.0) ** config.iou_power)[:, None]
    if stability is not None and config.stability_power:
        scores = scores * _apart(_apart(stability) ** config.stability_power)[:, None]
    return scores
