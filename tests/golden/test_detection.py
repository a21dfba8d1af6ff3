"""METHOD stage 3, steps 6 to 10, against what the original PyTorch code returned."""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.config import DetectConfig
from ntt_jax.detection.full_size import resize_masks
from ntt_jax.detection.match import object_features, similarities
from ntt_jax.detection.merge import Detections, describe_candidates, detect, merge_candidates
from ntt_jax.detection.nms import class_aware_nms

SCORE_TOLERANCE = 5e-6  # the recorded results are float32 sums in another order
TIE = 1e-5


def candidates(data):
    logits = ((data["lr_q"].astype(np.float32) + data["lr_offset"]) / 8).astype(np.float32)
    prototypes = data["mem_feats_ins_avg"].mean(axis=1)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    features = data["tar_feat"].reshape(37, 37, -1)
    ious = data["pred_ious"] if "pred_ious" in data.files else np.zeros(len(logits), np.float32)
    return features, logits, ious, prototypes


def expected(data, prefix):
    height, width = (int(n) for n in data[f"{prefix}masks_shape"][1:])
    masks = np.unpackbits(data[f"{prefix}masks_packed"], axis=1)[:, : height * width].reshape(-1, height, width)
    # Upstream carries masks without pixels as NaN, sorted first; ours leaves them out.
    there = np.isfinite(data[f"{prefix}scores"])
    found = {name: data[f"{prefix}{name}"][there] for name in ("scores", "labels", "bboxes")}
    return height, width, {**found, "masks": masks[there]}


def check(found, want):
    found = jax.tree.map(np.asarray, found)
    count = len(want["scores"])
    assert found.valid.sum() == count and np.all(found.valid[:count])
    assert not np.isnan(found.scores).any()
    np.testing.assert_allclose(found.scores[:count], want["scores"], rtol=0, atol=SCORE_TOLERANCE)
    taken = set()
    for row in range(count):  # neighbours closer than the tie may have swapped
        near = [
            j
            for j in np.flatnonzero(np.abs(want["scores"] - found.scores[row]) <= TIE)
            if j not in taken
            and found.labels[row] == want["labels"][j]
            and np.array_equal(found.boxes[row], want["bboxes"][j])
            and np.sum(found.masks[row] != want["masks"][j]) <= 3
        ]
        assert near, f"detection {row} is not among the recorded ones"
        taken.add(near[0])
    assert not found.masks[count:].any() and np.all(found.labels[count:] == -1)


@pytest.mark.parametrize(
    ("classes", "outputs", "prefix", "per_mask"),
    [
        (20, "k1", "k1_480x640_", 1),
        (20, "kmulti_expanded", "k3_480x640_", 3),
        (80, "k1", "k1_427x640_", 1),
        (80, "kmulti_expanded", "k-1_480x640_", -1),
    ],
)
def test_stage_static(recorded: Callable[[str], pathlib.Path], classes, outputs, prefix, per_mask):
    features, logits, ious, prototypes = candidates(np.load(recorded(f"dev_stage_{classes}cls_inputs.npz")))
    height, width, want = expected(np.load(recorded(f"dev_stage_{classes}cls_{outputs}_outputs.npz")), prefix)
    config = DetectConfig(classes_per_mask=per_mask)
    run = jax.jit(functools.partial(detect, height=height, width=width, config=config))
    check(run(features, logits, ious, prototypes), want)


@functools.partial(jax.jit, static_argnames="config")
def detect_any_size(features, logits, ious, prototypes, height, width, config):
    """The road of the compiled pipeline: one program for every image that fits the canvas."""
    described = describe_candidates(logits, features.shape[:2])
    merged = merge_candidates(features, described, logits, ious, prototypes, height=height, width=width, config=config)
    masks = resize_masks(logits, merged.source, jnp.sum(merged.valid), height, width, (1344, 832))
    return merged, masks


@pytest.mark.parametrize("size", ["480x640", "200x150", "1333x800"])
def test_edge_cases_one_program_for_all_sizes(recorded: Callable[[str], pathlib.Path], size):
    data = np.load(recorded(f"dev_edge_{size}.npz"))
    height, width, want = expected(data, "")
    merged, masks = detect_any_size(*candidates(data), jnp.int32(height), jnp.int32(width), DetectConfig())
    assert not np.asarray(masks)[:, height:].any() and not np.asarray(masks)[:, :, width:].any()

    check(Detections(masks[:, :height, :width], merged.boxes, merged.scores, merged.labels, merged.valid), want)


@pytest.mark.parametrize("classes", [20, 80])
def test_intermediates(recorded: Callable[[str], pathlib.Path], classes):
    data = np.load(recorded(f"dev_stage_{classes}cls_inputs.npz"))
    features, logits, ious, prototypes = candidates(data)
    described = jax.jit(functools.partial(describe_candidates, grid=(37, 37)))(jnp.asarray(logits))
    empty = data["kinds"] == 0
    there = np.isfinite(data["sim_global"][:, 0])
    np.testing.assert_array_equal(np.asarray(described.valid), there)
    np.testing.assert_array_equal(np.asarray(described.boxes)[there], data["lr_boxes"][there].astype(int))
    objects, valid = object_features(described.weights, jnp.asarray(features))
    assert not np.asarray(valid)[empty & ~there].any()
    similarity = np.asarray(similarities(objects, jnp.asarray(prototypes)))
    np.testing.assert_allclose(similarity[there], data["sim_global"][there], rtol=0, atol=5e-6)
    want = data["obj_feats_stride10"]
    np.testing.assert_allclose(np.asarray(objects)[::10][there[::10]], want[there[::10]], rtol=0, atol=2e-6)
    labels = np.argmax(similarity, axis=1)
    np.testing.assert_array_equal(labels[there], data["labels_k1"][there])

    order = np.argsort(-ious, kind="stable")
    keep = class_aware_nms(
        described.boxes[order], jnp.asarray(labels[order, None], jnp.int32), described.valid[order], classes, 0.5
    )
    kept = [int(i) for i in order[np.asarray(keep)[:, 0]]]
    assert kept == [int(i) for i in data["nms_keep_k1"] if there[i]]


def test_similarities_of_the_negative_set(recorded: Callable[[str], pathlib.Path]):
    data = np.load(recorded("dev_negative.npz"))
    features, logits, _, prototypes = candidates(data)
    described = jax.jit(functools.partial(describe_candidates, grid=(37, 37)))(jnp.asarray(logits))
    objects, _ = object_features(described.weights, jnp.asarray(features))
    similarity = np.asarray(similarities(objects, jnp.asarray(prototypes)))
    there = np.asarray(described.valid)
    np.testing.assert_allclose(similarity[there], data["sim_pos_only"][there], rtol=0, atol=5e-6)
