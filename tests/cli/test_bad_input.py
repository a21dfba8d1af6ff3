"""Bad input of every kind through the command line: exit status 2 and one line that names it, never a traceback."""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cli_files import DINOV2, World, arguments, convert, make_world, run

from ntt_jax.cli import main

Case = Callable[[World, Path], tuple[list[str], str]]
CASES: dict[str, Case] = {}
ODD: dict[str, Case] = {}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


def case(function: Case) -> Case:
    """Register a kind of bad input: it prepares files and returns the arguments and what the message must contain."""
    CASES[function.__name__] = function
    return function


def odd(function: Case) -> Case:
    """Register an entry that refuses nothing: it is read or left out, and the line that says so contains the words."""
    ODD[function.__name__] = function
    return function


def sample(world: World, tmp: Path, **replaced: Any) -> list[str]:
    options = {"annotations": world.train, "classes": "all", "shots": 1, "out": tmp / "references.json"}
    return ["sample", *arguments(options | replaced)]


def memory(world: World, tmp: Path, **replaced: Any) -> list[str]:
    options = {
        "dinov2": world.dinov2,
        "annotations": world.train,
        "images": world.images,
        "references": world.references,
        "out": tmp / "memory.safetensors",
        "devices": 1,
        "compilation_cache": "none",
    }
    return ["memory", *arguments(options | replaced)]


def segment(world: World, tmp: Path, *images: Path, **replaced: Any) -> list[str]:
    options = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory, "out": tmp / "out"}
    options |= {"devices": 1, "compilation_cache": "none"}
    return ["segment", *map(str, images), *arguments(options | replaced)]


