"""Reference sampling by hand-made cases, against METHOD stage 0 spelled out, and the reference file."""

import json
import pathlib
import random
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, check_message, document, json_values, spoil
from hypothesis import given, settings
from hypothesis import strategies as st

from ntt_jax.datasets.coco import load_coco, parse_coco
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.errors import InputError
from ntt_jax.references.sampling import (
    ClassReferences,
    Reference,
    ReferenceSet,
    check_references,
    is_valid_reference,
    load_references,
    parse_references,
    sample_references,
    save_references,
)


def parse(content: Any) -> CocoDataset:
    return parse_coco(json.dumps(content).encode(), "folder/x.json")


def one_image(bbox: list[float], **more: Any) -> bool:
    """Whether a single annotation in a 200 x 100 image passes."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 100, "width": 200}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [annotation(1, 1, 1, bbox, **more)],
    }
    dataset = parse(content)
    try:
        found = sample_references(dataset, select_classes(dataset, "all"), 1, 0)
    except InputError as error:
        check_message(error, "folder/x.json: no valid reference for 'dog'")
        return False
    assert found.classes[0].references == (Reference(1, 1),)
    return True


@pytest.mark.parametrize(
    ("bbox", "valid"),
    [
        ([10, 10, 180, 80], True),  # every side exactly 10 px away
        ([9.99, 10, 50, 50], False),
        ([10, 9.99, 50, 50], False),
        ([10, 10, 180.01, 80], False),
        ([10, 10, 180, 80.01], False),
        ([50, 40, 32, 32], True),  # exactly 32 px
        ([50, 40, 31.99, 40], False),
        ([50, 40, 40, 31.99], False),
        ([-50, 40, 100, 40], False),
        ([300, 40, 40, 40], False),
    ],
)
def test_border_and_size_rules(bbox: list[float], valid: bool) -> None:
    assert one_image(bbox) is valid


def test_crowds_and_impossible_ones_do_not_pass() -> None:
    assert one_image([50, 30, 40, 40])
    assert not one_image([50, 30, 40, 40], iscrowd=1)
    assert not one_image([50, 30, 40, 40], isimpossible=1)
    assert one_image([50, 30, 40, 40], isimpossible=0)


def random_document(seed: int, images: int = 12, annotations: int = 120) -> dict[str, Any]:
    """Boxes of which about a third pass, crowds and impossible ones among them."""
    rng = np.random.default_rng(seed)

    def box() -> list[float]:
        x, y, w, h = rng.uniform([0, 0, 20, 20], [50, 50, 60, 60]).round(1).tolist()
        return [x, y, w, h]

    return {
        "images": [{"id": 3 * i, "file_name": f"{i}.jpg", "height": 100, "width": 110} for i in range(images)],
        "categories": [{"id": i, "name": f"c{i}"} for i in (9, 4, 7, 1)],
        "annotations": [
            annotation(
                i,
                int(3 * rng.integers(images)),
                int(rng.choice([1, 4, 7, 9])),
                box(),
                isimpossible=int(rng.random() < 0.1),
                segmentation=[[0, 0, 9, 0, 9, 9]],
            )
            | {"iscrowd": int(rng.random() < 0.1)}
            for i in rng.permutation(annotations).tolist()
        ],
    }


def plain_sampler(content: dict[str, Any], chosen: list[int], shots: int, seed: int) -> dict[int, list[list[int]]]:
    """METHOD stage 0 read aloud, with Python's own global generator."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    lists: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        if entry["category_id"] in chosen and entry["isimpossible"] != 1:
            lists.setdefault(entry["category_id"], []).append(entry)
    random.seed(seed)
    result: dict[int, list[list[int]]] = {}
    for category_id, entries in lists.items():
        random.shuffle(entries)
        taken: list[list[int]] = []
        for entry in entries:
            x, y, w, h = entry["bbox"]
            width, height = sizes[entry["image_id"]]
            inside = x >= 10 and y >= 10 and x + w <= width - 10 and y + h <= height - 10
            if entry["iscrowd"] or w < 32 or h < 32 or not inside or entry["image_id"] in [t[0] for t in taken]:
                continue
            if len(taken) < shots:
                taken.append([entry["image_id"], entry["id"]])
        result[category_id] = taken
    return result


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_method_spelled_out(seed: int) -> None:
    content = random_document(seed)
    dataset = parse(content)
    shots = 1 + seed % 6
    chosen = [[1, 4, 7, 9], [9, 1], [4]][seed % 3]
    state = random.getstate()
    try:
        found = sample_references(dataset, select_classes(dataset, chosen), shots, seed, allow_fewer=True)
        assert random.getstate() == state  # the global generator is left alone
        expected = plain_sampler(content, chosen, shots, seed)
    finally:
        random.setstate(state)
    assert [c.category_id for c in found.classes] == sorted(chosen)
    ours = {c.category_id: [[r.image_id, r.annotation_id] for r in c.references] for c in found.classes}
    assert ours == expected
    assert all(len({r.image_id for r in c.references}) == len(c.references) for c in found.classes)
    check_references(found, dataset)


