"""Average precision of many lanes, on some of the images and resampled, against COCOeval on each alone."""

import json

import numpy as np
import pytest
from random_detections import parse, random_content, random_detections

from ntt_jax.datasets.dataset import select_classes
from ntt_jax.detection.thresholds import checked
from ntt_jax.errors import InputError
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.tuning.experiment import halves, interval, paired, resamples
from ntt_jax.tuning.operating_points import Target, operating_points
from ntt_jax.tuning.scoring import LaneScorer, ObjectOverlaps, mean_over_classes, overlaps_of

NAMES = ["a", "b", "c"]


def rows_of(truth, lanes, kind):
    """The rows of results `lanes`, each a list of (image id, detections); all masks of an image are candidates."""
    scorer = LaneScorer(truth, kind, len(lanes))
    for image_id in truth.image_ids:
        found = [(i, one) for i, lane in enumerate(lanes) for number, one in lane if number == image_id]
        if not found:
            continue
        boxes = np.concatenate([one.boxes for _, one in found])
        rles = [rle for _, one in found for rle in one.rles]
        columns = (
            np.concatenate([np.full(len(one), i) for i, one in found]),
            np.concatenate([one.labels for _, one in found]),
            np.concatenate([one.scores for _, one in found]),
            np.arange(len(rles)),
        )
        scorer.add(overlaps_of(truth, kind, image_id, boxes, rles), *columns)
    return scorer.rows()


@pytest.mark.parametrize("seed", [0, 2, 3])
@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_numbers_are_those_of_each_alone_on_any_share_of_the_images(seed, kind):
    dataset = parse(random_content(seed, names=NAMES, crowds=True))
    categories = select_classes(dataset, "all")
    lanes = [random_detections(dataset, 10 * seed + i) for i in range(3)]
    truth = prepare_ground_truth(dataset, categories)
    rows = rows_of(truth, lanes, kind)
    weights = np.concatenate([np.ones((1, len(truth.image_ids))), halves(len(truth.image_ids), 0.4, seed)])
    several = set()
    for i, lane in enumerate(lanes):
        by_class = rows.average_precision(i, weights)
        for b, weight in enumerate(weights):
            ids = [image_id for image_id, w in zip(truth.image_ids, weight, strict=True) if w]
            part = prepare_ground_truth(dataset, categories, ids)
            expected = evaluate_detections(part, [one for one in lane if one[0] in ids])
            for k, row in enumerate(expected["per_class"]):
                value = np.nan if row[kind]["AP"] is None else row[kind]["AP"]
                np.testing.assert_allclose(by_class[b, k], value, rtol=1e-12)
            overall = mean_over_classes(by_class[b])
            np.testing.assert_allclose(overall, expected[kind]["AP"], rtol=1e-12)
            several.add(round(float(overall), 6))
    assert len(several) > 5  # else nothing has been compared


def test_a_weight_of_two_is_the_image_twice():
    content = random_content(5, names=NAMES, images=6)
    found = random_detections(parse(content), 3)
    truth = prepare_ground_truth(parse(content), select_classes(parse(content), "all"))
    twice = truth.image_ids[2]
    weights = np.array([[2.0 if i == twice else 1.0 for i in truth.image_ids]])
    copy = json.loads(json.dumps(content))
    image = next(one for one in copy["images"] if one["id"] == twice)
    copy["images"].append({**image, "id": 900})
    more = [a for a in copy["annotations"] if a["image_id"] == twice]
    copy["annotations"] += [{**a, "id": 900 + i, "image_id": 900} for i, a in enumerate(more)]
    # Distinct scores: of two equal ones it matters which image stands first.
    place = iter(np.linspace(0.9, 0.1, sum(len(one) for _, one in found)))
    distinct = [
        (i, type(d)(d.height, d.width, d.boxes, sorted(next(place) for _ in d.rles)[::-1], d.labels, d.rles))
        for i, d in found
    ]
    doubled = parse(copy)
    again = distinct + [(900, one) for i, one in distinct if i == twice]
    expected = evaluate_detections(prepare_ground_truth(doubled, select_classes(doubled, "all")), again)
    weighted = rows_of(truth, [distinct], "segm").average_precision(0, weights)
    # A copy stands beside its original in the order of scores, and precision after both is no lower than between them.
    values = [np.nan if row["segm"]["AP"] is None else row["segm"]["AP"] for row in expected["per_class"]]
    np.testing.assert_allclose(weighted[0], values, rtol=1e-9)


