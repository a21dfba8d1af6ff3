"""`--proposals`: boxes of a file as prompts for `evaluate` and `segment`, and what a run remembers of them."""

import json

import pytest
from cli_files import arguments, make_world

from ntt_jax.cli import main
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.runs import inputs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


def boxes_of(world, path, key="image_id", score=1):
    """The true boxes of the scenes, and one of an image that is not there."""
    content = json.loads(world.val.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    entries = [
        {key: a["image_id"] if key == "image_id" else names[a["image_id"]], "bbox": a["bbox"], "score": score}
        for a in content["annotations"]
    ]
    path.write_text(
        json.dumps([*entries, {key: 10**6 if key == "image_id" else "?.png", "bbox": [1, 1, 2, 2], "score": 1}])
    )
    return path


@pytest.fixture
def method(tmp_path):
    """As FSOD-VFM's; both commands share a program."""
    path = tmp_path / "method.json"
    path.write_text(json.dumps({"report_boxes": "proposal", "merge": "diffusion", "nms_iou_threshold": 1}))
    return path


def test_evaluate_with_boxes(world, method, tmp_path, capsys):
    boxes, out = boxes_of(world, tmp_path / "boxes.json"), tmp_path / "run"
    command = world.evaluate(out, proposals=boxes, method=method)
    assert main(command) == 0
    assert "1 box of other images" in capsys.readouterr().err
    given = {(a["image_id"], *map(float, a["bbox"])) for a in json.loads(world.val.read_text())["annotations"]}
    found = json.loads((out / "results.json").read_text())
    assert found and {(r["image_id"], *map(float, r["bbox"])) for r in found} == given
    identity = json.loads((out / "metrics.json").read_text())["provenance"]
    assert identity["detection options"]["proposals"] == "replace" and len(identity["proposals"]) == 64
    assert main(command) == 0  # nothing is left to do
    capsys.readouterr()
    boxes_of(world, boxes, score=0.5)
    assert main(command) == 2
    assert "a run made with another proposals" in capsys.readouterr().err.splitlines()[-1]


def test_segment_with_boxes_by_file_name(world, method, tmp_path, capsys):
    boxes = boxes_of(world, tmp_path / "boxes.json", "file_name")
    photos = sorted(world.images.glob("scene2_00[0-2]*"))
    shared = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory, "devices": 1, "points_per_side": 4}
    shared |= {
        "compilation_cache": world.cache,
        "score_threshold": 0,
        "pictures": "none",
        "proposals": boxes,
        "method": method,
    }
    command = ["segment", *map(str, photos), *arguments(shared | {"out": tmp_path / "out"})]
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(found["images"]) == len(photos) == 3
    assert {a["image_id"] for a in found["annotations"]} == {image["id"] for image in found["images"]}
    boxes.write_text('[{"file_name": "elsewhere.png", "bbox": [1, 1, 5, 5], "score": 1}]')
    capsys.readouterr()
    assert main([*command[: command.index("--out")], "--out", str(tmp_path / "other")]) == 2
    assert "none of its 1 box belongs to the 3 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "method", "more", "said"),
    [
        ("evaluate", {}, ["--proposals-mode", "join"], "--proposals-mode: needs boxes; give --proposals FILE"),
        ("evaluate", {"proposals": "join"}, [], "--method (proposals=join): needs boxes"),
        ("evaluate", {}, ["--proposals", "nowhere.json"], "nowhere.json"),
        ("ablate", {"proposals": "join"}, [], "this command has none"),
        ("tune", {"refine": "box"}, [], "tune: refine=box is not supported here"),
        ("ablate", {"extra_points": 4}, [], "ablate: extra_points=4 is not supported here"),
    ],
)
def test_what_does_not_fit_is_one_line_and_status_2(world, tmp_path, capsys, command, method, more, said):
    (tmp_path / "method.json").write_text(json.dumps(method))
    given = {name: getattr(world, name) for name in ("sam2", "dinov2", "memory", "images")}
    given |= {"annotations": world.val, "out": tmp_path / "out", "method": tmp_path / "method.json"}
    assert main([command, *arguments(given), *more]) == 2
    heard = capsys.readouterr().err
    assert said in heard and heard.count("\n") == 1, heard


def test_a_configuration_and_its_boxes(tmp_path):
    with pytest.raises(InputError, match="the method takes boxes as prompts; give --proposals FILE"):
        inputs.read_boxes(None, DetectConfig(proposals="join"))
    path = tmp_path / "boxes.json"
    path.write_text('[{"image_id": 1, "bbox": [1, 1, 5, 5], "score": 1}]')
    assert inputs.read_boxes(path, DetectConfig())[0].proposals == "replace"
    assert inputs.read_boxes(path, DetectConfig(proposals="join"))[0].proposals == "join"
    assert inputs.read_boxes(None, DetectConfig()) == (DetectConfig(), None)
