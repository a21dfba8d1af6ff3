"""`Segmenter.fit` and `ntt-jax fit` on folders: the memory of the same references given by hand, bit for bit."""

import base64
import json
import subprocess
import sys
import warnings
from pathlib import Path

import cli_files
import dinov2_weights
import numpy as np
import pytest
import sam2_weights
from PIL import Image

from ntt_jax.cli import main
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import select_classes
from ntt_jax.errors import InputError
from ntt_jax.memory.bank import load_memory
from ntt_jax.notes import InputNote
from ntt_jax.references.build import build_memory
from ntt_jax.references.folder import find_references
from ntt_jax.references.sampling import sample_references
from ntt_jax.segmenter.segmenter import Segmenter


@pytest.fixture(scope="module")
def models():
    return sam2_weights.recipe_model(cli_files.SAM2, 3), dinov2_weights.recipe_model(cli_files.DINOV2, 3)


@pytest.fixture(scope="module")
def segmenter(models):
    return Segmenter(*models)


@pytest.fixture(scope="module")
def scenes():
    """Six images, each with the mask of its one object."""
    generator = np.random.default_rng(5)
    made = [cli_files.scene(generator, 72 + 3 * i) for i in range(6)]
    return [(image, mask) for image, [(_, mask)] in made]


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    """Two masks of "bird"; of "boat" a mask in a photo that is inside its LabelMe file, and a rectangle."""
    made = tmp_path_factory.mktemp("references")
    for i, (image, mask) in enumerate(scenes[:4]):
        Image.fromarray(image).save(made / f"{i}.png")
        if i < 2:
            Image.fromarray(mask).save(made / f"{i}_bird.png")
            continue
        y, x = np.nonzero(mask)
        points = [[int(x.min()), int(y.min())], [int(x.max()), int(y.max())]]
        shape = {"label": "boat", "shape_type": "rectangle", "points": points, "group_id": None}
        if i == 2:
            ring = [points[0], [points[1][0], points[0][1]], points[1]]
            shape = {"label": "boat", "shape_type": "polygon", "points": ring, "group_id": None}
        content = {"imagePath": f"{i}.png", "shapes": [shape], "imageData": None}
        content |= {"imageHeight": image.shape[0], "imageWidth": image.shape[1]}
        if i == 2:
            content["imageData"] = base64.b64encode((made / "2.png").read_bytes()).decode()
            (made / "2.png").unlink()
        (made / f"{i}.json").write_text(json.dumps(content))
    return made


