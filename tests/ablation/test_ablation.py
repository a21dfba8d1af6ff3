"""Many memories at once against each alone, and `ntt-jax ablate`."""

import dataclasses
import json

import numpy as np
import pytest
from cli_files import arguments, make_world

from ntt_jax.ablation import memories
from ntt_jax.ablation import predictor as ablation
from ntt_jax.ablation import tables as ablation_tables
from ntt_jax.cli import main
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.errors import InputError
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.images.reading import read_image
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.bank import MemoryBank, load_memory, save_memory
from ntt_jax.references.build import build_memory
from ntt_jax.references.sampling import sample_references

SHOTS, SEEDS = (1, 3), range(33, 36)
# The masks of these random models are all alike: without NMS, and two classes each, several survive.
CONFIG = DetectConfig(points_per_side=4, pred_iou_threshold=0.0, nms_iou_threshold=1.0, classes_per_mask=2)
OPTIONS = {"points_per_side": 4, "pred_iou_threshold": 0, "nms_iou_threshold": 1, "classes_per_mask": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def pool(world):
    return load_coco(world.train)


@pytest.fixture(scope="module")
def sets(pool):
    classes = select_classes(pool, "all")
    return memories.sample_many(pool, classes, SHOTS, SEEDS, allow_fewer=True)


@pytest.fixture(scope="module")
def dinov2(world):
    return load_dinov2(world.dinov2)


@pytest.fixture(scope="module")
def predictor(world, dinov2):
    """A predictor of one memory, to be given others."""
    prototypes = load_memory(world.memory).memory.prototypes
    return Predictor(load_sam2(world.sam2), dinov2, prototypes, CONFIG)


def metrics_of(predictor, world, prototypes, negatives=None):
    """What evaluating one memory alone gives."""
    dataset = load_coco(world.val)
    ids = sorted(dataset.images)
    one = predictor.with_prototypes(prototypes, negatives)
    found = one(read_image(dataset.image_path(world.images, i)) for i in ids)
    records = zip(ids, found, strict=True)
    return evaluate_detections(prepare_ground_truth(dataset, select_classes(dataset, "all")), records)


def command(world, out, **more):
    shared = {"sam2": world.sam2, "dinov2": world.dinov2, "annotations": world.val, "images": world.images}
    shared |= {"out": out, "devices": 1, "compilation_cache": world.cache, **OPTIONS}
    return ["ablate", *arguments(shared | more)]


def shots_command(world, out, **more):
    choice = {"reference_annotations": world.train, "classes": "all", "shots": "1,3", "seeds": 3, "allow_fewer": True}
    return command(world, out, **choice | more)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "run"
    assert main(shots_command(world, out)) == 0
    return out


def test_samples_are_those_of_each_alone(pool, sets):
    assert list(sets) == [(shots, seed) for seed in SEEDS for shots in SHOTS]
    for (shots, seed), references in sets.items():
        assert references == sample_references(pool, select_classes(pool, "all"), shots, seed, allow_fewer=True)
    with pytest.raises(InputError, match="allow fewer"):
        memories.sample_many(pool, select_classes(pool, "all"), (1, 50), (3,))
    with pytest.raises(InputError, match="at least one"):
        memories.sample_many(pool, select_classes(pool, "all"), (), (3,))


def test_prototypes_are_those_of_each_alone_bit_for_bit(world, pool, sets, dinov2):
    encoder, encoded = ReferenceEncoder(dinov2), []
    distinct = memories.distinct_references(list(sets.values()))
    count = sum(len(chosen.references) for chosen in distinct.classes)
    memory = build_memory(encoder, pool, world.images, distinct, step=encoded.append)
    everything = [r for references in sets.values() for chosen in references.classes for r in chosen.references]
    assert sum(encoded) == count == len(set(everything)) < len(everything)
    found = memories.stack_prototypes(list(sets.values()), distinct, memory)
    for prototypes, references in list(zip(found, sets.values(), strict=True))[::3]:
        expected = build_memory(encoder, pool, world.images, references)
        np.testing.assert_array_equal(prototypes, expected.prototypes)


def test_leaving_out():
    rng = np.random.default_rng(3)
    means = [[rng.standard_normal(5).astype(np.float32) for _ in range(count)] for count in (3, 1, 2)]
    memory = memory_from_instance_means(means, "abc")
    found, lacking = memories.leave_one_out(memory)
    assert lacking == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    np.testing.assert_array_equal(found[0], memory.prototypes)
    for prototypes, (k, s) in zip(found[1:], lacking, strict=True):
        fewer = [[m for i, m in enumerate(row) if (j, i) != (k, s)] for j, row in enumerate(means)]
        np.testing.assert_array_equal(prototypes, memory_from_instance_means(fewer, "abc").prototypes)
    found, lacking = memories.leave_one_out(memory_from_instance_means(means[1:2], "b"))
    assert len(found) == 1 and lacking == []


def test_numbers_are_those_of_each_alone(world, pool, sets, finished, predictor, dinov2):
    outcome = json.loads((finished / "ablation.json").read_text())
    assert [(one["shots"], one["seed"]) for one in outcome["memories"]] == list(sets)
    encoder = ReferenceEncoder(dinov2)
    several = set()
    for one, references in list(zip(outcome["memories"], sets.values(), strict=True))[::3]:
        prototypes = build_memory(encoder, pool, world.images, references).prototypes
        expected = metrics_of(predictor, world, prototypes)
        assert {key: one[key] for key in expected} == json.loads(json.dumps(expected))
        several.add((one["detections"], one["segm"]["AR100"]))
    assert len(several) > 1  # else nothing has been compared
    assert outcome["skipped"] == [] and outcome["provenance"]["seeds"] == list(SEEDS)
    rows = outcome["by_shots"]
    assert [(row["shots"], row["seeds"]) for row in rows] == [(1, 3), (3, 3)]
    for row in rows:
        values = [one["bbox"]["AR10"] for one in outcome["memories"] if one["shots"] == row["shots"]]
        assert row["bbox"]["AR10"] == {"mean": np.mean(values), "std": np.std(values, ddof=1)}
        assert [c["name"] for c in row["per_class"]] == ["square", "disc", "bar"]


def test_stopped_and_continued(world, finished, tmp_path, capsys, monkeypatch):
    before = (finished / "ablation.json").read_bytes()
    records = finished / "finished.records"
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 2])
    (finished / "ablation.json").unlink()
    assert main(shots_command(world, finished)) == 0
    assert (finished / "ablation.json").read_bytes() == before
    monkeypatch.setattr(ablation, "ManyPredictor", None)  # nothing is left to do
    assert main(shots_command(world, finished)) == 0
    printed = capsys.readouterr()
    assert "mean and standard deviation" in printed.out and "\n    3      3 " in printed.out
    assert main(shots_command(world, finished, shots="1,2")) == 2
    assert "another shots" in capsys.readouterr().err


