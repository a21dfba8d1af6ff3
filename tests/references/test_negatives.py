import dataclasses
import json

import numpy as np
import pytest
from host_detections import host_detections

from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.datasets.lvis import FederatedLists
from ntt_jax.errors import InputError
from ntt_jax.evaluation import prepare_ground_truth
from ntt_jax.images.rle import encode_masks
from ntt_jax.notes import Notes
from ntt_jax.references.negatives import as_coco, false_positives, negative_set
from ntt_jax.references.sampling import ClassReferences, Reference, ReferenceSet

NAMES = {2: "cat", 5: "dog", 9: "bird"}
SIDE = 100


def block(top, left, height, width):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def found(image_id, *rows):
    """Detections (label, score, mask) of an image."""
    rows = sorted(rows, key=lambda row: -row[1])
    masks = np.stack([mask for _, _, mask in rows])
    boxes = [[*np.argwhere(mask).min(0)[::-1], *np.argwhere(mask).max(0)[::-1]] for mask in masks]
    scores, labels = [score for _, score, _ in rows], [label for label, _, _ in rows]
    return image_id, host_detections(masks, np.array(boxes), np.array(scores), np.array(labels))


def dataset(folder, annotations, **more):
    content = {
        "images": [{"id": i, "file_name": f"sub/{i}.png", "height": SIDE, "width": SIDE} for i in range(1, 6)],
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
        "annotations": [
            {"id": 70 + n, "image_id": i, "category_id": c, "iscrowd": crowd, "bbox": [0, 0, 40, 40]}
            | {"segmentation": encode_masks(mask[None])[0]}
            for n, (i, c, crowd, mask) in enumerate(annotations)
        ],
    }
    (folder / "a.json").write_text(json.dumps(content | more))
    return load_coco(folder / "a.json")


def kept(chosen):
    rows = ((image_id, label, s) for image_id, one in chosen for label, s in zip(one.labels, one.scores, strict=True))
    return [(image_id, int(label), round(float(score), 3)) for image_id, label, score in rows]


def test_worst_mistakes_of_each_class_one_from_an_image(tmp_path):
    cat, dog = block(0, 0, 50, 50), block(50, 50, 50, 50)
    data = dataset(tmp_path, [(1, 2, 0, cat), (2, 5, 0, dog), (3, 2, 1, cat), (3, 2, 0, block(60, 0, 40, 40))])
    truth = prepare_ground_truth(data, select_classes(data, "all"))
    run = [
        found(
            1,
            (0, 0.99, cat),  # right
            (0, 0.98, block(0, 0, 60, 60)),  # badly cut
            (0, 0.97, block(10, 10, 33, 33)),  # a part: its IoU is low, yet it is all cat
            (1, 0.9, cat),  # a cat taken for a dog
            (1, 0.8, block(20, 50, 40, 40)),  # a second one in this image
        ),
        found(2, (0, 0.7, block(40, 40, 55, 55)), (0, 0.95, block(50, 0, 20, 20))),  # the dog; too small
        found(3, (0, 0.96, block(0, 0, 45, 45)), (0, 0.6, block(0, 55, 40, 40))),  # on a crowd; background
        found(4, (0, 0.65, block(3, 3, 40, 40)), (1, 0.95, block(3, 3, 40, 40))),
    ]
    assert kept(false_positives(truth, reversed(run), 5)) == [
        *[(1, 1, 0.9), (2, 0, 0.7), (3, 0, 0.6)],
        *[(4, 1, 0.95), (4, 0, 0.65)],
    ]
    few = false_positives(truth, run, 1)
    assert kept(few) == [(2, 0, 0.7), (4, 1, 0.95)]
    # LVIS: nothing is known of a class in an image unless the lists say so.
    lists = {"negative": {i: frozenset() for i in range(1, 6)}, "not_exhaustive": {i: frozenset() for i in range(1, 6)}}
    lists["negative"][4] = frozenset({2})
    lists["not_exhaustive"][3] = frozenset({2})
    lvis = dataclasses.replace(truth, federated=FederatedLists(**lists, frequency={}))
    assert kept(false_positives(lvis, run, 5)) == [(4, 0, 0.65)]

    content = as_coco(few, data, list(NAMES))
    assert [image["file_name"] for image in content["images"]] == ["sub/2.png", "sub/4.png"]
    (tmp_path / "n.json").write_text(json.dumps(content))
    negatives = load_coco(tmp_path / "n.json")
    np.testing.assert_array_equal(negatives.mask(negatives.annotations[2]), block(3, 3, 40, 40))
    references = ReferenceSet(tuple(ClassReferences(i, NAMES[i], ()) for i in (2, 9)), 1)
    chosen = negative_set(negatives, references)
    assert [c.references for c in chosen.classes] == [(Reference(2, 1),), ()]


def test_boxes_serve_where_there_are_no_masks(tmp_path):
    data = dataset(tmp_path, [(1, 2, 0, block(0, 0, 40, 40))])
    data = dataclasses.replace(
        data, annotations={a.id: dataclasses.replace(a, segmentation=None) for a in data.annotations.values()}
    )
    truth = prepare_ground_truth(data, select_classes(data, "all"), kinds=["bbox"])
    run = [found(1, (0, 0.9, block(3, 3, 36, 36)), (0, 0.8, block(30, 30, 60, 60)))]
    assert kept(false_positives(truth, run, 5)) == [(1, 0, 0.8)]


def test_classes_that_the_file_of_negatives_numbers_differently(tmp_path):
    mask = block(0, 0, 40, 40)
    references = ReferenceSet((ClassReferences(2, "dog", ()), ClassReferences(3, "cat", ())), 1)
    notes = Notes()
    chosen = negative_set(dataset(tmp_path, [(1, 2, 0, mask), (2, 5, 0, mask)]), references, notes)
    assert [(c.category_id, c.name, c.references) for c in chosen.classes] == [
        (2, "dog", (Reference(2, 71),)),
        (3, "cat", (Reference(1, 70),)),
    ]
    (line,) = notes.lines()
    assert "the references and the annotations number differently, matched by their names: 2" in line
    assert "'dog' is 2 in the references, 5 in the annotations" in line


def test_files_of_negatives_that_do_not_fit(tmp_path):
    mask = block(0, 0, 40, 40)
    references = ReferenceSet((ClassReferences(2, "cat", ()), ClassReferences(7, "cow", ())), 1)
    assert (
        len(negative_set(dataset(tmp_path, [(1, 2, 0, mask), (2, 2, 1, mask)]), references).classes[0].references) == 1
    )
    for rows, names, message in (
        ([(1, 5, 0, mask)], NAMES, "a.json: no annotation is of a class of the references"),
        ([(1, 2, 1, mask)], NAMES, "no annotation is of a class"),
        ([(1, 2, 0, mask)], {2: "car"}, "category 2 is 'cat'.*'car'"),
        ([(1, 2, 0, mask & False)], NAMES, "class 'cat': image 1, annotation 70: the annotation's mask has no pixel"),
    ):
        categories = [{"id": i, "name": name} for i, name in names.items()]
        with pytest.raises(InputError, match=message) as error:
            negative_set(dataset(tmp_path, rows, categories=categories), references)
        assert "\n" not in str(error.value)
