"""LVIS's numbers against its own `lvis` package, on random detections."""

import copy
import sys
import types
from typing import Any

import numpy as np
import pytest
from random_detections import lvis_content, parse, random_detections

from ntt_jax.datasets.dataset import select_classes
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.results import coco_results


@pytest.fixture
def lvis(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, whose drawing module (OpenCV, matplotlib) is left out and which asks for a numpy before 1.24."""
    drawing = types.ModuleType("lvis.vis")
    drawing.LVISVis = None  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "lvis.vis", drawing)
    monkeypatch.setattr(np, "float", float, raising=False)
    return pytest.importorskip("lvis")


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_lvis_package(lvis: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = lvis_content(seed, images=10)
    dataset = parse(content)
    records = random_detections(dataset, seed, most=360)
    ids = list(dataset.categories)
    metrics = evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), records)
    assert max(len(one) for _, one in records) > 300
    files: dict[str, Any] = {"annotations": content}
    monkeypatch.setattr(lvis.LVIS, "_load_json", lambda self, path: copy.deepcopy(files[path]))
    for kind in ("bbox", "segm"):
        found = [entry for image_id, one in records for entry in coco_results(one, image_id, ids)]
        if kind == "segm":  # else it takes the size of a detection from its box
            for entry in found:
                del entry["bbox"]
        truth, files["results"] = lvis.LVIS("annotations"), found
        evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, "results"), kind)
        evaluation.run()
        theirs = {name.replace("@", ""): value for name, value in evaluation.get_results().items()}
        theirs = {f"AR{name[2]}" if name[2:3] in "sml" and name[:2] == "AR" else name: v for name, v in theirs.items()}
        assert metrics[kind] == pytest.approx(theirs, abs=1e-12)
        assert 0.01 < metrics[kind]["AP"] < 0.9
