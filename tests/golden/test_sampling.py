"""Reference sampling against the recorded sets of upstream."""

import json
import pathlib
from collections.abc import Callable

from ntt_jax.datasets.class_lists import COCO_CLASSES
from ntt_jax.datasets.coco import load_coco, parse_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.references.sampling import Reference, check_references, sample_references
from ntt_jax.upstream.references import import_upstream_references


def test_equals_upstream(golden: pathlib.Path, coco_open: pathlib.Path) -> None:
    dataset = load_coco(coco_open / "annotations_train.json")
    cases = json.loads((golden / "dev_sampling.json").read_text())
    assert len(cases) > 1
    for case in cases:
        classes = select_classes(dataset, case["classes"])
        references = sample_references(dataset, classes, case["shots"], case["seed"])
        ours = {c.category_id: [[r.image_id, r.annotation_id] for r in c.references] for c in references.classes}
        assert ours == dict(case["references"])
        check_references(references, dataset)


def test_equals_upstream_on_every_clone(recorded: Callable[[str], pathlib.Path]) -> None:
    """The same cases without the file: what the sampler reads of it are ids, their order, and what may be drawn."""
    content = json.loads(recorded("sampling.json").read_text())
    sides = {True: [40, 40], False: [20, 20]}
    annotations = [
        {"id": a, "image_id": i, "category_id": c, "iscrowd": 0, "area": 1, "bbox": [30, 30, *sides[bool(fits)]]}
        for a, i, c, fits in content["annotations"]
    ]
    images, classes = (sorted({entry[key] for entry in annotations}) for key in ("image_id", "category_id"))
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in images],
        "categories": [{"id": c, "name": COCO_CLASSES[c]} for c in classes],
        "annotations": annotations,
    }
    dataset = parse_coco(json.dumps(document).encode(), "recorded")
    assert len(content["cases"]) == 5
    for case in content["cases"]:
        references = sample_references(dataset, select_classes(dataset, case["classes"]), case["shots"], case["seed"])
        ours = {c.category_id: [[r.image_id, r.annotation_id] for r in c.references] for c in references.classes}
        assert ours == dict(case["references"])


def test_imports_upstream_pickle(golden: pathlib.Path) -> None:
    dataset = load_coco(golden / "e2e_data" / "refs.json")
    references = import_upstream_references(golden / "e2e_data" / "mem.pkl", dataset)
    check_references(references, dataset)
    assert [(c.category_id, c.name, c.references) for c in references.classes] == [
        (11, "cat", (Reference(2, 100), Reference(2, 101))),
        (22, "person", (Reference(1, 102), Reference(1, 103))),
        (33, "vehicle", (Reference(7, 104), Reference(6, 105))),
    ]
    assert references.shots == 2
