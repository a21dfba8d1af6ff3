"""`ntt-jax reproduce` from nothing to the verdict, on a tiny COCO that the server on this machine has."""

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import cli_files
import numpy as np
import pytest
from hub_server import Fault
from PIL import Image
from voc_files import write_image, write_list, write_voc

from ntt_jax.cli import main
from ntt_jax.config import to_dict
from ntt_jax.datasets.class_lists import CLASS_LISTS, COCO_CLASSES
from ntt_jax.errors import InputError
from ntt_jax.hub import names, resolve
from ntt_jax.images.rle import encode_masks
from ntt_jax.reproduce import by_hand, coco, verdict
from ntt_jax.reproduce.published import BENCHMARKS, BY_HAND

NOVEL = [i for i, name in COCO_CLASSES.items() if name in CLASS_LISTS["novel"]]
MODELS = {"sam2.1_hiera_tiny": cli_files.SAM2, "dinov2_vits14": cli_files.DINOV2}
ANNOTATIONS, VAL = "annotations/annotations_trainval2017.zip", "zips/val2017.zip"


def scenes(split: str, count: int, seed: int) -> tuple[dict, dict[str, bytes]]:
    """COCO's JSON of `count` images with one coloured box each, of the novel classes in turn, and the images."""
    generator = np.random.default_rng(seed)
    content: dict = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": name} for i, name in COCO_CLASSES.items()]
    files = {}
    for index in range(count):
        category = NOVEL[index % len(NOVEL)]
        image = generator.integers(90, 140, (80, 90, 3)).astype(np.uint8)
        mask = np.zeros((80, 90), np.bool_)
        top, left = (int(v) for v in generator.integers(12, 20, 2))
        mask[top : top + 40, left : left + 45] = True
        image[mask] = np.random.default_rng(category).integers(0, 256, 3)
        name = f"{1000 + index:012}.jpg"
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG")
        files[f"{split}/{name}"] = file.getvalue()
        content["images"].append({"id": 1000 + index, "file_name": name, "height": 80, "width": 90})
        content["annotations"].append(
            {
                "id": 1 + index,
                "image_id": 1000 + index,
                "category_id": category,
                "bbox": [left, top, 45, 40],
                "area": 1800,
                "iscrowd": 0,
                "segmentation": encode_masks(mask[None])[0],
            }
        )
    return content, files


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.fixture
def world(hub, monkeypatch, tmp_path):
    """The server has COCO too. Returns the command, for a folder that does not exist yet."""
    for name, config in MODELS.items():  # smaller still than the other tests' models, and from Meta's addresses
        cli_files.convert(tmp_path, config)
        data = (tmp_path / f"{config.name}_3_meta.safetensors").read_bytes()
        known = dataclasses.replace(
            names.PUBLISHED[name], given=to_dict(config), sha256=hashlib.sha256(data).hexdigest(), size=len(data)
        )
        monkeypatch.setitem(names.PUBLISHED, name, known)
        hub.meta[known.meta_path] = data
        del hub.repositories[known.repository]
    train, train_files = scenes("train2017", 45, 1)
    val, val_files = scenes("val2017", 6, 2)
    jsons = {"train": train, "val": val, "captions": {}}
    hub.meta[ANNOTATIONS] = zipped(
        {f"annotations/instances_{split}2017.json": json.dumps(content).encode() for split, content in jsons.items()}
    )
    hub.meta[VAL] = zipped(val_files)
    hub.meta |= train_files
    monkeypatch.setenv("NTT_JAX_COCO_URL", hub.meta_url)
    monkeypatch.setattr(coco, "_CONNECTIONS", 2)
    return [
        *("reproduce", "coco-30shot", "--data", str(tmp_path / "coco"), "--sam2", "sam2.1_hiera_tiny"),
        *("--dinov2", "dinov2_vits14", "--points-per-side", "4", "--devices", "1", "--cores", "1"),
        *("--compilation-cache", str(tmp_path / "xla")),
    ]