def test_leaving_out_on_the_command_line(world, pool, predictor, dinov2, tmp_path, capsys):
    """With negative references, which all memories share."""
    bank = load_memory(world.memory)
    references = sample_references(pool, select_classes(pool, "all"), 3, 33, allow_fewer=True)
    counts = iter((3, 2, 1))
    fewer = [dataclasses.replace(c, references=c.references[: next(counts)]) for c in references.classes]
    references = dataclasses.replace(references, classes=tuple(fewer))
    memory = build_memory(ReferenceEncoder(dinov2), pool, world.images, references)
    negatives = np.roll(memory.instance_means, 1, axis=0)
    memory = dataclasses.replace(memory, negatives=negatives)
    made = {str(c.category_id): [[r.image_id, r.annotation_id] for r in c.references] for c in references.classes}
    path = tmp_path / "memory.safetensors"
    save_memory(path, dataclasses.replace(bank, memory=memory, provenance={**bank.provenance, "references": made}))
    assert main(command(world, tmp_path / "run", memory=path)) == 0
    assert "with all references" in capsys.readouterr().out
    outcome = json.loads((tmp_path / "run" / "ablation.json").read_text())
    whole = metrics_of(predictor, world, memory.prototypes, negatives)
    assert outcome["whole"] == json.loads(json.dumps(whole)) != metrics_of(predictor, world, memory.prototypes)
    assert len(outcome["without"]) == 5
    prototypes, lacking = memories.leave_one_out(memory)
    row = next(row for row in outcome["without"] if (row["class"], row["reference"]) == ("disc", 1))
    alone = metrics_of(predictor, world, prototypes[1 + lacking.index((1, 1))], negatives)
    assert row["origin"] == made["5"][1]
    assert row["segm"]["AP"] == alone["segm"]["AP"]
    assert row["segm"]["class AP"] == alone["per_class"][1]["segm"]["AP"]
    assert row["bbox"]["change"] == alone["bbox"]["AP"] - outcome["whole"]["bbox"]["AP"]
    changes = [row["segm"]["change"] for row in outcome["without"]]
    assert changes == sorted(changes, reverse=True)


