"""`detect` against a slow and obvious implementation of METHOD stage 3, steps 6 to 10, in float64 numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.config import DetectConfig
from ntt_jax.detection.full_size import resize_masks
from ntt_jax.detection.match import similarities
from ntt_jax.detection.merge import Detections, describe_candidates, detect, merge_candidates
from ntt_jax.detection.nms import class_aware_nms
from ntt_jax.errors import InputError
from ntt_jax.images.resize import resize_matrix


def box_of(mask):
    if not mask.any():
        return [0, 0, 0, 0]
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max(), y.max()]


def iou(a, b):
    w, h = max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union if union else 0.0


def reference(features, logits, ious, prototypes, height, width, config, valid, negatives=None):
    """Rows as a list, one thing after the other. Returns masks, boxes, scores, labels."""
    m, n = logits.shape[1:]
    up = np.einsum("yh,xw,hwc->yxc", resize_matrix(m, features.shape[0], "bilinear"),
                   resize_matrix(n, features.shape[1], "bilinear"), features.astype(np.float64))  # fmt: skip
    rows = []
    for i in np.argsort(-ious, kind="stable"):
        mask = logits[i] > 0
        if not valid[i] or not mask.any():
            continue
        feature = up[mask].mean(axis=0)
        feature /= np.linalg.norm(feature)
        similarity = np.maximum(0, prototypes.astype(np.float64) @ feature)
        for k in range(len(similarity)) if negatives is not None else ():
            worst = 0.0
            for negative in negatives[k].astype(np.float64):
                if negative.any():
                    worst = max(worst, negative @ feature / np.linalg.norm(negative))
            similarity[k] *= np.exp(-max(0.0, worst - similarity[k]) / config.negative_sigma)
        ranked = np.argsort(-similarity, kind="stable")
        if config.classes_per_mask > 0:
            ranked = ranked[: config.classes_per_mask]
        for k in ranked:
            score = similarity[k]
            if config.classes_per_mask == -1 and score < 0.6 * similarity.max():
                score = 0.0
            rows.append((i, int(k), score, feature, box_of(mask)))
    kept = []
    for row in rows:
        if all(other[1] != row[1] or iou(other[4], row[4]) <= config.nms_iou_threshold for other in kept):
            kept.append(row)
    kept = [row for row in kept[: config.max_candidates] if row[2] > 0]
    rows_matrix = resize_matrix(height, m, "bilinear", True)
    columns_matrix = resize_matrix(width, n, "bilinear", True)
    full = {i: rows_matrix @ logits[i].astype(np.float64) @ columns_matrix.T > 0 for i in {row[0] for row in kept}}
    kept = [row for row in kept if full[row[0]].any()]
    merged = []
    for a, row in enumerate(kept):
        covered = 0.0
        for other in kept[:a]:
            if other[1] == row[1]:
                inside = np.sum(full[row[0]] & full[other[0]]) / np.sum(full[row[0]])
                covered = max(covered, inside * np.clip(row[3] @ other[3], 0, 1))
        merged.append(row[2] * np.sqrt(max(0.0, 1 - covered)))
    best = np.argsort(-np.array(merged), kind="stable")[: config.max_detections]
    return [(full[kept[b][0]], box_of(full[kept[b][0]]), merged[b], kept[b][1]) for b in best]


def scene(seed, count, classes, *, side=32, grid=8, dim=16, kind="mixed"):
    """Blobs of all sizes, repeated, nested, tiny and empty, with features that tell the classes apart a little."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    logits = np.empty((count, side, side), np.float32)
    for i in range(count):
        if i and kind == "mixed" and rng.random() < 0.4:
            logits[i] = logits[rng.integers(i)] + rng.choice([0.0, 0.3, -0.3])
        elif i and kind == "same":
            logits[i] = logits[0]
        else:
            cx, cy, rx, ry = rng.uniform(0, side, 2).tolist() + rng.uniform(0.3, side / 2, 2).tolist()
            logits[i] = 3.0 * (1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2) + 0.0137
        if kind == "mixed" and rng.random() < 0.05:
            logits[i] = -1.0
    if kind == "empty":
        logits[:] = -1.0
    features = rng.standard_normal((grid, grid, dim)).astype(np.float32) + 0.7
    prototypes = rng.standard_normal((classes, dim)).astype(np.float32) + 0.5
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    return features, np.clip(logits, -20, 20), rng.random(count).astype(np.float32), prototypes


@functools.partial(jax.jit, static_argnames="config")
def detect_any_size(features, logits, ious, prototypes, height, width, valid, config, negatives=None):
    """`detect` with the size as data: one program for all images that fit 640 x 640."""
    described = describe_candidates(logits, features.shape[:2])
    described = dataclasses.replace(described, valid=described.valid & valid)
    size = {"height": height, "width": width}
    merged = merge_candidates(features, described, logits, ious, prototypes, **size, config=config, negatives=negatives)
    masks = resize_masks(logits, merged.source, jnp.sum(merged.valid), height, width, (640, 640))
    return Detections(masks, merged.boxes, merged.scores, merged.labels, merged.valid)


