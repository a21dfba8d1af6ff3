"""Settings that somebody else wrote: constants of the method, and what a converted file says of its model."""

import json
import struct
from pathlib import Path

import pytest
from cli_files import DINOV2, SAM2, convert
from PIL import Image

from ntt_jax.cli import main
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.hub import cache
from ntt_jax.references.folder import find_references
from weight_port.port import read_converted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"max_candidates": 1' + "0" * 4000 + "}", "max_candidates: expected .*found an integer of"),
        ('{"negative_sigma": 1' + "0" * 4000 + "}", "negative_sigma: expected .*found an integer of"),
        ('{"iou_power": 1e999}', "iou_power: expected .*found inf"),
        ('{"iou_power": NaN}', "NaN is no number"),
        ('{"top": 1, "top": 2}', "the same key twice"),
    ],
    ids=["integer", "integer for a float", "infinity", "NaN", "twice"],
)
def test_constants_of_the_method(tmp_path, text, words):
    path = tmp_path / "method.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        DetectConfig.from_file(path)
    assert len(str(caught.value)) < 500


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, Path]:
    """A converted file of each model."""
    folder = tmp_path_factory.mktemp("converted")
    return {"dinov2": convert(folder, DINOV2), "sam2": convert(folder, SAM2)}


SAID = {
    "input of a million pixels": ("dinov2", {"input_size": 2**20}, "input_size a multiple of patch_size 14"),
    "input of 20,006 pixels": ("dinov2", {"input_size": 20_006}, "and at most 2048, found 20006"),
    "no input": ("dinov2", {"input_size": 0}, "expected input_size a multiple"),
    "half a patch": ("dinov2", {"input_size": 77}, "expected input_size a multiple"),
    "image of a million pixels": ("sam2", {"image_size": 2**20}, "image_size: expected a multiple of 32 up to 2048"),
    "windows of a million": (
        "sam2",
        {"hiera": {"window_spec": [8, 4, 4, 2**20]}},
        "window_spec: expected sizes from 1",
    ),
    "windows of nothing": ("sam2", {"hiera": {"window_spec": [8, 4, 4, 0]}}, "window_spec: expected sizes from 1"),
    "all places at once": (
        "sam2",
        {"image_size": 2048, "hiera": {"global_att_blocks": [0]}},
        "stage 0 has 512 x 512 places",
    ),
}
"""What no tensor shows: a lie about it cost gigabytes when the model ran, or ended in a traceback."""


@pytest.mark.parametrize("name", SAID)
def test_sizes_that_no_tensor_shows(tmp_path, converted, name):
    kind, changed, words = SAID[name]
    data = converted[kind].read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    config |= changed | ({"hiera": config["hiera"] | changed["hiera"]} if "hiera" in changed else {})
    header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    path = tmp_path / "changed.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(InputError, match=words):
        read_converted(path)


@pytest.mark.parametrize("kind", [["polygon"], {"a": 1}, 5, True, "\x1b[2J"])
def test_a_labelme_shape_of_no_kind(tmp_path, kind):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    shape = {"label": "dog", "points": [[1, 1], [30, 1], [30, 30]], "shape_type": kind}
    for name in ("a", "b"):  # one of them is nothing at all, which two kinds of files say
        (tmp_path / f"{name}.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    (tmp_path / "c.json").touch()
    with pytest.raises(InputError, match=r"surrounds nothing: 2 \(the first: a.json object 1\)") as caught:
        find_references(tmp_path)
    assert "found an empty file: 1 (c.json)" in str(caught.value) and str(caught.value).isprintable()


def test_names_of_files_in_the_cache_are_shown_clean(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NTT_JAX_CACHE", str(tmp_path))
    place = cache.folder() / "converted" / "\x1b[2J.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    record = {"sha256": "a" * 64, "size": 1, "source_sha256": "\x1b[2J"}
    cache.write_record(place.with_suffix(".json"), record)
    assert main(["weights", "verify"]) == 2
    said = capsys.readouterr()
    assert "DAMAGED" in said.out and "1 damaged: delete" in said.err
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))
