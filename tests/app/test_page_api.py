"""What the page asks for, over HTTP; and the commands on what it leaves on the disk."""

import json
import os
import re
import time
from importlib import resources

import cli_files
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from app_files import served

from ntt_jax.app import running
from ntt_jax.cli import main
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import CocoAnnotation, CocoCategory, make_dataset
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.images.rle import rle_boxes
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.bank import load_memory

HOSTILE = "<img src=x onerror=alert(1)>"
SCENES = 5
PHOTOS = SCENES + 2
RULES = {"points_per_side": 4, "pred_iou_threshold": 0.0}
OPTIONS = ["--points-per-side", "4", "--pred-iou-threshold", "0", "--devices", "1"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return cli_files.convert(folder, cli_files.SAM2), cli_files.convert(folder, cli_files.DINOV2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos, one of a hostile name and one of a name that is no text, and their annotations, which lie elsewhere."""
    folder = tmp_path_factory.mktemp("photos")
    dataset = load_coco(cli_files.write_scenes(folder, SCENES, 7))
    for grey, name in enumerate((os.fsencode(f"{HOSTILE}.png"), b"\xff\n.png")):
        Image.new("RGB", (40, 30), (200, grey, 30)).save(os.fsencode(folder / "images") + b"/" + name)
    return folder / "images", dataset


@pytest.fixture(scope="module")
def opened(weights, photos):
    """Opens the page's program on the folder, and closes it again at the end of the block."""
    models = load_sam2(weights[0]), load_dinov2(weights[1])

    def make():
        return served(
            lambda address: running.page(
                photos[0], *models, address, files=weights, warm=False, config=DetectConfig(**RULES)
            )
        )

    return make


def searched(client, **body):
    """Search, wait for the end, and return the state."""
    assert client.post("/v1/search", json=body).status_code == 200
    while (search := client.get("/v1/project").json()["search"])["running"]:
        time.sleep(0.02)
    assert search["problem"] is None
    return search


def rle(dataset, annotation):
    found = dataset.rle(annotation)
    return {"size": list(found["size"]), "counts": found["counts"]}


def test_the_loop_over_http_and_the_commands_on_its_folder(opened, photos, weights):
    folder, dataset = photos
    by_photo = {}
    for annotation in dataset.annotations.values():
        by_photo.setdefault(dataset.images[annotation.image_id].file_name, []).append(annotation)
    with opened() as client:
        state = client.get("/v1/project").json()
        assert len(state["photos"]) == PHOTOS and client.get(
            f"/v1/project?since={state['revision']}"
        ).json().keys() == {
            "revision",
            "search",
        }
        assert all(one["name"].isprintable() for one in state["photos"])
        scenes = [one for one in state["photos"] if one["name"].startswith("scene")]
        photo = scenes[0]["id"]
        assert client.get(f"/v1/photos/{photo}/thumbnail").headers["content-type"] == "image/jpeg"
        size = client.post(f"/v1/photos/{photo}/encoding").json()
        points = {"points": [[size["width"] / 2, size["height"] / 2]], "labels": [1]}
        choices = client.post(f"/v1/photos/{photo}/masks", json=points).json()
        assert [choice["mask"]["size"] for choice in choices] == [[size["height"], size["width"]]] * 3

        for one in scenes[:3]:
            for annotation in by_photo[one["name"]]:
                body = {
                    "class_name": HOSTILE
                    if annotation.category_id == 3
                    else dataset.categories[annotation.category_id].name
                }
                answer = client.post(
                    f"/v1/photos/{one['id']}/references", json={**body, "mask": rle(dataset, annotation)}
                )
                assert answer.status_code == 200, answer.text
        shown = client.get("/v1/project").json()
        assert all(one["verdict"] for one in shown["references"])
        names = [one["name"] for one in shown["classes"]]

        searched(client, photos=[one["id"] for one in scenes[:3]])
        run = folder / "ntt-jax" / "found"
        assert len(json.loads((run / "detections.json").read_text())["images"]) == 3
        for body in ({"thresholds": {"bird": 2}}, {"thresholds": {"\ud800": 0.1}}, {"thresholds": {"\ud800": "x"}}):
            answer = client.put(
                "/v1/thresholds", content=json.dumps(body), headers={"content-type": "application/json"}
            )
            assert answer.status_code in (400, 422) and answer.json()["detail"].isprintable()

    # `segment` does the rest in the same folder, and `report` shows it.
    memory = folder / "ntt-jax" / "memory.safetensors"
    models = ["--sam2", str(weights[0]), "--dinov2", str(weights[1])]
    segment = ["segment", str(folder), "--memory", str(memory), *models, "--out", str(run), *OPTIONS]
    assert main([*segment, "--pictures", "none", "--score-threshold", "0"]) == 0
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [start["images"] for start in starts] == [3, PHOTOS - 3]
    assert len(json.loads((run / "detections.json").read_text())["images"]) == PHOTOS
    assert main(["report", str(run)]) == 0
    assert "<img src=x" not in (run / "report.html").read_text()

    # The page takes over what `segment` found: the models are not asked again.
    with opened() as client:
        searched(client)
        assert "ntt_jax_images_total 0" in client.get("/v1/metrics").text
        state = client.get("/v1/project").json()
        assert all(one["current"] for one in state["photos"])
        zeros = {"thresholds": dict.fromkeys(names, 0)}
        assert client.put("/v1/thresholds", json=zeros).status_code == 200
        assert client.post("/v1/exports", json={"formats": ["png", "coco"]}).status_code == 200
        first = client.get(f"/v1/photos/{photo}/detections?side=40").json()
        assert first["detections"] and max(first["width"], first["height"]) == 40
        wrong = {"class_name": first["detections"][0]["class_name"], "kind": "negative", "detection": 0}
        assert client.post(f"/v1/photos/{photo}/references", json=wrong).status_code == 200
        last = client.get("/v1/project").json()["references"][-1]
        assert last["kind"] == "negative" and client.delete(f"/v1/references/{last['id']}").status_code == 200
        assert client.delete(f"/v1/references/{last['id']}").status_code == 400
    scores_as_the_commands_do(folder, dataset, weights)


def scores_as_the_commands_do(folder, dataset, weights):
    """What is exported has the AP that the same references give through `ntt-jax sample` and `memory`."""
    home, files = folder / "ntt-jax", {"annotations": folder / "ntt-jax" / "references.json"}
    sample = files | {"classes": "all", "shots": 9, "allow_fewer": True, "out": folder.parent / "references.json"}
    assert main(["sample", *cli_files.arguments(sample)]) == 0
    built = files | {"dinov2": weights[1], "images": folder, "references": sample["out"], "devices": 1}
    built["out"] = folder.parent / "memory.safetensors"
    assert main(["memory", *cli_files.arguments(built)]) == 0
    bank = load_memory(built["out"])
    loaded = load_sam2(weights[0]), load_dinov2(weights[1])
    predictor = Predictor(*loaded, bank.memory.prototypes, DetectConfig(**RULES))
    images = [dataset.images[id] for id in sorted(dataset.images)]
    found = list(predictor(dataset.read_image(folder, image.id) for image in images))
    truth = truth_of(images, found, bank)
    records = [(image.id, one) for image, one in zip(images, found, strict=True)]
    wanted = evaluate_detections(truth, records)["segm"]
    assert 0.3 < wanted["AP"] < 0.95
    assert evaluate_detections(truth, exported(home, images, bank))["segm"]["AP"] == pytest.approx(
        wanted["AP"], abs=0.02
    )


def truth_of(images, found, bank):
    """Every second detection as an object: these models are random, and find nothing that is there."""
    objects = {}
    for image, one in zip(images, found, strict=True):
        for row in range(0, len(one), 2):
            id, category = len(objects) + 1, bank.category_ids[one.labels[row]]
            box = tuple(map(float, rle_boxes([one.rles[row]])[0]))
            objects[id] = CocoAnnotation(id, image.id, category, box, None, False, False, one.rles[row])
    categories = {i: CocoCategory(i, name) for i, name in zip(bank.category_ids, bank.class_names, strict=True)}
    dataset = make_dataset("truth", "", {image.id: image for image in images}, objects, categories)
    return prepare_ground_truth(dataset, list(categories.values()))


def exported(home, images, bank):
    """The detections of the exported file."""
    path = home / "exports" / "coco" / "annotations" / "instances_default.json"
    dataset, scores = load_coco(path), {one["id"]: one["score"] for one in json.loads(path.read_text())["annotations"]}
    for image in images:
        rows = [
            one for one in dataset.annotations.values() if dataset.images[one.image_id].file_name == image.file_name
        ]
        labels = np.array([bank.category_ids.index(one.category_id) for one in rows], np.int32)
        kept = np.array([scores[one.id] for one in rows], np.float32)
        boxes = np.zeros((len(rows), 4), np.float32)  # of the masks, and not what is compared here
        yield image.id, HostDetections(image.height, image.width, boxes, kept, labels, tuple(map(dataset.rle, rows)))


ODD = ("%2e%2e%2fsecret.txt", "%00", "%c0%ae%c0%ae%c0%afsecret.txt", "9" * 30)
BODIES = (b"", b"null", b"[]", b'{"box":[0,0,1e999,0]}', b'{"photos":[null]}', b'{"formats":["../x"]}', b"\xff")


def test_every_route_and_method_asked_oddly(weights, tmp_path):
    """No answer is a fault of the server, and none names a place of the machine but the folder that the page shows."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no image")
    models = load_sam2(weights[0]), load_dinov2(weights[1])
    with served(lambda address: running.page(folder, *models, address, warm=False)) as client:
        ids = [*ODD, *(photo["id"] for photo in client.get("/v1/project").json()["photos"])]
        paths, answers = client.get("/v1/openapi.json").json()["paths"], []
        for path, operations in paths.items():
            for method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "POST", "PATCH", "DELETE"):
                own = method.lower() in operations
                for odd in ids if own and "{" in path else ids[-1:]:
                    for body in BODIES if own and method in ("PUT", "POST") else BODIES[:1]:
                        asked = re.sub(r"{\w+}", odd, path)
                        answers.append((client.request(method, asked, content=body), own))
        for answer, own in answers:
            request = answer.request
            assert answer.status_code < 500 and (own or answer.status_code == 405), request
            assert request.url.path == "/v1/project" or str(tmp_path) not in answer.text, answer.text
        assert client.get(f"/v1/photos/{ids[-1]}/picture").json()["detail"].startswith("broken.png: not an image")


def test_a_folder_without_photos_is_said_before_models_are_fetched(tmp_path, capsys):
    assert main(["app", str(tmp_path), "--no-browser", "--port", "0"]) == 2
    assert "the folder holds no image" in capsys.readouterr().err


def test_text_from_files_is_never_read_as_a_page():
    """Scripts put text into the page as text alone, and pages hold no script or style of their own."""
    folders = [resources.files("ntt_jax.app") / "static", resources.files("ntt_jax.report")]
    scripts = [file for folder in folders for file in folder.iterdir() if file.name.endswith(".js")]
    assert len(scripts) > 10
    for file in scripts:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc", file.read_text()), file
    for page in ("index.html", "docs.html"):
        text = (folders[0] / page).read_text()
        assert re.findall(r"<script(?! src=\"/static/\w+\.js\" defer></script>)", text) == [], page
        assert not re.search(r"\son\w+=|<style|style=|https?:", text), page
