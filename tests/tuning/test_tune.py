"""Recorded proposals give what each configuration gives alone; `ntt-jax tune`."""

import dataclasses
import json

import fsspec
import jax
import numpy as np
import pytest
from cli_files import arguments, make_world
from report_files import data_of

from ntt_jax.cli import main
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.errors import InputError
from ntt_jax.images.reading import read_image
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.bank import load_memory
from ntt_jax.tuning.job import check_parts
from ntt_jax.tuning.proposals import Proposals, record_bytes
from ntt_jax.tuning.recorder import ProposalRecorder
from ntt_jax.tuning.rescore import Candidates, check_config, rescore

RECORDED = DetectConfig(points_per_side=4, pred_iou_threshold=0.0)


def config(**changes):
    return dataclasses.replace(RECORDED, **changes)


CONFIGS = [
    RECORDED,
    config(
        nms_iou_threshold=0.95,
        iou_power=0.5,
        softmax_temperature=0.1,
        classes_per_mask=2,
        hubness="centre",
        merge="diffusion",
        order_area_power=0.3,
        stability_power=1,
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def models(world):
    return load_sam2(world.sam2), load_dinov2(world.dinov2)


@pytest.fixture(scope="module")
def images(world):
    dataset = load_coco(world.val)
    return [read_image(dataset.image_path(world.images, i)) for i in sorted(dataset.images)[:4]]


@pytest.fixture(scope="module")
def prototypes(world):
    own = np.asarray(load_memory(world.memory).memory.prototypes)
    return np.stack([own, own[::-1]])


@pytest.fixture(scope="module")
def recorded(models, images, prototypes):
    return list(ProposalRecorder(*models, prototypes[0], RECORDED)(images))


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_offline_detections_are_those_of_each_configuration_alone(number, models, images, prototypes, recorded):
    one, counts = CONFIGS[number], []
    check_config(one, RECORDED)
    alone = Predictor(*models, prototypes[1], one, devices=jax.devices()[:1], divide="images")
    for found, proposals in zip(alone(images), recorded, strict=True):
        merged = rescore(Candidates.of(proposals), prototypes, None, one)
        merged = jax.tree.map(lambda array: np.asarray(array)[1], merged)
        count = int(merged.valid.sum())
        np.testing.assert_array_equal(merged.scores[:count], found.scores)
        np.testing.assert_array_equal(merged.labels[:count], found.labels)
        np.testing.assert_array_equal(merged.boxes[:count], found.boxes)
        row = np.searchsorted(proposals.place, merged.source[:count])
        assert tuple(proposals.rles[i] for i in row) == found.rles
        counts.append(count)
    assert max(counts) >= (2 if one.nms_iou_threshold > 0.5 else 1)


def test_proposals_survive_as_json(recorded):
    for one in recorded:
        data = json.loads(json.dumps(one.to_json()))
        again = Proposals.from_json(data, "record")
        for field in dataclasses.fields(Proposals):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(one, field.name))
        arrays = sum(len(data[name]) for name in ("objects", "intersections", "boxes", "grid_boxes", "stabilities"))
        assert arrays <= record_bytes(len(one), one.objects.shape[1]) < arrays + 3000 + 8 * len(one) ** 2
    assert record_bytes(1024, 1024) < 8.5e6  # as docs/tune.md says of ViT-L
    data = recorded[0].to_json()
    for change, said in (
        ({"height": -1}, "height"),
        ({"candidates": 10**6}, "candidates"),
        ({"objects": data["areas"]}, "objects"),
        ({"counts": data["counts"][1:]}, "compressed bytes"),
        ({"counts": None}, "counts"),
        ({"place": recorded[0].to_json()["intersections"]}, "place"),
    ):
        with pytest.raises(InputError, match=f"record: .*{said}"):
            Proposals.from_json({**data, **change}, "record")
    with pytest.raises(InputError, match="expected an object"):
        Proposals.from_json([], "record")


def test_a_record_holds_the_best_candidates_that_it_has_room_for(recorded):
    one = max(recorded, key=len)
    whole = len(json.dumps(one.to_json(), separators=(",", ":")))
    assert one.fitted(whole) == one.to_json() and "left_out" not in one.to_json() and len(one) > 5
    for limit in (whole - 1, whole // 2, whole // 5, 1000):
        data = one.fitted(limit)
        assert len(json.dumps(data, separators=(",", ":"))) <= limit
        some = Proposals.from_json(json.loads(json.dumps(data)), "record")
        assert 0 < some.left_out == len(one) - len(some)
        rows = np.searchsorted(one.place, some.place)
        np.testing.assert_array_equal(np.sort(one.predicted_ious[rows]), np.sort(one.predicted_ious)[-len(some) :])
        np.testing.assert_array_equal(some.intersections, one.intersections[np.ix_(rows, rows)])
        np.testing.assert_array_equal(some.objects, one.objects[rows])
        assert some.rles == tuple(one.rles[row] for row in rows)
    with pytest.raises(InputError, match="left_out"):
        Proposals.from_json({**one.to_json(), "left_out": -1}, "record")


def test_what_was_not_recorded_is_refused():
    for change, said in (
        ({"points_per_side": 8}, "points_per_side"),
        ({"stability_power": 1, "stability_offset": 0.3}, "stability_offset"),
    ):
        with pytest.raises(InputError, match=said):
            check_config(config(**change), RECORDED)
    with pytest.raises(InputError, match=r"recorded above 0\.4"):
        check_config(DetectConfig(pred_iou_threshold=0.3), DetectConfig())
    check_config(config(stability_offset=0.3, pred_iou_threshold=0.5), RECORDED)


def command(world, out, **more):
    shared = {"sam2": world.sam2, "dinov2": world.dinov2, "annotations": world.val, "images": world.images}
    shared |= {"out": out, "devices": 1, "compilation_cache": world.cache}
    shared |= {"points_per_side": 4, "pred_iou_threshold": 0, "batch_size": 4}
    return ["tune", *arguments(shared | more)]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "grid.json"
    path.write_text(json.dumps({"nms_iou_threshold": [1], "iou_power": [1]}))
    return path


def test_tune(world, tmp_path, capsys, grid):
    out = tmp_path / "run"
    line = command(world, out, memory=world.memory, grid=grid, search="grid")
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "reported on 10" in said and "--method" in said
    outcome = json.loads((out / "tune.json").read_text())
    assert outcome["configurations"] == 4 and outcome["images"] == {"choose": 10, "report": 10}
    best = max(outcome["table"], key=lambda row: row["choose"]["segm"]["AP"])
    assert best["method"] == outcome["chosen"]["method"] == json.loads((out / "method.json").read_text())
    gain = outcome["chosen"]["gain"]["segm"]
    assert gain["gain"] == pytest.approx(best["report"]["segm"]["gain"])
    assert gain["interval"][0] <= gain["gain"] + 1e-9 and gain["interval"][1] >= gain["gain"] - 1e-9
    names = {one["class"] for one in outcome["thresholds"]}
    assert names == {"square", "disc", "bar"}
    thresholds = json.loads((out / "thresholds.json").read_text())["thresholds"]
    assert set(thresholds) <= names and thresholds
    assert_the_page_shows(out, outcome)
    assert_segment_keeps_to(out, world, tmp_path / "found", thresholds)
    # Another search on the same images records nothing again.
    before = (out / "finished.records").stat(), json.loads((out / "run.json").read_text())["starts"]
    assert main([*line[:-1], "one"]) == 0
    after = (out / "finished.records").stat(), json.loads((out / "run.json").read_text())["starts"]
    assert before[0].st_mtime_ns == after[0].st_mtime_ns and before[1] == after[1]
    assert json.loads((out / "tune.json").read_text())["configurations"] == 3
    # Methods to compare are tried beside.
    (tmp_path / "own.json").write_text('{"merge": "none"}')
    assert main(command(world, out, memory=world.memory, search="none", compare=tmp_path / "own.json")) == 2
    (tmp_path / "own.json").write_text('{"merge": "none", "points_per_side": 4, "pred_iou_threshold": 0}')
    assert main(command(world, out, memory=world.memory, search="none", compare=tmp_path / "own.json")) == 0
    names = [row["name"] for row in json.loads((out / "tune.json").read_text())["table"]]
    assert names == ["unchanged", str(tmp_path / "own.json")]


def assert_the_page_shows(out, outcome):
    """`ntt-jax report` of the folder: the rows, intervals and thresholds of tune.json."""
    assert main(["report", str(out)]) == 0
    shown = data_of(out / "report.html")["tune"]
    rows = {row["name"]: row for row in outcome["table"]}
    assert [row["name"] for row in shown["rows"]] == sorted(rows, key=lambda name: -rows[name]["choose"]["segm"]["AP"])
    for row in shown["rows"]:
        expected = rows[row["name"]]["report"]["segm"]
        assert row["report"][:2] == pytest.approx([expected["AP"], expected["gain"]], abs=1e-6)
        if row["name"] == "unchanged":
            assert row["interval"] is None
        else:
            assert row["interval"] == pytest.approx(expected["interval"], abs=1e-6)
            assert row["interval"][0] <= row["report"][1] <= row["interval"][1]
    assert shown["method"].keys() == outcome["chosen"]["method"].keys()
    for point, one in zip(shown["points"], outcome["thresholds"], strict=True):
        assert point["name"] == one["class"] and point["threshold"] == pytest.approx(one["threshold"], abs=1e-6)


def assert_segment_keeps_to(out, world, found, thresholds):
    """`ntt-jax segment` with what tune wrote: its constants, and of their detections those from each threshold on."""
    shared = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory, "out": found, "devices": 1}
    shared |= {"compilation_cache": world.cache, "method": out / "method.json", "format": "coco"}
    photos = [str(path) for path in sorted(world.images.glob("scene*_*"))[:4]]

    def detections(**more):
        assert main(["segment", *photos, *arguments(shared | more)]) == 0
        content = json.loads((found / "detections.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        return [(one["image_id"], names[one["category_id"]], one["score"]) for one in content["annotations"]]

    every = detections(score_threshold=0)
    kept = detections(thresholds=out / "thresholds.json")
    assert kept == [one for one in every if one[2] >= thresholds.get(one[1], 0.5)]
    assert 0 < len(kept) < len(every)
    method = json.loads((out / "method.json").read_text())
    identity = json.loads((found / "run.json").read_text())["identity"]
    assert method and identity["detection options"].items() >= method.items()


def test_tune_with_shots_and_seeds(world, tmp_path, grid):
    """And with images elsewhere."""
    store = fsspec.filesystem("memory")
    for image in world.images.iterdir():
        store.pipe(f"/tune/{image.name}", image.read_bytes())
    out = tmp_path / "run"
    more = {"reference_annotations": world.train, "classes": "all", "shots": "1,2", "seeds": 2, "allow_fewer": True}
    more |= {"images": "memory://tune"}
    assert main(command(world, out, grid=grid, **more)) == 0
    outcome = json.loads((out / "tune.json").read_text())
    assert [(one["shots"], one["seed"]) for one in outcome["memories"]] == [(1, 33), (2, 33), (1, 34), (2, 34)]
    assert outcome["search"] == "greedy" and outcome["chosen"]["gain"]["bbox"]["by_shots"].keys() == {"1", "2"}
    assert type(outcome["chosen"]["within_noise"]) is bool
    # Other memories cost no new pass over the images.
    before = (out / "finished.records").stat().st_mtime_ns
    assert main(command(world, out, grid=grid, search="one", **more | {"shots": "1", "seeds": 1})) == 0
    assert (out / "finished.records").stat().st_mtime_ns == before
    assert json.loads((out / "tune.json").read_text())["memories"] == [{"shots": 1, "seed": 33}]


def test_one_image_on_each_side_gives_no_interval(world, tmp_path, capsys, grid):
    """Drawn again and again it is the same image: an interval would be one of nothing."""
    content = json.loads(world.val.read_text())
    content["images"] = content["images"][4:6]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in known]
    (tmp_path / "two.json").write_text(json.dumps(content))
    out = tmp_path / "run"
    more = {"memory": world.memory, "annotations": tmp_path / "two.json", "grid": grid}
    assert main(command(world, out, **more, search="grid")) == 0
    said = capsys.readouterr()
    outcome = json.loads((out / "tune.json").read_text())
    assert outcome["images"] == {"choose": 1, "report": 1} and outcome["chosen"]["method"]
    assert outcome["chosen"]["gain"]["segm"]["interval"] is None and outcome["chosen"]["within_noise"]
    assert "one image to report on has objects" in said.err and "95 % between" not in said.out
    assert all(row["report"]["segm"].get("interval") is None for row in outcome["table"])
    assert outcome["thresholds"] and all(one["interval"] is None for one in outcome["thresholds"])
    # Nothing is certain of one image: the greedy search keeps the constants, which gain nothing, also no interval.
    assert main(command(world, out, **more)) == 0
    outcome = json.loads((out / "tune.json").read_text())
    assert outcome["chosen"]["method"] == {"points_per_side": 4, "pred_iou_threshold": 0.0}
    assert outcome["chosen"]["gain"]["segm"]["interval"] is None
    assert "nothing that was tried is better" in capsys.readouterr().err
    assert main(["report", str(out)]) == 0


def test_parts_without_objects_are_refused():
    parts, objects = np.array([[1.0, 1, 0], [0, 0, 1]]), np.array([[0, 0], [0, 0], [2, 1]])
    with pytest.raises(InputError, match=r"the 2 images to choose on have no object.*--division-seed"):
        check_parts(parts, objects)
    with pytest.raises(InputError, match="the 2 images to report on"):
        check_parts(parts[::-1], objects)
    check_parts(parts, objects[[2, 0, 2]])


@pytest.mark.parametrize(
    ("images", "crowd", "more", "said"),
    [
        (1, 0, {}, "1 image, of which a share of 0.5 is to choose on: too few"),
        (20, 0, {"choose_share": 0.01}, "20 images, of which a share of 0.01"),
        (20, 1, {}, "no object of the memory's classes to judge by"),
    ],
)
def test_images_that_cannot_judge_are_refused_before_anything_is_recorded(
    world, tmp_path, capsys, images, crowd, more, said
):
    content = json.loads(world.val.read_text())
    content["images"] = content["images"][:images]
    known = {image["id"] for image in content["images"]}
    objects = [one for one in content["annotations"] if one["image_id"] in known]
    content["annotations"] = [{**one, "iscrowd": crowd} for one in objects]
    (tmp_path / "few.json").write_text(json.dumps(content))
    given = {"memory": world.memory, "annotations": tmp_path / "few.json"}
    assert main(command(world, tmp_path / "run", **given | more)) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1] and len(err.splitlines()) == 1 + crowd, err  # and a warning of crowds
    assert not (tmp_path / "run" / "finished.records").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"search": "none"}, "--compare"),
        ({"choose_share": 1}, "--choose-share"),
        ({"grid": "no such grid"}, "no such grid"),
        ({"threshold_for": "precision=2"}, "from 0 to 1"),
        ({"memory": None}, "--memory"),
        ({"compare": "missing.json", "search": "none"}, "missing.json"),
    ],
)
def test_what_cannot_work_is_one_line(world, tmp_path, capsys, more, said):
    assert main(command(world, tmp_path / "run", **({"memory": world.memory} | more))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err, err
