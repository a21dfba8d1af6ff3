"""Every kind of data set from its own files to its own numbers, by one command each."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_files import DINOV2, World, arguments, make_world
from PIL import Image
from random_detections import lvis_content
from voc_files import write_image, write_list

from ntt_jax.cli import main
from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.class_lists import CLASS_LISTS, COCO_CLASSES
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.demo.demo import convert_checkpoints
from ntt_jax.demo.scenes import SceneConfig, base_classes, make_scene
from ntt_jax.demo.scenes.export import write_coco
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.images.rle import encode_masks
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank, save_memory
from ntt_jax.runs import models


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.getbasetemp())


def evaluate(world: World, monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> dict[str, Any]:
    """`ntt-jax evaluate` on these annotations with a memory of random prototypes and detections drawn at random."""
    dataset = load_dataset(options["annotations"])
    categories = select_classes(dataset, options.pop("classes"))
    generator = np.random.default_rng(0)
    rows = [[generator.normal(size=DINOV2.embed_dim).astype(np.float32)] for _ in categories]
    names, ids = zip(*((c.name, c.id) for c in categories), strict=True)
    bank = MemoryBank(memory_from_instance_means(rows, names), names, ids, DINOV2)
    save_memory(folder / "memory.safetensors", bank)

    def predict(images: Iterable[np.ndarray]) -> Iterator[HostDetections]:
        for image in images:
            masks = np.zeros((9, *image.shape[:2]), np.bool_)
            boxes = np.sort(generator.integers(0, min(image.shape[:2]), (9, 2, 2)), axis=1).reshape(9, 4)  # xyxy
            for i, (x1, y1, x2, y2) in enumerate(boxes):
                masks[i, y1 : y2 + 1, x1 : x2 + 1] = True
            labels, scores = generator.integers(0, len(categories), 9), np.linspace(0.9, 0.1, 9)
            rles = encode_masks(masks)
            height, width = image.shape[:2]
            yield HostDetections(height, width, boxes.astype(np.float32), scores, labels.astype(np.int32), tuple(rles))

    monkeypatch.setattr(models.TargetPass, "load", lambda *_: predict)
    assert main(world.evaluate(folder / "out", memory=folder / "memory.safetensors", **options)) == 0
    assert main(["report", str(folder / "out")]) == 0
    return json.loads((folder / "out/metrics.json").read_text())


def test_voc(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, models included."""
    year = tmp_path / "VOCdevkit/VOC2007"
    names = ["bird", "bus", "cow", "motorbike", "sofa"]  # the novel classes of the first split
    for i, name in enumerate(names):
        write_image(year, f"00000{i}", [(name, (20, 15, 80, 75), False)], segmented=True)
        write_image(year, f"00001{i}", [(name, (30, 15, 90, 75), False), ("person", (1, 1, 9, 9), True)])
    other = tmp_path / "VOCdevkit/VOC2012"
    write_image(other, "2012_1", [("bird", (20, 15, 80, 75), False)], segmented=True)
    write_list(year, "Main/trainval", [f"00000{i}" for i in range(5)])
    write_list(other, "Main/trainval", ["2012_1"])
    train = tmp_path / "VOCdevkit/VOC2007+VOC2012/ImageSets/Main/trainval.txt"
    test = write_list(year, "Main/test", [f"00001{i}" for i in range(5)])
    options = {"reference_annotations": train, "annotations": test, "images": tmp_path / "VOCdevkit"}
    options |= {"sam2": world.sam2, "dinov2": world.dinov2, "points_per_side": 4, "devices": 1, "shots": 1}
    options |= {"out": tmp_path / "out", "compilation_cache": world.cache, "classes": "voc-novel1"}
    assert main(["run", *arguments(options)]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["protocol"] == "voc" and metrics["images"] == 5 and not metrics["skipped"]
    assert set(metrics["bbox"]) == {"AP", "AP50", "AP75", "AP50_area"} and "segm" not in metrics
    assert [row["name"] for row in metrics["per_class"]] == names
    assert "AP50_area" in capsys.readouterr().out
    # The list of two years, which is no one file, is found again; naming it does the same.
    assert main(["report", str(tmp_path / "out")]) == 0
    assert main(["report", str(tmp_path / "out"), "--reference-annotations", str(train)]) == 0
    printed = capsys.readouterr()
    assert "AP is by VOC's rules" in printed.err and "references cannot be shown" not in printed.err


def test_lvis(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = lvis_content(1, images=4)
    for image in content["images"]:
        image |= {"height": 90, "width": 110}
        path = tmp_path / "coco" / Path(image["coco_url"]).parent.name / Path(image["coco_url"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(image["id"]).integers(0, 255, (90, 110, 3), np.uint8)).save(path)
    for entry in content["annotations"]:
        mask = np.zeros((1, 90, 110), np.bool_)
        mask[0, 15:60, 20:70] = True
        entry |= {"bbox": [20, 15, 50, 45], "segmentation": encode_masks(mask)[0]}
    classes = sorted({entry["category_id"] for entry in content["annotations"]})
    annotations = tmp_path / "lvis_v1_val.json"
    annotations.write_text(json.dumps(content))
    chosen = ",".join(map(str, classes))
    options = {"annotations": annotations, "images": tmp_path / "coco", "max_detections": 300}
    metrics = evaluate(world, monkeypatch, tmp_path, **options, classes=chosen)
    assert metrics["protocol"] == "lvis" and metrics["images"] == 4 and not metrics["skipped"]
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR300"} < set(metrics["segm"])
    assert {row["frequency"] for row in metrics["per_class"]} == {"r", "c", "f"}
    assert "APr" in capsys.readouterr().out


def test_coco20i(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(world.val.read_text())
    fold = CLASS_LISTS["coco20i-1"]
    content["categories"] = [{"id": i, "name": name} for i, name in COCO_CLASSES.items()]
    ids = [i for i, name in COCO_CLASSES.items() if name in fold]
    for i, entry in enumerate(content["annotations"]):
        entry["category_id"] = ids[i]
    assert len(content["annotations"]) == 20
    annotations = tmp_path / "instances_val2017.json"
    annotations.write_text(json.dumps(content))
    metrics = evaluate(world, monkeypatch, tmp_path, annotations=annotations, classes="coco20i-1")
    assert metrics["protocol"] == "coco20i" and metrics["classes"] == 20
    assert 0 <= metrics["semantic"]["mIoU"] <= 1 and len(metrics["semantic"]["mIoU_by_threshold"]) == 10
    assert all(row["semantic"]["IoU"] is not None for row in metrics["per_class"])
    assert "AP" in metrics["bbox"] and "AP" in metrics["segm"]
    assert "mIoU" in capsys.readouterr().out


def test_boxes_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(world.val.read_text())  # as the test sets of CD-FSOD: no masks at all
    for entry in content["annotations"]:
        del entry["segmentation"]
    annotations = tmp_path / "test.json"
    annotations.write_text(json.dumps(content))
    metrics = evaluate(world, monkeypatch, tmp_path, annotations=annotations, classes="all")
    assert "AP" in metrics["bbox"] and "segm" not in metrics and "protocol" not in metrics
    assert "boxes" in (out := capsys.readouterr().out) and "masks" not in out


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A folder of made scenes, and COCO annotations of its train and val, of 20 classes with the names of a fold."""
    folder = tmp_path_factory.mktemp("scenes")
    names = CLASS_LISTS["coco20i-0"]
    ids = [i for i, name in COCO_CLASSES.items() if name in names]
    kinds = base_classes()[: len(ids)]
    config = SceneConfig(empty=0.0)
    contents = []
    for seed, (split, count) in enumerate((("train2017", 100), ("val2017", 10))):
        made = (make_scene([77, seed, i], kinds, (), config) for i in range(count))
        content = json.loads(write_coco(folder / split, made, kinds).read_text())
        for image in content["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        for entry in content["annotations"]:
            entry["category_id"] = ids[entry["category_id"] - 1]
        content["categories"] = [{"id": i, "name": name} for i, name in COCO_CLASSES.items()]
        contents.append(content)
    return folder, contents[0], contents[1]


@pytest.mark.large
@pytest.mark.parametrize("kind", ["coco20i", "lvis", "boxes"])
def test_the_shipped_models_find_scenes_in_every_layout(scenes, tmp_path, kind) -> None:
    """From files of the layout to sensible numbers, references included. About a minute each."""
    folder, train, val = scenes
    sam2, dinov2 = convert_checkpoints(tmp_path)
    files = {}
    for split, content in (("train", train), ("val", val)):
        content = json.loads(json.dumps(content))
        if kind == "lvis":
            for image in content["images"]:
                present = {e["category_id"] for e in content["annotations"] if e["image_id"] == image["id"]}
                absent = [category["id"] for category in content["categories"] if category["id"] not in present]
                image |= {"neg_category_ids": absent, "not_exhaustive_category_ids": []}
            for place, category in enumerate(content["categories"]):
                category["frequency"] = "rcf"[place % 3]
        if kind == "boxes":
            for entry in content["annotations"]:
                del entry["segmentation"]
        files[split] = tmp_path / f"{split}.json"
        files[split].write_text(json.dumps(content))
    options = {"sam2": sam2, "dinov2": dinov2, "annotations": files["val"], "images": folder, "points_per_side": 8}
    options |= {"out": tmp_path / "run", "classes": "coco20i-0", "shots": 3, "allow_fewer": True, "batch_size": 2}
    if kind == "boxes":  # as CD-FSOD: SAM 2 makes the references' masks
        masks = {"sam2": sam2, "boxes": files["train"], "images": folder, "out": tmp_path / "masks.json"}
        assert main(["masks", *arguments(masks)]) == 0
        files["train"] = masks["out"]
    assert main(["run", *arguments(options | {"reference_annotations": files["train"]})]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics.get("protocol", "coco") == {"boxes": "coco"}.get(kind, kind) and metrics["images"] == 10
    assert metrics["bbox"]["AP50"] > 0.6 and ("segm" in metrics) == (kind != "boxes")
    if kind == "coco20i":
        assert metrics["semantic"]["mIoU"] > 0.5
    assert main(["report", str(tmp_path / "run")]) == 0