def test_from_nothing_to_the_verdict_with_a_kill_on_the_way(hub, world, tmp_path, capsys):
    data, out = tmp_path / "coco", tmp_path / "out"
    command = [*world, "--shots", "2", "--out", str(out)]
    assert main([*command, "--data", str(tmp_path / "nothing")]) == 2
    assert "--data: expected a folder, found nothing" in capsys.readouterr().err
    data.mkdir()
    assert main(command) == 2
    assert "instances_train2017.json is not there; --download fetches that from http://127" in capsys.readouterr().err

    for name in MODELS:
        resolve(name)
    hub.faults[f"/meta/{VAL}"] = [Fault(after=5000, then="stall")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ntt_jax.cli", *command, "--download"],
        env={**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "60", "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    part = data / "downloads" / "val2017.zip.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 5000):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert "GB to download into" in said and "of space needed" in said

    assert main([*command, "--download"]) == 0
    printed = capsys.readouterr()
    assert hub.ranges(f"/meta/{VAL}") == [None, "bytes=5000-"]
    assert hub.ranges(f"/meta/{ANNOTATIONS}") == [None]
    assert sorted(path.name for path in data.iterdir()) == ["annotations", "train2017", "val2017"]
    fetched = {path for path in hub.paths() if path.startswith("/meta/train2017/")}
    assert len(fetched) == len(list((data / "train2017").iterdir())) == 40  # of 45: those with references only

    outcome = json.loads((out / "reproduce.json").read_text())
    metrics = json.loads((out / "metrics.json").read_text())
    assert [(row["kind"], row["published"], row["tolerance"]) for row in outcome["table"]] == [
        ("bbox", 29.5, 2 * 2.0 + 0.05),
        ("segm", 27.5, 2 * 1.9 + 0.05),
    ]
    assert [row["found"] for row in outcome["table"]] == [100 * metrics[kind]["AP"] for kind in ("bbox", "segm")]
    assert "SAM 2 is tiny_sam2, there sam2_hiera_large" in outcome["verdict"]
    assert "points_per_side is 4" in outcome["verdict"] and "6 images, there 5000" in outcome["verdict"]
    assert "not comparable: " in printed.out and "2 1 boxes 29.5 +- 2.0" in " ".join(printed.out.split())

    # Again: nothing is fetched or computed, and the numbers are those of the separate commands.
    asked = len(hub.requests)
    assert main(command) == 0 and len(hub.requests) == asked
    given = {"sam2": "sam2.1_hiera_tiny", "dinov2": "dinov2_vits14"}
    few = ["--devices", "1", "--compilation-cache", str(tmp_path / "xla")]
    train = ["--annotations", str(coco.Coco(data).train_annotations)]
    references, memory = str(tmp_path / "r.json"), str(tmp_path / "m.safetensors")
    assert main(["sample", *train, "--classes", "novel", "--shots", "2", "--out", references]) == 0
    images = ["--images", str(data / "train2017"), "--references", references]
    assert main(["memory", *train, *images, "--dinov2", given["dinov2"], "--out", memory, *few]) == 0
    evaluate = ["evaluate", "--sam2", given["sam2"], "--dinov2", given["dinov2"], "--memory", memory]
    evaluate += ["--annotations", str(coco.Coco(data).val_annotations), "--images", str(data / "val2017")]
    assert main([*evaluate, "--points-per-side", "4", "--cores", "1", *few, "--out", str(tmp_path / "single")]) == 0
    assert (tmp_path / "single" / "results.json").read_bytes() == (out / "results.json").read_bytes()
    alone = json.loads((tmp_path / "single" / "metrics.json").read_text())
    assert (alone["bbox"], alone["segm"]) == (metrics["bbox"], metrics["segm"])

    (data / "val2017" / "000000001003.jpg").write_bytes(b"")
    assert main([*command, "--shots", "1"]) == 2
    assert "1 of 6 images are not in" in capsys.readouterr().err
    assert main([*world, "--shots", "1,2", "--seeds", "2", "--download"]) == 0
    table = json.loads((data / "ntt-jax" / "novel-1-2shot-seeds33-34" / "reproduce.json").read_text())["table"]
    assert [(row["shots"], row["seeds"]) for row in table] == [(1, 2), (1, 2), (2, 2), (2, 2)]
    assert all(row["found_std"] is not None for row in table)


def test_what_must_be_fetched_by_hand(tmp_path, capsys):
    def said(*arguments):
        assert main(["reproduce", *arguments, "--data", str(tmp_path)]) == 2
        return capsys.readouterr().err

    for name, words in (("voc", "robots.ox.ac.uk"), ("cd-fsod", "CDFSOD-benchmark")):
        assert words in said(name) and "--download: the data of" in said(name, "--download")
        assert "there is nothing to draw" in said(name, "--seeds", "2")
    assert "has reference lists of 1, 5, 10 shots, not of 7" in said("cd-fsod", "--shots", "7")
    write_voc(tmp_path)
    assert "VOC2007/ImageSets/Main/test.txt is not there" in said("voc")
    write_list(tmp_path / "VOCdevkit" / "VOC2007", "Main/test", ["000012"])
    assert "vocsplit/seed1 is not there" in said("voc")
    (tmp_path / "vocsplit" / "seed1").mkdir(parents=True)
    made, lacking = by_hand.tasks(BY_HAND["voc"], tmp_path, [1, 2, 3, 5, 10])
    assert len(made) == 15 and not lacking and (made[14].name, made[14].classes) == ("split3-10shot", "voc-novel3")
    assert made[0].lists == tmp_path / "vocsplit" / "seed1" and made[0].source.parts[-4] == "VOC2007+VOC2012"
    (tmp_path / "vocsplit" / "box_1shot_bird_train.txt").touch()
    assert by_hand.tasks(BY_HAND["voc"], tmp_path, [1])[0][0].lists == tmp_path / "vocsplit"


def test_the_mean_over_runs():
    row = verdict.mean_row(5, [0.1, 0.3], 20.05)
    assert (row.found, row.seeds, row.agrees) == (pytest.approx(20), 2, True)
    assert verdict.mean_row(5, [0.1, 0.3], 20.2).agrees is False
    assert verdict.mean_row(0, [0.1, None], 71.2).found is None and "  all     2" in verdict.format_table(
        [row, verdict.mean_row(0, [0.1, None], 71.2)]
    )


def test_runs_on_what_was_fetched_by_hand(world, tmp_path, capsys, monkeypatch):
    """One set of CD-FSOD, one split of VOC: masks of the references, memory, evaluation, and the table.

    The references have masks, which `ntt-jax masks` keeps: those that random weights make of boxes may be empty.
    """
    weights = ["--sam2", str(tmp_path / f"{cli_files.SAM2.name}_3.safetensors")]
    weights += ["--dinov2", str(tmp_path / f"{cli_files.DINOV2.name}_3.safetensors")]
    few = [*weights, *world[world.index("--points-per-side") :]]
    place = tmp_path / "cd" / "FISH"
    (place / "annotations").mkdir(parents=True)
    for split, stem in (("train", "1_shot"), ("test", "test")):
        content, files = scenes(split, 2, 5)
        used = {one["category_id"] for one in content["annotations"]}
        content["categories"] = [one for one in content["categories"] if one["id"] in used]
        (place / "annotations" / f"{stem}.json").write_text(json.dumps(content))
        (place / split).mkdir()
        for file, data in files.items():
            (place / file).write_bytes(data)
    command = ["reproduce", "cd-fsod", "--data", str(tmp_path / "cd"), "--shots", "1", *few]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "cd" / "ntt-jax" / "cd-fsod-1shot"
    outcome = json.loads((folder / "reproduce.json").read_text())
    alone = json.loads((folder / "FISH-1shot" / "run" / "metrics.json").read_text())
    assert outcome["table"][0]["found"] == 100 * alone["bbox"]["AP"] and outcome["table"][0]["published"] == 18.0
    assert "ArTaxOr, clipart1k, DIOR, NEU-DET, UODD is not there" in outcome["verdict"]
    assert "1 1 boxes 18.0" in printed and "not comparable: " in printed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("masks.json")}
    assert len(before) == 1 and main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("masks.json")} == before
    assert json.loads((folder / "reproduce.json").read_text()) == outcome

    monkeypatch.setattr(by_hand, "VOC_SPLITS", (1,))
    older = write_voc(tmp_path / "voc") / "VOC2007"
    names = CLASS_LISTS["voc-novel1"]
    for number, name in enumerate(names):
        write_image(older, f"00010{number}", [(name, (20, 20, 80, 75), False)], segmented=True)
    images = [f"00010{number}" for number in range(len(names))]
    write_list(older, "Main/trainval", images)
    write_list(older, "Main/test", images[:2])
    lists = tmp_path / "voc" / "vocsplit" / "seed1"
    lists.mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        (lists / f"box_1shot_{name}_train.txt").write_text(f"VOC2007/JPEGImages/{image}.jpg\n")
    assert main(["reproduce", "voc", "--data", str(tmp_path / "voc"), "--shots", "1", *few]) == 0
    folder = tmp_path / "voc" / "ntt-jax" / "voc-1shot"
    outcome = json.loads((folder / "reproduce.json").read_text())
    metrics = json.loads((folder / "split1-1shot" / "run" / "metrics.json").read_text())
    assert outcome["runs"] == {"split1-1shot": metrics["bbox"]["AP50"]} and metrics["images"] == 2
    assert [(row["shots"], row["published"]) for row in outcome["table"]] == [(1, None), (0, None)]
    assert "no published number" in outcome["verdict"]