def test_short_classes_are_named() -> None:
    content = random_document(2)
    dataset = parse(content)
    classes = select_classes(dataset, "all")
    with pytest.raises(InputError) as caught:
        sample_references(dataset, classes, 8, 0)
    found = sample_references(dataset, classes, 8, 0, allow_fewer=True)
    short = found.short_classes()
    assert short and all(0 < count < 8 for _, count in short)
    check_message(caught.value, "folder/x.json: fewer than 8", "--allow-fewer", *(f"'{n}' ({c})" for n, c in short))


def test_a_class_without_any_reference_is_refused() -> None:
    content = random_document(2)
    content["categories"] += [{"id": 2, "name": "no\nannotation"}]
    dataset = parse(content)
    for allow_fewer in (False, True):
        with pytest.raises(InputError) as caught:
            sample_references(dataset, select_classes(dataset, "all"), 1, 0, allow_fewer=allow_fewer)
        check_message(caught.value, "no valid reference for 'no\\nannotation'")
    with pytest.raises(InputError, match="shots: expected at least 1"):
        sample_references(dataset, select_classes(dataset, "c1"), 0, 0)


def test_real_annotations(coco_open: pathlib.Path) -> None:
    dataset = load_coco(coco_open / "annotations_train.json")
    found = sample_references(dataset, select_classes(dataset, "person,dog"), 5, 33, allow_fewer=True)
    check_references(found, dataset)
    for chosen in found.classes:
        for reference in chosen.references:
            picked = dataset.annotations[reference.annotation_id]
            assert is_valid_reference(picked, dataset.images[picked.image_id])


def sampled() -> tuple[ReferenceSet, CocoDataset]:
    dataset = parse(random_document(2))
    return sample_references(dataset, select_classes(dataset, "all"), 3, 0, allow_fewer=True), dataset


def test_reference_file_keeps_everything(tmp_path: pathlib.Path) -> None:
    references, dataset = sampled()
    save_references(tmp_path / "references.json", references)
    assert load_references(tmp_path / "references.json") == references
    content = json.loads((tmp_path / "references.json").read_text())
    assert content["version"] == 1 and content["seed"] == 0 and content["shots"] == 3
    assert content["annotations"] == {"name": "x.json", "sha256": dataset.sha256}
    assert list(content["classes"][0]) == ["category_id", "name", "references"]
    assert list(content["classes"][0]["references"][0]) == ["image_id", "annotation_id"]


def test_hand_written_file_needs_no_source() -> None:
    content = json.loads(json.dumps({"format": "ntt-jax references", "version": 1, "shots": 1, "annotations": {}}))
    content["classes"] = [{"category_id": 5, "name": "dog", "references": [{"image_id": 7, "annotation_id": 100}]}]
    references = parse_references(json.dumps(content).encode(), "r.json")
    assert references.seed is None and references.annotations_sha256 is None
    check_references(references, parse(document()))


def reference_content() -> dict[str, Any]:
    """A reference file's content, made by hand."""
    entry = {"category_id": 5, "name": "dog", "references": [{"image_id": 7, "annotation_id": 100}]}
    other = {"category_id": 11, "name": "traffic light", "references": [{"image_id": 9, "annotation_id": 0}]}
    source = {"name": "x.json", "sha256": None}
    return {
        "format": "ntt-jax references",
        "version": 1,
        "annotations": source,
        "seed": 1,
        "shots": 1,
        "classes": [entry, other],
    }


