"""Rules beside the published ones against loops in numpy, and through `detect`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.config import DetectConfig
from ntt_jax.detection import detect, rules
from ntt_jax.detection.match import similarities
from ntt_jax.errors import InputError

CLOSE = {"rtol": 0, "atol": 2e-6}


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_stability_is_a_share_of_pixels():
    logits = draw(0, 5, 6, 7)
    logits[3] = -5  # empty
    expected = [np.sum(x > 0.7) / max(1, np.sum(x > -0.7)) for x in logits]
    np.testing.assert_allclose(jax.jit(rules.stability)(logits, 0.7), expected, **CLOSE)


def test_softmax_leaves_out_classes_that_are_not_there():
    similarity, there = np.abs(draw(1, 4, 5)), np.array([True, True, False, True, False])
    powers = np.exp(similarity / 0.1) * there
    found = rules.class_softmax(jnp.asarray(similarity), jnp.asarray(there), 0.1)
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), **CLOSE)


def test_centring_subtracts_the_mean_of_the_valid_objects():
    objects, prototypes, valid = unit(draw(2, 6, 8)), draw(3, 3, 8), np.array([1, 1, 0, 1, 1, 0], bool)
    prototypes[1] = 0
    mean = objects[valid].mean(0)
    found = rules.centred(jnp.asarray(objects), jnp.asarray(valid), jnp.asarray(prototypes))
    np.testing.assert_allclose(found[0], unit(objects - mean), **CLOSE)
    expected = unit(unit(prototypes) - mean)
    expected[1] = 0
    np.testing.assert_allclose(found[1], expected, **CLOSE)


@pytest.mark.parametrize("neighbours", [1, 2, 50])
def test_csls(neighbours):
    cosines, objects, classes = draw(4, 6, 4), np.array([1, 1, 0, 1, 1, 1], bool), np.array([1, 1, 1, 0], bool)
    expected = np.zeros((6, 4))
    for i, k in np.ndindex(6, 4):
        if objects[i] and classes[k]:
            near_classes = np.sort(cosines[i, classes])[::-1][:neighbours].mean()
            near_objects = np.sort(cosines[objects, k])[::-1][:neighbours].mean()
            expected[i, k] = 2 * cosines[i, k] - near_classes - near_objects
    found = rules.csls(*map(jnp.asarray, (cosines, objects, classes)), neighbours)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(("area_power", "similarity_power"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.1, 1.0)])
def test_ranking(area_power, similarity_power):
    ious, areas, cosines = (
        np.array([0.9, -0.1, 0.4, 0.7]),
        np.array([9.0, 4.0, 100.0, 0.0]),
        np.array([0.5, 1, 0.2, -0.3]),
    )
    expected = np.maximum(ious, 0) * areas**area_power * np.maximum(cosines, 0) ** similarity_power
    arrays = (jnp.asarray(values, jnp.float32) for values in (ious, areas, cosines))
    np.testing.assert_allclose(rules.ranking(*arrays, area_power, similarity_power), expected, **CLOSE)


def test_factors_of_the_score():
    """score * softmax share * predicted IoU^a * stability^b, of two classes of each candidate."""
    similarity, prototypes = np.abs(draw(8, 5, 4)), unit(draw(9, 4, 8))
    prototypes[3] = 0
    labels = np.argsort(-similarity[:, :3], axis=1)[:, :2]
    scores = np.take_along_axis(similarity, labels, 1)
    ious, stable = np.array([0.9, 0.5, -0.2, 1, 0.1], np.float32), np.array([1, 0, 0.5, 0.2, 0.9], np.float32)
    config = DetectConfig(iou_power=1.5, stability_power=0.5, softmax_temperature=0.3)
    weighted = jax.jit(rules.weighted_scores, static_argnames="config")
    found = weighted(scores, labels, similarity, ious, prototypes, config, stable)
    powers = np.exp(similarity / 0.3) * [1, 1, 1, 0]
    shares = np.take_along_axis(powers / powers.sum(1, keepdims=True), labels, 1)
    expected = scores * shares * (np.maximum(ious, 0) ** 1.5 * stable**0.5)[:, None]
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_array_equal(weighted(scores, labels, similarity, ious, prototypes, DetectConfig(), None), scores)


def test_threshold_of_each_class():
    scores, labels = np.array([0.5, 0.49, 0.7, 0.1, 0.0], np.float32), np.array([0, 0, 1, 2, 5])
    found = rules.above_class_threshold(jnp.asarray(scores), jnp.asarray(labels), (0.5, 0.8))
    assert found.tolist() == [True, False, False, True, True]


@pytest.fixture(scope="module")
def graph():
    """12 masks of 3 classes on 20 pixels: labels, pixel counts of the pairs, areas, and which are there."""
    generator = np.random.default_rng(5)
    masks = generator.random((12, 20)) > generator.random((12, 1))
    masks[:, 0] = True
    labels, valid = generator.integers(0, 3, 12).astype(np.int32), np.arange(12) != 4
    pairs = (masks[:, None] & masks[None]).sum(2).astype(np.int32)
    return labels, pairs, np.diagonal(pairs), valid


def contained(graph):
    labels, pairs, areas, valid = graph
    w = np.zeros(pairs.shape)
    for i, j in np.ndindex(pairs.shape):
        if j < i and labels[i] == labels[j] and valid[i] and valid[j]:
            w[i, j] = pairs[i, j] / areas[i]
    return w


def test_containment(graph):
    np.testing.assert_allclose(rules.containment(*map(jnp.asarray, graph)), contained(graph), **CLOSE)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_diffusion_is_the_fixed_point_of_its_rounds(graph, alpha, normalised):
    w = contained(graph)
    step = w / np.where(w.sum(1, keepdims=True) > 0, w.sum(1, keepdims=True), 1) if normalised else w
    pi = np.full(12, 1 / 12)
    for _ in range(200):
        pi = alpha * step @ pi + (1 - alpha) * w.max(1)
    found = rules.diffuse(jnp.asarray(w, jnp.float32), alpha, normalised=normalised)
    np.testing.assert_allclose(found, pi, rtol=1e-5, atol=2e-6)
    scores = np.linspace(1, 0.5, 12).astype(np.float32)
    lowered = rules.diffused_scores(scores, jnp.asarray(w, jnp.float32), alpha, 0.5, normalised=normalised)
    # The root is steep next to 0.
    np.testing.assert_allclose(lowered, scores * np.maximum(0, 1 - pi) ** 0.5, rtol=0, atol=2e-3)


def test_diffusion_over_many_masks():
    """More rows than one block of the solve, one of them short."""
    generator = np.random.default_rng(6)
    w = np.tril(generator.random((150, 150)) * (generator.random((150, 150)) < 0.02), -1)
    pi = np.zeros(150)
    for i in range(150):
        pi[i] = 0.3 * w[i] @ pi + 0.7 * w[i].max()
    found = rules.diffuse(jnp.asarray(w, jnp.float32), 0.3, normalised=False)
    np.testing.assert_allclose(found, pi, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("alpha", "normalised"), [(0.3, False), (0.999, False), (0.3, True)])
def test_diffusion_over_many_alike_masks_leaves_the_others(alpha, normalised):
    """pi of the 500th copy would be 1.3^500: infinity, and then 0 * infinity for whoever lies in no copy."""
    pairs = np.full((502, 502), 100, np.int32)
    pairs[500:] = pairs[:, 500:] = 0
    pairs[500, 500] = pairs[501, 501] = 100
    pairs[500, 3] = pairs[3, 500] = 10
    w = rules.containment(jnp.zeros(502, jnp.int32), pairs, np.diagonal(pairs), jnp.ones(502, bool))
    pi = np.asarray(rules.diffuse(w, alpha, normalised=normalised))
    assert np.isfinite(pi).all()
    step = 1.0 if normalised else 0.1  # of row 500, whose only share lies in row 3
    assert pi[500] == pytest.approx(alpha * step * pi[3] + (1 - alpha) * 0.1, rel=1e-5) and pi[501] == 0
    scores = np.asarray(rules.diffused_scores(jnp.ones(502), w, alpha, 0.5, normalised=normalised))
    assert scores[0] == scores[501] == 1 and scores[500] > 0.5 and (normalised or scores[499] == 0)


def test_numbers_that_float32_rounds_to_0_divide_nothing():
    """Temperature and sigma next to 0 are their limits: the nearest class alone; nothing that looks like a negative."""
    similarity = np.array([[0.9, 0.5, 0.9], [0.2, 0.8, 0.1], [0, 0, 0]], np.float32)
    found = rules.class_softmax(jnp.asarray(similarity), jnp.ones(3, bool), 1e-50)
    np.testing.assert_allclose(found, [[0.5, 0, 0.5], [0, 1, 0], [1 / 3] * 3], **CLOSE)
    objects, prototypes = unit(draw(10, 6, 8)), unit(draw(11, 3, 8))
    negatives = draw(12, 3, 2, 8)
    positive = np.maximum(0, objects @ prototypes.T)
    nearer = np.einsum("pc,knc->pkn", objects, unit(negatives)).max(-1) > positive
    found = similarities(jnp.asarray(objects), jnp.asarray(prototypes), jnp.asarray(negatives), 1e-50)
    np.testing.assert_allclose(found, np.where(nearer, 0, positive), **CLOSE)


def test_centring_of_alike_objects_leaves_nothing():
    """And no noise in place of it, which would have a direction."""
    objects = np.tile(unit(draw(13, 1, 8)), (16, 1))
    for count in (16, 7, 1):
        found, _ = rules.centred(jnp.asarray(objects), jnp.arange(16) < count, jnp.asarray(draw(14, 3, 8)))
        assert not np.asarray(found).any()


def scene():
    """Four squares far apart, a copy of the first one, one inside the second; features and logits of an image."""
    logits, corners = np.full((6, 64, 64), -4.0, np.float32), [(2, 2), (2, 34), (34, 2), (34, 34)]
    for i, (y, x) in enumerate(corners):
        logits[i, y : y + 20, x : x + 20] = 4
    logits[4] = logits[0]
    logits[5, 6:14, 38:46] = 0.3  # its edge is soft: not stable at 0.7
    return draw(6, 16, 16, 12), logits, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.95], np.float32), unit(draw(7, 3, 12))


run = functools.partial(jax.jit, static_argnames="config")(
    lambda features, logits, ious, prototypes, config: detect(
        features, logits, ious, prototypes, height=64, width=64, config=config
    )
)


def found(**constants):
    """Scores and labels by the first pixel of the mask, of what is detected."""
    result = run(*scene(), DetectConfig(max_candidates=8, max_detections=8, **constants))
    return {
        (*map(int, box[:2]), int(label)): float(score)
        for box, label, score, valid in zip(result.boxes, result.labels, result.scores, result.valid, strict=True)
        if valid
    }


@pytest.fixture(scope="module")
def plain():
    return found(merge="none")


def test_scores_times_predicted_iou(plain):
    places = {(2, 2): 0.9, (34, 2): 0.8, (2, 34): 0.7, (34, 34): 0.6, (38, 6): 0.95}
    weighted = found(merge="none", iou_power=2.0)
    assert plain and weighted.keys() == plain.keys()
    for key, score in weighted.items():
        assert score == pytest.approx(plain[key] * places[key[:2]] ** 2, abs=1e-5)


def test_without_nms_the_copy_stays():
    everything = run(*scene(), DetectConfig(max_candidates=8, max_detections=8, merge="none", nms_iou_threshold=1.0))
    fewer = run(*scene(), DetectConfig(max_candidates=8, max_detections=8, merge="none"))
    assert int(everything.valid.sum()) == int(fewer.valid.sum()) + 1
    merged = run(*scene(), DetectConfig(max_candidates=8, max_detections=8, nms_iou_threshold=1.0, merge="plain"))
    assert np.sort(np.asarray(merged.scores)[np.asarray(merged.valid)])[0] == 0  # the copy lies in the first one


def test_without_nms_classes_that_score_0_take_no_room():
    """All classes of each of six masks, of which few are near the best one: as many rows as there are scores do."""
    everything = {"nms_iou_threshold": 1.0, "classes_per_mask": -1, "merge": "plain", "max_detections": 1}
    few = [
        run(*scene(), DetectConfig(max_candidates=most, **everything | {"max_detections": most})) for most in (18, 12)
    ]
    count = int(few[0].valid.sum())
    assert 6 <= count <= 12
    for one in few:
        assert int(one.valid.sum()) == count and int(one.labels[count - 1]) >= 0
    np.testing.assert_array_equal(few[0].scores[:count], few[1].scores[:count])
    assert len({tuple(map(int, box)) for box in few[1].boxes[:count]}) == 5  # all masks; one is a copy


def test_diffusion_without_diffusion_is_the_plain_merge():
    one, other = found(merge="plain"), found(merge="diffusion", diffusion_alpha=0.0)
    assert one.keys() == other.keys()
    for key, score in one.items():
        assert other[key] == pytest.approx(score, abs=1e-6)


def test_stability_as_a_filter_and_as_a_factor(plain):
    assert (38, 6) in {key[:2] for key in plain}
    left = {key[:2] for key in found(merge="none", stability_threshold=0.5)}
    assert left == {key[:2] for key in plain} - {(38, 6)}
    weighted = found(merge="none", stability_power=1.0)
    assert all(weighted[key] == pytest.approx(score) for key, score in plain.items() if key[:2] != (38, 6))


def test_thresholds_of_classes(plain):
    label, score = max((key[2], score) for key, score in plain.items())
    thresholds = tuple(0.0 if k != label else score + 0.01 for k in range(label + 1))
    left = found(merge="none", class_thresholds=thresholds)
    assert left == {key: one for key, one in plain.items() if key[2] != label or one >= score + 0.01}
    assert len(left) < len(plain)


def test_hubness_and_softmax_change_scores(plain):
    for constants in ({"hubness": "centre"}, {"hubness": "csls"}, {"softmax_temperature": 0.1}):
        other = found(merge="none", **constants)
        assert other and other != plain and np.isfinite(list(other.values())).all()


def test_order_by_similarity_decides_who_is_suppressed():
    """Two alike masks: the better rated one is kept, unless a small area counts more."""
    features, logits, ious, prototypes = scene()
    logits = logits[[0, 0]].copy()
    logits[1, 2, :] = -4  # a row less
    ious, sizes = np.array([0.5, 0.6], np.float32), {"height": 64, "width": 64}
    kept = [
        int(detect(features, logits, ious, prototypes, config=config, **sizes).boxes[0, 1])
        for config in (DetectConfig(), DetectConfig(order_area_power=10.0))
    ]
    assert kept == [3, 2]


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"merge": "best"}, "merge: expected 'cosine' or 'plain'"),
        ({"hubness": 1}, "hubness"),
        ({"class_thresholds": "0.5"}, "class_thresholds"),
        ({"class_thresholds": (0.5, -1)}, r"class_thresholds\[1\]: expected a number of at least 0"),
        ({"diffusion_alpha": 1.0}, "diffusion_alpha"),
    ],
)
def test_constants_that_cannot_be(constants, said):
    with pytest.raises(InputError, match=said):
        DetectConfig.from_dict(constants)
    with pytest.raises(InputError, match="unknown constant 'nms'"):
        DetectConfig.from_dict({"nms": 1})
    assert hash(DetectConfig.from_dict({"class_thresholds": [0.5, 1]})) == hash(DetectConfig(class_thresholds=(0.5, 1)))