def changed(source: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of a JSON file with a change."""
    content = json.loads(source.read_text())
    target.write_text(json.dumps(change(content) or content))
    return target


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Arguments.


@case
def no_command(world, tmp):
    return [], "COMMAND"


@case
def unknown_command(world, tmp):
    return ["train"], "train"


@case
def unknown_option(world, tmp):
    return [*sample(world, tmp), "--shot"], "--shot"


@case
def missing_option(world, tmp):
    return sample(world, tmp, out=None), "--out"


@case
def shots_not_a_number(world, tmp):
    return sample(world, tmp, shots="many"), "whole number"


@case
def no_shots(world, tmp):
    return sample(world, tmp, shots=0), "whole number"


@case
def threshold_not_a_number(world, tmp):
    return world.evaluate(tmp / "out", pred_iou_threshold="nan"), "from 0 to 1"


@case
def batch_of_nothing(world, tmp):
    return world.evaluate(tmp / "out", batch_size=0), "--batch-size"


@case
def unknown_dtype(world, tmp):
    return world.evaluate(tmp / "out", dtype="float16"), "bfloat16"


@case
def more_devices_than_there_are(world, tmp):
    return world.evaluate(tmp / "out", devices=999, compilation_cache="none"), "--devices: 999"


@case
def cache_that_others_can_write(world, tmp):
    (tmp / "cache").mkdir()
    (tmp / "cache").chmod(0o777)
    return world.evaluate(tmp / "out", compilation_cache=tmp / "cache"), "--compilation-cache"


@case
def cache_that_is_a_file(world, tmp):
    return world.evaluate(tmp / "out", compilation_cache=written(tmp / "cache", "x")), "--compilation-cache"


# Paths.


@case
def annotations_that_do_not_exist(world, tmp):
    return sample(world, tmp, annotations=tmp / "no.json"), "no.json"


@case
def annotations_that_are_a_folder(world, tmp):
    return sample(world, tmp, annotations=tmp), "folder"


@case
def path_with_a_null_byte(world, tmp):
    return sample(world, tmp, annotations="a\0b"), "--annotations"


@case
def images_that_are_a_file(world, tmp):
    return world.evaluate(tmp / "out", images=world.val), "expected a folder"


@case
def devices_of_a_cluster(world, tmp):
    return world.evaluate(tmp / "out", devices=1, ray="local"), "--devices: is of one machine"


@case
def output_in_a_folder_that_does_not_exist(world, tmp):
    return sample(world, tmp, out=tmp / "no" / "references.json"), "does not exist"


@case
def output_that_is_a_folder(world, tmp):
    return sample(world, tmp, out=tmp), "--out"


@case
def run_folder_that_is_a_file(world, tmp):
    return world.evaluate(written(tmp / "out", "x")), "--out"


@case
def wrong_image_folder(world, tmp):
    (tmp / "elsewhere").mkdir()
    return world.evaluate(tmp / "out", images=tmp / "elsewhere"), "none of the 20 images"


@case
def folder_without_images(world, tmp):
    (tmp / "empty").mkdir()
    return segment(world, tmp, tmp / "empty"), "holds no image"


@case
def image_that_does_not_exist(world, tmp):
    return segment(world, tmp, tmp / "no.jpg"), "no.jpg"


# Annotation files.


@case
def annotations_that_are_not_json(world, tmp):
    return sample(world, tmp, annotations=written(tmp / "a.json", '{"images": [')), "not valid JSON"


@case
def empty_annotation_file(world, tmp):
    return sample(world, tmp, annotations=written(tmp / "a.json", "")), "empty"


@case
def binary_annotation_file(world, tmp):
    return sample(world, tmp, annotations=written(tmp / "a.json", bytes(range(256)))), "a.json"


@case
def annotations_that_are_not_coco(world, tmp):
    return sample(world, tmp, annotations=written(tmp / "a.json", '[{"file": "a.jpg"}]')), "COCO"


@case
def annotations_without_categories(world, tmp):
    path = changed(world.train, tmp / "a.json", lambda c: {k: v for k, v in c.items() if k != "categories"})
    return sample(world, tmp, annotations=path), '"categories" is missing'


@odd
def ids_as_text(world, tmp):
    path = changed(world.train, tmp / "a.json", lambda c: c["images"][0].update(id="1000"))
    return sample(world, tmp, annotations=path), "ids of images that are text"


@odd
def image_id_twice(world, tmp):
    path = changed(world.train, tmp / "a.json", lambda c: c["images"][1].update(id=c["images"][0]["id"]))
    return sample(world, tmp, annotations=path), "ids of several images"


@odd
def file_name_outside_the_folder(world, tmp):
    path = changed(world.val, tmp / "a.json", lambda c: c["images"][0].update(file_name="../../etc/passwd"))
    return world.evaluate(tmp / "out", annotations=path), "images skipped, which count as missed: 1 of 20"


@odd
def box_that_is_not_a_number(world, tmp):
    path = changed(world.train, tmp / "a.json", lambda c: c["annotations"][0].update(bbox=[0, 0, float("nan"), 5]))
    return sample(world, tmp, annotations=path), "boxes that are not four finite numbers"


@odd
def annotation_of_no_image(world, tmp):
    path = changed(world.train, tmp / "a.json", lambda c: c["annotations"][0].update(image_id=5))
    return sample(world, tmp, annotations=path), "annotations of images that are not in the file, left out: 1"


@odd
def mask_of_another_size(world, tmp):
    path = changed(world.val, tmp / "a.json", lambda c: c["annotations"][0]["segmentation"].update(size=[5, 5]))
    return world.evaluate(tmp / "out", annotations=path), "size"


@odd
def mask_that_is_not_an_encoding(world, tmp):
    path = changed(world.val, tmp / "a.json", lambda c: c["annotations"][0]["segmentation"].update(counts="~~~"))
    return world.evaluate(tmp / "out", annotations=path), "counts"


@case
def no_images_to_evaluate(world, tmp):
    path = changed(world.val, tmp / "a.json", lambda c: c.update(images=[], annotations=[]))
    return world.evaluate(tmp / "out", annotations=path), "lists no image"


@case
def nested_too_deeply(world, tmp):
    return sample(world, tmp, annotations=written(tmp / "a.json", "[" * 100_000)), "nested too deeply"


# Classes.


@case
def class_that_does_not_exist(world, tmp):
    return sample(world, tmp, classes="disk"), "did you mean 'disc'"


@case
def class_list_that_does_not_fit(world, tmp):
    return sample(world, tmp, classes="novel"), "has no category 'person'"


@case
def empty_class_list(world, tmp):
    return sample(world, tmp, classes=","), "no class chosen"


@case
def too_few_references(world, tmp):
    return sample(world, tmp, shots=1000), "--allow-fewer"


@case
def memory_of_other_classes(world, tmp):
    path = changed(world.val, tmp / "a.json", lambda c: c["categories"][0].update(name="circle"))
    return world.evaluate(tmp / "out", annotations=path), "'square'"


@case
def class_the_memory_lacks(world, tmp):
    return segment(world, tmp, world.images, classes="square,barr"), "did you mean bar"


# References.


@case
def negatives_of_other_classes(world, tmp):
    path = changed(world.train, tmp / "n.json", lambda c: c.update(annotations=[]))
    return memory(world, tmp, negatives=path), "no annotation is of a class of the references"


@case
def negatives_whose_images_are_elsewhere(world, tmp):
    (tmp / "empty").mkdir()
    return memory(world, tmp, negatives=world.train, negative_images=tmp / "empty"), "with --negative-images"


@case
def negative_images_without_negatives(world, tmp):
    return memory(world, tmp, negative_images=world.images), "--negatives"


@case
def sigma_that_is_not_positive(world, tmp):
    return world.evaluate(tmp / "out", negative_sigma=0), "above 0"


@case
def negatives_of_a_run_that_is_none(world, tmp):
    return ["negatives", str(tmp), "--out", str(tmp / "n.json")], "holds no results.json"


@case
def references_that_are_not_ours(world, tmp):
    return memory(world, tmp, references=written(tmp / "r.json", "{}")), "not a reference file"


@case
def references_of_another_annotation_file(world, tmp):
    return memory(world, tmp, annotations=world.val), "sha256"


@case
def reference_that_does_not_exist(world, tmp):
    path = changed(
        world.references, tmp / "r.json", lambda c: c["classes"][0]["references"][0].update(annotation_id=99999)
    )
    return memory(world, tmp, references=path), "no such annotation"


@case
def reference_without_a_pixel(world, tmp):
    reference = json.loads(world.references.read_text())["classes"][0]["references"][0]

    def empty(content):
        for entry in content["annotations"]:
            if entry["id"] == reference["annotation_id"]:
                size = entry["segmentation"]["size"]
                entry["segmentation"] = {"size": size, "counts": [size[0] * size[1]]}

    annotations = changed(world.train, tmp / "a.json", empty)
    references = changed(world.references, tmp / "r.json", lambda c: c.update(annotations={}))
    words = f"annotation {reference['annotation_id']}: the annotation's mask has no pixel"
    return memory(world, tmp, annotations=annotations, references=references), words


@case
def reference_image_that_is_missing(world, tmp):
    (tmp / "images").mkdir()
    return memory(world, tmp, images=tmp / "images"), "No such file"


@case
def pickle_with_a_payload(world, tmp):
    class Payload:
        def __reduce__(self):
            return os.system, ("echo pwned",)

    return memory(world, tmp, references=written(tmp / "r.pkl", pickle.dumps(Payload()))), "refused"


# Checkpoints and memories.


@case
def checkpoint_that_is_not_converted(world, tmp):
    original = world.folder / "tiny_dinov2_3_meta.safetensors"
    return memory(world, tmp, dinov2=original), "python -m weight_port convert"


@case
def checkpoint_that_is_cut_short(world, tmp):
    path = written(tmp / "w.safetensors", world.dinov2.read_bytes()[:-100])
    return memory(world, tmp, dinov2=path), "w.safetensors"


@case
def checkpoints_mixed_up(world, tmp):
    return world.evaluate(tmp / "out", sam2=world.dinov2, compilation_cache="none"), "tiny_dinov2"


@case
def memory_file_that_is_none(world, tmp):
    path = tmp / "m.safetensors"
    safetensors.numpy.save_file({"prototypes": np.zeros((3, 24), np.float32)}, path)
    return world.evaluate(tmp / "out", memory=path), "not a memory file"


@case
def memory_with_a_lying_header(world, tmp):
    return world.evaluate(tmp / "out", memory=written(tmp / "m.safetensors", b"\xff" * 64)), "not a safetensors file"


@case
def memory_of_another_encoder_size(world, tmp):
    other = convert(tmp, dataclasses.replace(DINOV2, name="wide", embed_dim=36))
    return world.evaluate(tmp / "out", dinov2=other), "embed_dim 24"


@case
def memory_of_other_weights(world, tmp):
    return world.evaluate(tmp / "out", dinov2=convert(tmp, DINOV2, seed=4)), "made with other weights of tiny_dinov2"


# What the run folder holds.


@case
def damaged_run_folder(world, tmp):
    (tmp / "out").mkdir()
    written(tmp / "out" / "run.json", "{")
    written(tmp / "out" / "finished.records", "something\n")
    return world.evaluate(tmp / "out"), "--restart"


@case
def no_image_can_be_read(world, tmp):
    written(tmp / "a.jpg", "not an image")
    return segment(world, tmp, tmp / "a.jpg"), "a.jpg"


@pytest.mark.parametrize("name", ODD)
def test_an_odd_entry_is_counted_in_one_line_and_the_rest_is_used(world, tmp_path, capsys, name):
    command, words = ODD[name](world, tmp_path)
    assert main(command) == 0
    captured = capsys.readouterr()
    noted = [line for line in captured.err.splitlines() if line.startswith("ntt-jax: ")]
    assert any(words in line and line.isprintable() for line in noted), captured.err
    assert captured.out and "Traceback" not in captured.err


def test_there_are_many_kinds():
    assert len(CASES) >= 50 and len(ODD) >= 7


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_status_2(world, tmp_path, capsys, name):
    command, words = CASES[name](world, tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert main(command) == 2
    captured = capsys.readouterr()
    lines = [
        line for line in captured.err.splitlines() if not line.startswith(("memory:", "segment:", "ntt-jax: skipped"))
    ]
    assert len(lines) == 1 and lines[0].startswith("ntt-jax: error: "), captured.err
    assert words in lines[0] and lines[0].isprintable()
    assert captured.out == ""
    # Nothing is left half-written; what a run folder keeps is no outcome.
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {path.name for path in before}
    assert left <= {"lock", "run.json", "finished.records"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
@pytest.mark.parametrize("option", ["annotations", "dinov2"])
def test_a_file_that_may_not_be_read(world, tmp_path, capsys, option):
    path = shutil.copy(getattr(world, {"annotations": "train"}.get(option, option)), tmp_path / "secret")
    os.chmod(path, 0)
    assert main(memory(world, tmp_path, **{option: path})) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_real_processes_say_the_same(world, tmp_path):
    """The console script itself: nothing but the line on stderr."""
    error = run(sample(world, tmp_path, classes="disk"), status=2)
    assert error.startswith("ntt-jax: error: unknown class 'disk'") and error.count("\n") == 1
    error = run(world.evaluate(tmp_path / "out", sam2=world.dinov2, compilation_cache="none"), status=2)
    assert error.splitlines()[-1].startswith("ntt-jax: error: ")
