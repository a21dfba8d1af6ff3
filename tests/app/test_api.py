"""The address to call: answers equal to the package's own, bad input refused with one line, many callers at once."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import cli_files
import dinov2_weights
import numpy as np
import pytest
import sam2_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from app_files import full_disk, served

from ntt_jax.app import running
from ntt_jax.config import DetectConfig
from ntt_jax.segmenter.segmenter import Segmenter

CONFIG = DetectConfig(
    points_per_side=4, pred_iou_threshold=0.0, nms_iou_threshold=1.0, max_detections=12, classes_per_mask=2
)


def png(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def picture(seed, height=60, width=80):
    generator = np.random.default_rng(seed)
    return cli_files.scene(generator, 72)[0] if seed % 2 else generator.integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def segmenter():
    models = sam2_weights.recipe_model(cli_files.SAM2, 3), dinov2_weights.recipe_model(cli_files.DINOV2, 3)
    found = Segmenter(*models, CONFIG)
    generator = np.random.default_rng(5)
    for name in ("bird", "boat"):
        image, objects = cli_files.scene(generator, 72)
        found.add(name, [(image, objects[0][1])])
    return found


@pytest.fixture(scope="module")
def client(segmenter):
    with served(lambda address: running.service(segmenter.snapshot(), address, limit=64)) as found:
        yield found


def test_answers_are_those_of_the_segmenter(client, segmenter):
    assert client.get("/v1/classes").json() == [
        {"name": "bird", "category_id": 1, "references": 1, "negatives": 0},
        {"name": "boat", "category_id": 2, "references": 1, "negatives": 0},
    ]
    image = picture(2)
    for query in ({"score_threshold": 0}, {"score_threshold": 0.1, "max_detections": 2, "classes": ["boat"]}):
        answer = client.post("/v1/predict", params=query, files={"image": png(image)})
        expected = segmenter.predict(image, **query)
        body = answer.json()
        assert answer.status_code == 200 and (body["height"], body["width"]) == image.shape[:2]
        assert [d["score"] for d in body["detections"]] == [e["score"] for e in expected.to_coco(0)]
        for found, entry, name in zip(body["detections"], expected.to_coco(0), expected.class_names, strict=True):
            assert found["segmentation"] == entry["segmentation"] and found["bbox"] == entry["bbox"]
            assert (found["class_name"], found["category_id"]) == (name, entry["category_id"])
    assert len(segmenter.predict(image))


def test_fifty_at_once(client, segmenter):
    """None lost, none mixed up."""
    images = [picture(seed, 40 + seed, 90 - seed) for seed in range(50)]

    def ask(image):
        return client.post("/v1/predict", params={"score_threshold": 0}, files={"image": png(image)})

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(ask, images))
    assert [answer.status_code for answer in answers] == [200] * 50
    for image, answer in zip(images[::10], answers[::10], strict=True):
        expected = [entry["segmentation"] for entry in segmenter.predict(image).to_coco(0)]
        assert [one["segmentation"] for one in answer.json()["detections"]] == expected
    text = client.get("/v1/metrics").text
    assert 'ntt_jax_requests_total{route="/v1/predict",status="200"}' in text and "ntt_jax_images_waiting 0" in text


def test_a_full_queue_is_said(segmenter):
    with (
        served(lambda address: running.service(segmenter.snapshot(), address, limit=1)) as client,
        ThreadPoolExecutor(12) as threads,
    ):
        answers = list(threads.map(lambda i: client.post("/v1/predict", files={"image": png(picture(i))}), range(12)))
    busy = [answer for answer in answers if answer.status_code == 429]
    assert busy and {answer.status_code for answer in answers} == {200, 429}
    assert busy[0].headers["retry-after"] and "waiting" in busy[0].json()["detail"]


def test_references_come_and_go(segmenter):
    with served(lambda address: running.service(Segmenter(*segmenter._models, CONFIG), address)) as client:
        image, objects = cli_files.scene(np.random.default_rng(8), 72)
        assert client.post("/v1/predict", files={"image": png(image)}).status_code == 400  # knows no class yet
        files = {"image": png(image), "mask": png(objects[0][1].astype(np.uint8) * 255)}
        added = client.post("/v1/classes/bird/references", files=files)
        assert added.json() == [{"name": "bird", "category_id": 1, "references": 1, "negatives": 0}]
        boxed = {"box": json.dumps([5, 5, 30, 30]), "kind": "negative"}
        added = client.post("/v1/classes/bird/references", files={"image": png(image)}, data=boxed)
        assert added.status_code in (200, 400)  # a random model may make an empty mask of a box
        odd = [
            {"points": text}
            for text in ("5", "null", '"ab"', '{"a": 1}', "[[NaN, 1]]", f"[[{10**400}, 1]]", "[" * 9999)
        ]
        odd += [{"box": text} for text in ("7", '"abcd"', "[1, 2, 3, Infinity]", "true")]
        for data in ({}, {"box": "[1, 2"}, {"box": "[1, 2, 3]"}, {"points": "[[1e999, 2]]"}, {"points": "{}"}, *odd):
            refused = client.post("/v1/classes/bird/references", files={"image": png(image)}, data=data)
            assert refused.status_code == 400, data
            assert "\n" not in refused.json()["detail"]
        expected = Segmenter(*segmenter._models, CONFIG).add("bird", [(image, objects[0][1])])
        answer = client.post("/v1/predict", params={"score_threshold": 0}, files={"image": png(image)}).json()
        if client.get("/v1/classes").json()[0]["negatives"] == 0:
            assert len(answer["detections"]) == len(expected.predict(image))
        assert client.delete("/v1/classes/bird").json() == []
        assert client.delete("/v1/classes/bird").status_code == 400


BAD = {
    "empty": b"",
    "text": b"hello",
    "cut": png(picture(2))[:200],
    "script": b"<svg onload=alert(1)>",
    "bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\0\0\0" + b"\0" * 40,
    "jpeg header": png(picture(2), "JPEG")[:30],
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_uploads_are_refused_in_one_line(client, kind):
    answer = client.post("/v1/predict", files={"image": ("../../etc/passwd", BAD[kind], "image/png")})
    assert answer.status_code == 400
    detail = answer.json()["detail"]
    assert "\n" not in detail and "/tmp" not in detail and "ntt-jax-" not in detail


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", png(picture(2)), png(picture(2), "JPEG"), png(picture(2), "GIF"), b"RIFF\0\0\0\0WEBP"]),
    place=st.integers(0, 4000),
    noise=st.binary(min_size=1, max_size=12),
    cut=st.booleans(),
)
def test_spoiled_uploads_never_are_a_fault(client, start, place, noise, cut):
    """What can be decoded is answered, the rest is refused; never a 500."""
    place = min(place, len(start))
    data = start[:place] + noise + (b"" if cut else start[place + len(noise) :])
    answer = client.post("/v1/predict", files={"image": data})
    assert answer.status_code in (200, 400), answer.text


def test_bad_requests_are_refused(client):
    cases = [
        client.post("/v1/predict"),
        client.post("/v1/predict", content=b"\0" * 100, headers={"content-type": "multipart/form-data; boundary=x"}),
        client.post("/v1/predict", content=b"{}", headers={"content-type": "application/json"}),
        client.post("/v1/predict", files={"image": png(picture(1))}, params={"score_threshold": "nan"}),
        client.post("/v1/predict", files={"image": png(picture(1))}, params={"max_detections": 0}),
        client.post("/v1/predict", files={"image": png(picture(1))}, params={"classes": ["<script>"]}),
    ]
    form = "multipart/form-data; boundary=x"
    for kind, body in (
        ("multipart/form-data", b"--x\r\n\r\n--x--"),
        ("multipart/form-data; boundary=" + "y" * 5000, b""),
        (form, b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n\r\n' * 3000 + b"--x--\r\n"),
        (form, b"--x\r\n" + b"A: b\r\n" * 5000 + b"\r\n--x--"),
        (form, b"--x\r\nContent-Disposition: form-data; name*=utf-8''image; filename*=utf-8''%00\r\n\r\na\r\n--x--"),
    ):
        cases.append(client.post("/v1/predict", content=body, headers={"content-type": kind}))
    for name in ("../../x", "/etc/passwd", "a\0b", "\u202egpj", "C:\\x", "x" * 9000):
        cases.append(client.post("/v1/predict", files={"image": (name, b"no image", "text/html")}))
    long = "x" * 101
    cases.append(
        client.post(f"/v1/classes/{long}/references", files={"image": png(picture(1))}, data={"box": "[1,1,9,9]"})
    )
    for answer in cases:
        assert answer.status_code in (400, 422), answer.text
        assert isinstance(answer.json()["detail"], str) and "\n" not in answer.json()["detail"]
    for path in ("/static/../api.py", "/static/..%2fapi.py", "/static/%2e%2e/guard.py", "/static/__init__.py", "/v2/x"):
        assert client.get(path).status_code == 404


def test_the_description_and_its_page_need_nothing_from_elsewhere(client):
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert {"/v1/predict", "/v1/classes", "/v1/health", "/v1/metrics", "/v1/classes/{name}/references"} <= set(paths)
    page = client.get("/docs").text
    assert client.get("/").text == page
    assert "http:" not in page and "https:" not in page
    for name in ("docs.js", "dom.js", "app.css", "masks.js"):
        assert client.get(f"/static/{name}").status_code == 200


def test_the_description_says_all_that_a_client_needs(client):
    """The token, files, and one shape of errors; and what it says of an answer is true of that answer."""
    api = client.get("/v1/openapi.json").json()
    schemas, validator = api["components"]["schemas"], pytest.importorskip("jsonschema").Draft202012Validator
    assert api["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    problem = {"$ref": "#/components/schemas/Problem"}
    for path, methods in api["paths"].items():
        for operation in methods.values():
            assert operation["operationId"].isidentifier()
            assert ("security" in operation) == (path != "/v1/health")
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and path != "/v1/metrics":
                    assert answer["content"]["application/json"]["schema"] == problem, (path, status)
    for body in ("Body_predict", "Body_add_reference"):
        assert schemas[body]["properties"]["image"]["format"] == "binary"

    def is_as_said(answer, path, method):
        said = api["paths"][path][method]["responses"][str(answer.status_code)]
        schema = said["content"]["application/json"]["schema"]
        validator({**schema, "components": api["components"]}).validate(answer.json())

    image = {"image": png(picture(2))}
    is_as_said(client.get("/v1/health"), "/v1/health", "get")
    is_as_said(client.get("/v1/classes"), "/v1/classes", "get")
    found = client.post("/v1/predict", files=image, params={"score_threshold": 0})
    is_as_said(found, "/v1/predict", "post")
    assert found.json()["detections"]
    is_as_said(client.post("/v1/predict", files={"image": b"none"}), "/v1/predict", "post")
    is_as_said(client.post("/v1/predict", files=image, params={"max_detections": 0}), "/v1/predict", "post")
    is_as_said(client.get("/v1/classes", headers={"authorization": "Bearer x"}), "/v1/classes", "get")
    is_as_said(client.get("/v1/classes", headers={"origin": "null"}), "/v1/classes", "get")
    assert set(client.get("/v1/nothing").json()) == set(client.put("/v1/predict").json()) == {"detail"}


def test_a_full_disk_is_said(client):
    """What is sent is decoded from a file. The caller hears that it is the server's disk; the next one is served."""
    image = {"image": png(picture(2))}
    with full_disk():
        answer = client.post("/v1/predict", files=image)
    assert answer.status_code == 507 and "File too large" in answer.json()["detail"]
    assert client.post("/v1/predict", files=image).status_code == 200