def compare(inputs, height, width, config, valid, negatives=None):
    size = jnp.int32(height), jnp.int32(width)
    found = jax.tree.map(np.asarray, detect_any_size(*inputs, *size, valid, config, negatives))
    assert not found.masks[:, height:].any() and not found.masks[:, :, width:].any()
    found = dataclasses.replace(found, masks=found.masks[:, :height, :width])
    want = reference(*inputs, height, width, config, valid, negatives)
    assert found.valid.sum() == len(want) and np.all(found.valid[: len(want)])
    assert not np.isnan(found.scores).any()
    scores = np.array([w[2] for w in want])
    # An exact repetition has 1 - covered = 0 up to float32 rounding of the cosine, of which the square root is left.
    np.testing.assert_allclose(found.scores[: len(want)], scores, rtol=0, atol=1e-3)
    large = scores > 1e-2
    np.testing.assert_allclose(found.scores[: len(want)][large], scores[large], rtol=0, atol=2e-5)
    free = set(range(len(want)))
    for row in np.flatnonzero(large):
        match = [
            j for j in free
            if abs(scores[j] - found.scores[row]) <= 2e-5 and want[j][3] == found.labels[row]
            and list(found.boxes[row]) == want[j][1] and np.array_equal(found.masks[row], want[j][0])
        ]  # fmt: skip
        assert match, f"row {row}"
        free.remove(match[0])
    assert not found.masks[len(want) :].any()


COUNT, CLASSES = 64, 5  # shared, so that one program serves most cases


@pytest.mark.parametrize("size", [(50, 70), (20, 11), (11, 50), (32, 32), (140, 1), (1, 1), (1, 600), (600, 33)])
def test_sizes(size):
    valid = np.random.default_rng(1).random(COUNT) < 0.9
    compare(scene(sum(size), COUNT, CLASSES), *size, DetectConfig(), valid)


@pytest.mark.parametrize("kind", ["same", "empty", "one valid"])
def test_repetitions_and_nothing(kind):
    valid = np.ones(COUNT, bool) if kind != "one valid" else np.arange(COUNT) == 7
    compare(scene(3, COUNT, CLASSES, kind=kind), 40, 50, DetectConfig(), valid)


@pytest.mark.parametrize(
    ("count", "classes", "config"),
    [
        (1, 4, DetectConfig()),
        (50, 1, DetectConfig()),
        (40, 100, DetectConfig(classes_per_mask=3)),
        (40, 5, DetectConfig(classes_per_mask=-1)),
        (300, 4, DetectConfig(nms_iou_threshold=0.9, max_candidates=60, max_detections=20)),
    ],
)
def test_counts_and_configurations(count, classes, config):
    compare(scene(count, count, classes), 40, 45, config, np.ones(count, bool))


def some_negatives():
    """Of any length, fewer of one class, none of another."""
    generator = np.random.default_rng(7)
    negatives = (generator.standard_normal((CLASSES, 3, 16)) + 0.7).astype(np.float32) * 9
    negatives[1, 2:] = negatives[2] = 0
    return negatives


def test_negatives_lower_the_scores_and_zeros_change_no_bit():
    inputs, negatives, every = scene(5, COUNT, CLASSES), some_negatives(), np.ones(COUNT, bool)
    compare(inputs, 40, 50, DetectConfig(), every, negatives)
    size = jnp.int32(40), jnp.int32(50), every, DetectConfig()
    plain, lowered, nothing = (detect_any_size(*inputs, *size, some) for some in (None, negatives, negatives * 0))
    jax.tree.map(np.testing.assert_array_equal, nothing, plain)
    assert not np.array_equal(lowered.scores, plain.scores)
    for wrong in (negatives[:1], negatives[:, :, :5], negatives[0]):
        with pytest.raises(InputError, match=r"expected negatives \[K, N, C\]"):
            detect(*inputs, height=40, width=50, negatives=wrong)


@pytest.mark.parametrize("sigma", [0.8, 0.05, 30.0])
def test_negatives_are_the_formula(sigma):
    """METHOD section 4, one number after the other."""
    prototypes, negatives = scene(5, 1, CLASSES)[3], some_negatives()
    objects = np.random.default_rng(3).standard_normal((20, 16)).astype(np.float32)
    objects /= np.linalg.norm(objects, axis=1, keepdims=True)
    found = np.asarray(similarities(jnp.asarray(objects), jnp.asarray(prototypes), jnp.asarray(negatives), sigma))
    for i, k in np.ndindex(found.shape):
        positive = max(0.0, float(objects[i] @ prototypes[k]))
        worst = max(float(objects[i] @ n) / max(1e-30, float(np.linalg.norm(n))) for n in negatives[k])
        expected = positive * np.exp(-max(0.0, max(0.0, worst) - positive) / sigma)
        assert abs(found[i, k] - expected) <= 1e-6
    with pytest.raises(InputError, match="negative_sigma: expected a number above 0"):
        similarities(jnp.asarray(objects), jnp.asarray(prototypes), jnp.asarray(negatives), -sigma)