@pytest.mark.parametrize(
    ("where", "value", "part"),
    [
        (("format",), "other", "not a reference file"),
        (("version",), 2, "version 2, expected 1"),
        (("version",), True, "version True"),
        (("shots",), "1", '"shots"'),
        (("shots",), 0, "a class has more"),
        (("seed",), -1, '"seed"'),
        (("annotations",), None, '"annotations"'),
        (("annotations", "sha256"), 5, '"sha256"'),
        (("annotations", "sha256"), "12 ab", "hexadecimal"),
        (("classes",), [], "at least one"),
        (("classes", 0), 1, "classes[0]"),
        (("classes", 0, "category_id"), 11, "each once"),
        (("classes", 0, "category_id"), 12, "ascending"),
        (("classes", 0, "name"), None, '"name"'),
        (("classes", 0, "references"), [], "no references"),
        (("classes", 0, "references", 0), [7, 100], "references[0]"),
        (("classes", 0, "references", 0, "image_id"), "7", '"image_id"'),
        (("classes", 0, "references", 0, "annotation_id"), 2**63, '"annotation_id"'),
    ],
)
def test_refuses_unsound_reference_files(where: tuple[Any, ...], value: Any, part: str) -> None:
    content: Any = reference_content()
    holder = content
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    with pytest.raises(InputError) as caught:
        parse_references(json.dumps(content).encode(), "r.json")
    check_message(caught.value, "r.json", part)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), json_values)
def test_spoiled_reference_files_only_raise_input_errors(seed: int, value: Any) -> None:
    for i in range(seed, seed + 10):
        try:
            check_references(parse_references(spoil(reference_content(), i, value), "r.json"), DOCUMENT)
        except InputError as error:
            check_message(error)


DOCUMENT = parse(document())


@pytest.mark.parametrize(
    ("category_id", "name", "reference", "part"),
    [
        (6, "dog", (7, 100), "no such category"),
        (5, "bird", (7, 100), "category 5 is 'bird', but in folder/x.json it is 'dog'"),
        (5, "dog", (7, 99), "has no such annotation"),
        (5, "dog", (9, 100), "the annotation is of image 7"),
        (5, "dog", (3, 50), "the annotation is of category 2, not 5"),
        (5, "dog", (3, 51), "crowd"),
        (2, "bird", (7, 101), "no segmentation"),
    ],
)
def test_refuses_references_that_do_not_fit(category_id: int, name: str, reference: tuple[int, int], part: str) -> None:
    references = ReferenceSet((ClassReferences(category_id, name, (Reference(*reference),)),), 1)
    with pytest.raises(InputError) as caught:
        check_references(references, DOCUMENT)
    check_message(caught.value, part)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("segmentation", [[500, 500, 600, 500, 600, 600]], "mask has no pixel"),
        ("segmentation", {"size": [100, 200], "counts": [1]}, "sum to 1"),
    ],
)
def test_refuses_references_without_a_mask(key: str, value: Any, part: str) -> None:
    content = document()
    content["annotations"][0][key] = value
    references = ReferenceSet((ClassReferences(5, "dog", (Reference(7, 100),)),), 1)
    with pytest.raises(InputError) as caught:
        check_references(references, parse(content))
    check_message(caught.value, part)


def test_refuses_another_annotation_file() -> None:
    references, _ = sampled()
    with pytest.raises(InputError) as caught:
        check_references(references, DOCUMENT)
    check_message(caught.value, "sha256", "'x.json'", "sample again")


def test_none_and_too_few_are_said_at_once() -> None:
    content = document()
    content["annotations"] = [annotation(1, 7, 5, [20, 20, 50, 40]), annotation(2, 7, 2, [20, 20, 5, 5])]
    content["categories"] = content["categories"][:2]
    dataset = parse(content)
    for allowed, more in ((False, "; 1 other has fewer than 3 (--allow-fewer)"), (True, "")):
        with pytest.raises(InputError, match=r"no valid reference for 'bird' .*--drop-empty") as caught:
            sample_references(dataset, select_classes(dataset, "all"), 3, 0, allow_fewer=allowed)
        assert str(caught.value).endswith("(--lists FILE.json)" + more)