def test_tables():
    number = {"AP": 0.5, "AP50": None}
    one = {"bbox": number, "segm": number, "per_class": [{"category_id": 3, "name": "owl", "segm": number}]}
    other = {**one, "segm": {"AP": 0.25, "AP50": 1.0}}
    rows = ablation_tables.by_shots([(1, 3), (1, 4), (5, 3)], [one, other, other])
    assert rows[0]["segm"] == {
        "AP": {"mean": 0.375, "std": np.std([0.5, 0.25], ddof=1)},
        "AP50": {"mean": 1.0, "std": None},
    }
    lines = ablation_tables.shots_table(rows).splitlines()
    assert lines[1].split() == ["1", "2", *["50.0", "+-", "0.0", "n/a", "37.5", "+-", "17.7", "100.0"]]
    assert lines[2].split() == ["5", "1", "50.0", "n/a", "25.0", "100.0"]
    assert ablation_tables.class_table(rows).splitlines()[1].split() == ["owl", "50.0", "+-", "0.0", "50.0"]
    metrics = [{**one, "segm": {"AP": value}, "bbox": {"AP": None}} for value in (0.5, 0.4, 0.6)]
    for m in metrics:
        m["per_class"] = [{"name": "owl", "segm": {"AP": None}, "bbox": {"AP": None}}]
    rows = ablation_tables.by_reference([(0, 0), (0, 1)], metrics, [["a", "b"]])
    assert [(row["reference"], row["origin"]) for row in rows] == [(1, "b"), (0, "a")]
    assert ablation_tables.reference_table(rows).splitlines()[1].split() == ["owl", "1", "60.0", "+10.0", "n/a", "n/a"]
    table = ablation_tables.reference_table(rows * 4, limit=2).splitlines()
    assert len(table) == 6 and table[3] == "... 4 more"


def test_tables_of_boxes_alone_and_of_pixels():
    table = {"bbox": {"AP": 0.5, "AP50": 0.75, "AP50_area": 0.7}}
    row = {"category_id": 3, "name": "owl", **table, "semantic": {"IoU": 0.2}}
    one = {**table, "semantic": {"mIoU": 0.25, "mIoU_by_threshold": {"0.0": 1}}, "per_class": [row]}
    rows = ablation_tables.by_shots([(1, 3), (1, 4)], [one, one])
    assert rows[0]["semantic"] == {"mIoU": {"mean": 0.25, "std": 0}}
    assert rows[0]["per_class"][0]["semantic"] == {"IoU": {"mean": 0.2, "std": 0}}
    head, line = ablation_tables.shots_table(rows).splitlines()
    assert head.split() == ["shots", "seeds", "boxes", "AP", "AP50", "mIoU"]
    assert line.split() == ["1", "2", *["50.0", "+-", "0.0", "75.0", "+-", "0.0", "25.0", "+-", "0.0"]]
    assert ablation_tables.class_table(rows).splitlines()[1].split() == ["owl", "50.0", "+-", "0.0"]
    without = ablation_tables.by_reference([(0, 0)], [one, one], [["a"]])
    assert "boxes AP without it" in ablation_tables.reference_table(without)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shots": None}, "give --shots too"),
        ({"memory": "world"}, "--shots: --memory brings its own"),
        (
            {"memory": "world", "shots": None, "classes": None, "reference_annotations": None},
            "--allow-fewer: --memory brings its own",
        ),
        ({"shots": "1,x"}, "whole number"),
        ({"shots": "1,1"}, "each number once"),
        ({"seeds": 0}, "from 1 to"),
        ({"shots": "1,2,3,4,5,6,7,8,9,10,11", "seeds": 1000}, "at most 10000"),
        ({"reference_annotations": "none.json"}, "none.json"),
        ({"shots": "50", "allow_fewer": None}, "--allow-fewer"),
        ({"classes": "squares"}, "unknown class"),
    ],
)
def test_bad_input(world, tmp_path, capsys, options, said):
    options = {key: world.memory if value == "world" else value for key, value in options.items()}
    assert main(shots_command(world, tmp_path / "run", **options)) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and error.startswith("ntt-jax: error:")


def test_one_reference_each_leaves_nothing_out(world, tmp_path, capsys):
    bank = load_memory(world.memory)
    means = [[np.asarray(m)] for m in np.asarray(bank.memory.instance_means)[:, 0]]
    memory = memory_from_instance_means(means, bank.class_names)
    path = tmp_path / "memory.safetensors"
    save_memory(path, MemoryBank(memory, bank.class_names, bank.category_ids, bank.encoder))
    assert main(command(world, tmp_path / "run", memory=path)) == 2
    assert "none to leave out" in capsys.readouterr().err


def test_bad_prototypes(world, dinov2):
    for bad in (np.zeros((3, 24)), np.zeros((0, 3, 24))):
        with pytest.raises(InputError, match=r"\[M, K, C\]"):
            ablation.ManyPredictor(None, dinov2, bad)  # type: ignore[arg-type]