def test_bootstraps():
    parts = halves(11, 0.5, 3)
    assert parts.sum() == 11 and np.array_equal(parts.sum(axis=0), np.ones(11)) and parts[0].sum() == 6
    drawn = resamples(parts[0], 400, 1)
    assert np.all(drawn.sum(axis=1) == 6) and not drawn[:, parts[1] > 0].any() and drawn.max() > 1
    generator = np.random.default_rng(0)
    before = generator.normal(0.5, 0.1, (4, 400))
    gains = np.array([0.1, 0.1, 0.3, 0.3])[:, None]
    found = paired(before, before + gains, np.array([7, 7, 9, 9]), 0)
    # Two groups: both, or one of them twice.
    assert sorted({round(float(v), 6) for v in found}) == [0.1, 0.2, 0.3]
    both = interval(paired(before, before + 0.2, np.arange(4), 0))
    assert both is not None
    np.testing.assert_allclose(both, 0.2)
    assert interval(np.zeros(0)) is None


def simple_rows(scores, right, objects):
    """One class on images with one detection each."""
    dataset = parse(
        {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(len(scores))],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [
                {"id": 1 + i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
                for i in range(objects)
            ],
        }
    )
    truth = prepare_ground_truth(dataset, select_classes(dataset, "all"))
    scorer = LaneScorer(truth, "bbox", 1)
    for i, (score, hit) in enumerate(zip(scores, right, strict=True)):
        there = int(i < objects)
        overlap = np.full((1, there), 0.9 if hit else 0.0)
        none = np.zeros(there, bool)
        one = np.zeros(1, int)
        scorer.add(
            ObjectOverlaps(i, np.zeros(there, int), none, none, overlap), one, one, np.array([score], np.float32), one
        )
    return scorer.rows()


def test_operating_points():
    rows = simple_rows([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 1, 0], 4)
    weights, drawn = np.ones(5), resamples(np.ones(5), 50, 0)

    def point(*target):
        return operating_points(rows, [0], weights, drawn, Target(*target), ["a"])[0]

    best = point()
    assert best["threshold"] == 0.6 and best["precision"] == 0.75 and best["recall"] == 0.75 and best["f1"] == 0.75
    assert best["interval"][0] <= 0.6 <= best["interval"][1] and best["objects"] == 4
    assert point("precision", 0.9)["threshold"] == 0.8
    assert point("precision", 0.7)["threshold"] == 0.6
    assert point("recall", 0.5)["threshold"] == 0.8
    assert point("recall", 0.9)["threshold"] is None
    assert operating_points(rows, [0], 0 * weights, drawn, Target(), ["a"])[0]["threshold"] is None
    # A class with objects in one image has a threshold; other draws of that image say nothing of it.
    alone = operating_points(rows, [0], np.eye(5)[0], drawn, Target(), ["a"])[0]
    assert alone["threshold"] == 0.9 and alone["interval"] is None


def test_a_score_a_hair_above_1_gives_a_threshold_of_1():
    above = np.nextafter(np.float32(1), np.float32(2))
    rows = simple_rows([above, above, 0.5], [1, 1, 0], 3)
    point = operating_points(rows, [0], np.ones(3), resamples(np.ones(3), 20, 0), Target(), ["a"])[0]
    assert point["threshold"] == 1.0 and point["interval"] == [1.0, 1.0] and point["curve"][0][0] == 1.0
    assert checked({"a": point["threshold"]}, "thresholds") == {"a": 1.0}


def test_a_label_without_a_class_is_refused():
    rows = np.zeros(1, int)
    scorer = LaneScorer(prepare_ground_truth(*_dataset()), "bbox", 1)
    none = ObjectOverlaps(0, np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool), np.zeros((1, 0)))
    with pytest.raises(InputError, match="label 4"):
        scorer.add(none, rows, rows + 4, np.ones(1, np.float32), rows)


def _dataset():
    dataset = parse(random_content(1, names=NAMES, images=3))
    return dataset, select_classes(dataset, "all")