def assert_same_memory(found, expected):
    for name in ("prototypes", "instance_means", "valid"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def by_hand(folder: Path, scenes) -> dict[str, list]:
    """The same references without the reader."""
    points = [json.loads((folder / f"{i}.json").read_text())["shapes"][0]["points"] for i in (2, 3)]
    found = find_references(folder).table()["boat"]
    (left, top), (right, bottom) = points[1]
    assert np.asarray(found[0].image).shape == scenes[2][0].shape
    return {
        "bird": [(scenes[0][0], scenes[0][1]), (scenes[1][0], scenes[1][1])],
        "boat": [(scenes[2][0], np.asarray(found[0].mask)), (scenes[3][0], (left, top, right - left, bottom - top))],
    }


def test_fit_takes_a_folder(segmenter, folder, scenes, tmp_path):
    expected = segmenter.fit(by_hand(folder, scenes)).memory
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert segmenter.fit(folder) is segmenter
    assert segmenter.classes == {"bird": 2, "boat": 2}
    assert_same_memory(segmenter.memory, expected)
    segmenter.save(tmp_path / "m.safetensors")
    bank = load_memory(tmp_path / "m.safetensors")
    assert bank.category_ids == (1, 2)
    assert bank.provenance["references"]["1"][0] == {"image": "0.png", "mask": "0_bird.png"}
    assert bank.provenance["references"]["2"][0] == {"image": "2.json", "annotations": "2.json", "shape": 1}
    only = segmenter.fit(find_references(folder, classes=["boat"], shots=1, seed=3))
    assert only.classes == {"boat": 1}


def test_what_cannot_be_used_is_left_out_and_said(segmenter, folder, scenes, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    height, width = scenes[0][1].shape
    # Large enough for a box, too thin for the patch grid.
    speck = np.zeros((height, width), np.bool_)
    speck[4, 5], speck[-3, -2] = True, True
    Image.fromarray(speck).save(tmp_path / "0_bird_2.png")
    Image.fromarray(np.zeros((height, width), np.bool_)).save(tmp_path / "0_bird_3.png")
    with pytest.warns(InputNote) as caught:
        segmenter.fit(tmp_path)
    text = "\n".join(str(one.message) for one in caught)
    assert "its mask is empty on the patch grid" in text and "0_bird_2.png" in text
    assert "an empty mask" in text and segmenter.classes == {"bird": 2, "boat": 2}
    before = segmenter.memory
    (tmp_path / "0_bird.png").unlink()
    (tmp_path / "1_bird.png").unlink()
    with pytest.raises(InputError, match="class 'bird': none of its references can be used: left out: its mask"):
        segmenter.fit(tmp_path)
    assert segmenter.memory is before
    with pytest.raises(InputError, match="expected a folder"):
        segmenter.fit(str(tmp_path / "no"))


def test_a_coco_folder_is_ntt_jax_memory(models, segmenter, tmp_path):
    annotations = cli_files.write_scenes(tmp_path, 8, 4)
    dataset = load_coco(annotations)
    chosen = sample_references(dataset, select_classes(dataset, "all"), 8, 1, allow_fewer=True)
    expected = build_memory(ReferenceEncoder(models[1]), dataset, tmp_path / "images", chosen)
    found = find_references(tmp_path)
    assert list(found.category_ids.values()) == [c.category_id for c in chosen.classes]
    segmenter.fit(found)
    # Every reference alone is what counts, in whatever order.
    for k, entry in enumerate(chosen.classes):
        numbers = [one.number for one in found.table()[entry.name]]
        ids = [list(dataset.annotations)[number - 1] for number in numbers]
        order = [ids.index(reference.annotation_id) for reference in entry.references]
        mine = np.asarray(segmenter.memory.instance_means)[k][order]
        np.testing.assert_array_equal(mine, np.asarray(expected.instance_means)[k][: len(order)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    made = tmp_path_factory.mktemp("weights")
    return [
        f"--sam2={cli_files.convert(made, cli_files.SAM2)}",
        f"--dinov2={cli_files.convert(made, cli_files.DINOV2)}",
    ]


def test_the_command(segmenter, folder, weights, tmp_path, capsys):
    out = tmp_path / "memory.safetensors"
    assert main(["fit", str(folder), "--out", str(out), *weights, "--compilation-cache", "none"]) == 0
    text = capsys.readouterr().out
    assert "4 references of 2 classes in 4 photos; SAM 2 makes the masks of 1 box" in text and "boat: 2" in text
    bank = load_memory(out)
    assert_same_memory(bank.memory, segmenter.fit(folder).memory)
    assert bank.provenance["folder_sha256"] == find_references(folder).sha256()
    again = Segmenter.load(out, *segmenter._models)
    assert again.classes == {"bird": 2, "boat": 2}
    page = tmp_path / "references.html"
    assert main(["references", "--memory", str(out), "--all", "--out", str(page)]) == 0
    text = capsys.readouterr().out
    assert "0_bird.png" in text and "2.json" in text and "4 references of 2 classes" in text and page.stat().st_size
    assert main(["references", "--memory", str(out), "--images", str(folder)]) == 2
    assert "--annotations: give the file" in capsys.readouterr().err


def test_segment_with_references(folder, scenes, weights, tmp_path, capsys):
    """Fit on the way: once, until the references are others."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(scenes[4][0]).save(photos / "a.png")
    arguments = ["segment", str(photos), "--classes", "bird", "--pictures", "none", "--score-threshold", "0"]
    arguments += [*weights, "--compilation-cache", "none", "--points-per-side", "4"]
    given, out = ["--references", str(folder)], tmp_path / "found"
    assert main([*arguments, *given, "--out", str(out)]) == 0
    made = out / "memory.safetensors"
    first = made.stat().st_mtime_ns
    content = json.loads((out / "detections.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png"]
    assert main([*arguments, *given, "--out", str(out)]) == 0
    assert made.stat().st_mtime_ns == first
    assert main([*arguments, "--memory", str(made), "--out", str(out)]) == 0  # the same run
    assert json.loads((out / "detections.json").read_text()) == content
    capsys.readouterr()
    assert main([*arguments, *given, "--memory", str(made), "--out", str(out)]) == 2
    assert "--memory FILE or --references FOLDER, one of the two" in capsys.readouterr().err


def test_masks_alone_need_no_sam2(folder, weights, tmp_path, capsys):
    """Its file is not opened: it may be missing by then."""
    out = tmp_path / "memory.safetensors"
    arguments = ["fit", str(folder), "--classes", "bird", "--out", str(out), weights[1], "--compilation-cache", "none"]
    assert main([*arguments, "--sam2", "sam2_hiera_tiny"]) == 0
    assert load_memory(out).class_names == ("bird",)


def test_dry_run_lists_all_without_jax(folder):
    (folder / "notes.json").write_text('{"shapes": [{"label": "x"}]}')
    code = f"import sys; from ntt_jax.cli import main; main(['fit', {str(folder)!r}, '--dry-run']); "
    code += "print('no JAX' if 'jax' not in sys.modules else 'JAX')"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "bird   mask   0.png   0_bird.png" in text and "boat   box    3.png   3.json object 1" in text
    assert "left out: notes.json: its photo is not in the folders given" in text
    assert "1 bird: 2 masks" in text and "2 boat: 1 masks, 1 boxes" in text
    (folder / "notes.json").unlink()
    assert text.endswith("no JAX\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "."], "--out: name the memory file"),
        (["fit", "nowhere", "--dry-run"], "FOLDER"),
        (["fit", ".", "--out", "no/where.safetensors"], "does not exist"),
        (["fit", ".", "--dry-run"], "no photo and no annotation file"),
        (["fit", ".", "--dry-run", "--shots", "0"], "--shots"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