def test_static_sizes_give_the_same():
    inputs = scene(11, COUNT, CLASSES)
    negatives = some_negatives()
    found = jax.jit(functools.partial(detect, height=50, width=21))(*inputs, negatives=negatives)
    same = detect_any_size(*inputs, jnp.int32(50), jnp.int32(21), np.ones(COUNT, bool), DetectConfig(), negatives)
    np.testing.assert_array_equal(found.masks, same.masks[:, :50, :21])
    np.testing.assert_array_equal(found.boxes, same.boxes)
    np.testing.assert_allclose(found.scores, same.scores, rtol=0, atol=1e-6)


def test_no_valid_candidate_and_no_candidate_at_all():
    features, logits, ious, prototypes = scene(4, COUNT, CLASSES)
    run = jax.jit(functools.partial(detect, height=9, width=9))
    for count in (COUNT, 0):
        found = run(features, logits[:count], ious[:count], prototypes, valid=jnp.zeros(count, bool))
        assert not np.any(found.valid) and not np.any(found.masks) and np.all(np.asarray(found.labels) == -1)
        assert not np.any(np.asarray(found.scores))


def test_gradients_are_finite_and_vmap_agrees():
    features, logits, ious, prototypes = scene(5, 24, 3, kind="mixed")
    logits[1] = logits[0]  # an exact repetition, where sqrt(1 - 1) has no slope
    run = functools.partial(detect, height=40, width=40, config=DetectConfig(nms_iou_threshold=1.0, max_detections=30))

    def total(features, prototypes):
        return jnp.sum(run(features, logits, ious, prototypes).scores)

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(features, prototypes):
        assert np.all(np.isfinite(gradient)) and np.any(gradient)
    both = jax.jit(jax.vmap(run, in_axes=(0, 0, 0, None)))(
        np.stack([features, features[::-1]]), np.stack([logits, logits[::-1]]), np.stack([ious, ious]), prototypes
    )
    one = jax.jit(run)(features, logits, ious, prototypes)
    np.testing.assert_array_equal(both.masks[0], one.masks)
    np.testing.assert_allclose(both.scores[0], one.scores, rtol=0, atol=1e-3)


def test_bad_arguments():
    features, logits, ious, prototypes = scene(6, 4, 3)
    for arguments, size in [
        ((features, logits, ious[:3], prototypes), (4, 4)),
        ((features, logits, ious, prototypes[:, :5]), (4, 4)),
        ((features, logits, ious, prototypes[:0]), (4, 4)),
        ((features, logits, ious, prototypes), (0, 4)),
    ]:
        with pytest.raises(InputError, match="detect"):
            detect(*arguments, height=size[0], width=size[1])
    with pytest.raises(InputError, match="classes_per_mask"):
        detect(features, logits, ious, prototypes, height=4, width=4, config=DetectConfig(classes_per_mask=0))


@pytest.mark.parametrize("count", [1, 1024, 2100])
@pytest.mark.parametrize("per_candidate", [1, 2])
def test_nms_decides_on_any_number_of_candidates_as_one_after_the_other_would(count, per_candidate):
    generator = np.random.default_rng(count)
    corners = generator.integers(0, 30, (count, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1).astype(np.int32)
    labels = np.stack([generator.permutation(3)[:per_candidate] for _ in range(count)]).astype(np.int32)
    valid = generator.random(count) > 0.1
    found = np.asarray(class_aware_nms(jnp.asarray(boxes), jnp.asarray(labels), jnp.asarray(valid), 3, 0.5))
    kept: list[list[int]] = [[], [], []]
    expected = np.zeros((count, per_candidate), bool)
    for i in np.flatnonzero(valid):
        for rank, label in enumerate(labels[i]):
            if all(iou(boxes[i], boxes[j]) <= 0.5 for j in kept[label]):
                kept[label].append(i)
                expected[i, rank] = True
    np.testing.assert_array_equal(found, expected)
    assert count == 1 or 0 < expected.sum() < (valid[:, None] & np.ones_like(expected)).sum()


def test_memory_of_nms_grows_with_the_number_of_candidates():
    def temporaries(count):
        shapes = [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((count, 4), (count, 1))]
        nms = jax.jit(functools.partial(class_aware_nms, num_classes=3, iou_threshold=0.5))
        lowered = nms.lower(*shapes, jax.ShapeDtypeStruct((count,), bool))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8192) < 2.2 * temporaries(4096)