def test_too_little_space_is_said_first(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
    with pytest.raises(
        InputError, match=r"not enough space: 1\.6 GB of space needed, 820\.0 MB of it for good, 1\.0 GB"
    ):
        coco.require_space(tmp_path, [coco.VAL_IMAGES], 0, said.append)
    assert "about 815.6 MB to download" in said[0]


@pytest.mark.parametrize(
    ("shots", "seeds", "found", "agrees"),
    [
        (30, [33], 0.3684, True),
        (30, [33], 0.3664, False),
        (30, [34], 0.3664, True),
        (30, list(range(10)), 0.3674, False),
        (30, list(range(10)), 0.3686, True),
        (7, [33], 0.3, None),
    ],
)
def test_when_a_number_counts_as_reproduced(shots, seeds, found, agrees):
    row = verdict.row(BENCHMARKS["coco-30shot"], shots, seeds, "bbox", found, None)
    assert row.agrees is agrees
    words = {True: "reproduced: every", False: "NOT reproduced: 1 of 1", None: "no published number"}[agrees]
    assert words in verdict.verdict([row], [])
    same = {"sam2": "sam2_hiera_large", "dinov2": "dinov2_vitl14", "dtype": "float32", "detection": {}}
    assert verdict.differences(BENCHMARKS["coco-30shot"], {**same, "images": 5000, "skipped": 0}) == []
    other = {**same, "dtype": "bfloat16", "images": 5000, "skipped": 3}
    assert len(verdict.differences(BENCHMARKS["coco-30shot"], other)) == 2


@pytest.mark.large
def test_killed_while_it_evaluates(hub, world, tmp_path):
    """Byte-identical results after SIGKILL between the first image and the last, by the same command."""
    command = [*world, "--shots", "1", "--download"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    records = out / "finished.records"
    process = subprocess.Popen(
        [sys.executable, "-m", "ntt_jax.cli", *command, "--out", str(out)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (records.exists() and records.stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "results.json").exists() and not (out / "reproduce.json").exists()
    assert 1 <= records.read_bytes().count(b"\n") < 6
    assert main([*command, "--out", str(out)]) == 0
    for name in ("results.json", "reproduce.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
