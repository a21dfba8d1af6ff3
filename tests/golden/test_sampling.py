"""Reference sampling against the recorded sets of upstream."""

import json
import pathlib

from ntt_jax.datasets.coco import load_coco
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
