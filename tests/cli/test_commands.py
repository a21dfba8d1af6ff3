import base64
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_files import CLASSES, arguments, make_world, run, start
from PIL import Image
from pycocotools.coco import COCO

import ntt_jax
from ntt_jax import cli
from ntt_jax.cli import main
from ntt_jax.cli.progress import Progress
from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.images.reading import read_image
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.bank import load_memory
from ntt_jax.references.build import Negatives, build_memory
from ntt_jax.references.negatives import negative_set
from ntt_jax.references.sampling import load_references
from weight_port.identity import fingerprint

COMMANDS = ("demo", "masks", "sample", "memory", "evaluate", "run", "ablate", "segment", "report", "references")
COMMANDS += ("negatives", "import-memory", "fit", "export")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """A run from beginning to end, by the console script in its own process."""
    out = tmp_path_factory.mktemp("finished") / "run"
    process = start(world.evaluate(out))
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "detections in 20 images" in stdout and "Traceback" not in stderr
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--out" in text and "example" in text


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ntt-jax {ntt_jax.__version__}\n"


def test_arguments_are_checked_without_jax():
    code = (
        "import sys; from ntt_jax.cli import main\n"
        "assert main(['--help']) == 0 and main(['evaluate', '--batch-size', 'x']) == 2\n"
        "assert main(['sample', '--annotations', 'no.json', '--classes', 'all', '--shots', '1', '--out', 'r']) == 2\n"
        "assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 2


def test_sample_writes_what_memory_reads(world, capsys):
    references = load_references(world.references)
    assert [(c.category_id, c.name) for c in references.classes] == list(CLASSES.items())
    assert [len(c.references) for c in references.classes] == [2, 2, 2]
    bank = load_memory(world.memory)
    assert (
        bank.class_names == tuple(CLASSES.values()) and bank.category_ids == tuple(CLASSES) and bank.shots == (2, 2, 2)
    )
    assert bank.provenance["annotations_sha256"] == load_coco(world.train).sha256
    assert bank.provenance["encoder_weights"] == fingerprint(load_dinov2(world.dinov2))


def test_sample_names_the_classes_that_are_short(world, tmp_path, capsys):
    options = {"annotations": world.train, "classes": "square,bar", "shots": 9, "out": tmp_path / "references.json"}
    assert main(["sample", *arguments(options)]) == 2
    assert "fewer than 9 valid references for" in capsys.readouterr().err
    assert not (tmp_path / "references.json").exists()
    assert main(["sample", *arguments(options), "--allow-fewer"]) == 0
    assert "warning: fewer than 9 references for" in capsys.readouterr().err
    assert len(load_references(tmp_path / "references.json").classes) == 2


def test_sample_leaves_out_classes_without_a_usable_reference(world, tmp_path, capsys):
    content = json.loads(world.train.read_text())
    for entry in content["annotations"]:
        entry["isimpossible"] = int(entry["category_id"] == 8)
    (tmp_path / "a.json").write_text(json.dumps(content))
    options = {"annotations": tmp_path / "a.json", "shots": 2, "out": tmp_path / "r.json", "drop_empty": True}
    assert main(["sample", *arguments(options | {"classes": "all"})]) == 0
    assert "left out, without a usable reference: bar (3 of 3 annotations: marked " in capsys.readouterr().err
    assert [chosen.name for chosen in load_references(tmp_path / "r.json").classes] == ["square", "disc"]
    assert main(["sample", *arguments(options | {"classes": "bar"})]) == 2
    assert "none of them has a usable reference" in capsys.readouterr().err
    assert main(["sample", *arguments(options | {"classes": "all", "lists": tmp_path})]) == 2
    assert "--lists brings its own" in capsys.readouterr().err


def test_evaluate_writes_files_that_pycocotools_loads(world, finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    results = json.loads((finished / "results.json").read_text())
    assert metrics["images"] == 20 and metrics["detections"] == len(results) > 5 and metrics["skipped"] == []
    assert {"AP", "AP50", "AP75"} <= set(metrics["bbox"]) & set(metrics["segm"])
    truth = COCO(str(world.val))
    found = truth.loadRes(str(finished / "results.json"))
    assert len(found.anns) == len(results)
    assert {entry["category_id"] for entry in results} <= set(CLASSES)
    provenance = metrics["provenance"]
    assert provenance["annotation file"] == load_coco(world.val).sha256
    assert provenance["detection options"]["points_per_side"] == 4


def test_a_finished_run_is_not_done_again(world, finished, capsys, monkeypatch):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.name != "lock"}
    monkeypatch.setattr("ntt_jax.runs.models.TargetPass.load", lambda *_: pytest.fail("nothing was left to compute"))
    assert main(world.evaluate(finished)) == 0
    assert "detections in 20 images" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.name != "lock"} == before


def test_report_finds_the_files_of_a_finished_run(world, finished, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(finished), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "detections in 20 images" in captured.out
    # The references are from another annotation file, which `evaluate` never sees.
    assert captured.err.count("\n") == 1 and "give --reference-annotations" in captured.err
    assert main(["report", str(finished), "--out", str(out), "--reference-annotations", str(world.train)]) == 0
    assert capsys.readouterr().err == ""


def test_references_are_encoded_and_shown(world, tmp_path, capsys):
    shared = {"annotations": world.train, "images": world.images, "references": world.references}
    page = tmp_path / "page.html"
    options = shared | {"dinov2": world.dinov2, "out": page, "json": True, "compilation_cache": "none", "devices": 1}
    assert main(["references", *arguments(options)]) == 0
    encoded = json.loads(capsys.readouterr().out)
    options = {"memory": world.memory, "annotations": world.train, "json": True}
    assert main(["references", *arguments(options)]) == 0
    known = json.loads(capsys.readouterr().out)  # the memory was made of the same references
    assert len(known) == 6
    for one, other in zip(encoded, known, strict=True):
        numbers = [(row.pop("own"), row.pop("nearest_cosine"), row.pop("margin")) for row in (one, other)]
        assert one == other and numbers[0] == pytest.approx(numbers[1], abs=1e-5)
    block = re.search(r'id="pictures">(.*?)</script>', page.read_text(), re.S)
    assert block is not None
    patches = json.loads(block[1])["patches"]  # of each class, a picture for each of its two references
    assert [len(strips) for strips in patches] == [2, 2, 2]
    picture = Image.open(io.BytesIO(base64.b64decode(patches[0][0].split(",")[1])))
    assert picture.width == 3 * picture.height  # the crop, its components, its clusters
    colours = np.asarray(picture)[:, picture.height :].reshape(-1, 3)
    assert len(np.unique(colours // 32, axis=0)) > 20


def test_negatives_of_a_run_serve_the_next_memory(world, finished, tmp_path, capsys):
    """From a run's mistakes to a memory that knows them, and what is found with it, step by step."""
    file, pictures = tmp_path / "negatives.json", tmp_path / "check"
    assert main(["negatives", str(finished), "--out", str(file), "--per-class", "2", "--pictures", str(pictures)]) == 0
    assert "negatives.json: " in capsys.readouterr().out
    negatives, train = load_coco(file), load_coco(world.train)
    assert len(list(pictures.iterdir())) == len(negatives.images) > 0
    options = {"dinov2": world.dinov2, "annotations": world.train, "images": world.images, "negatives": file}
    options |= {"references": world.references, "out": tmp_path / "memory.safetensors", "devices": 1}
    assert main(["memory", *arguments(options | {"compilation_cache": world.cache})]) == 0
    assert "negative" in capsys.readouterr().out
    bank, plain = load_memory(options["out"]), load_memory(world.memory)
    assert sum(bank.negative_shots) == len(negatives.annotations) and max(bank.negative_shots) == 2
    np.testing.assert_array_equal(bank.memory.prototypes, plain.memory.prototypes)
    given = Negatives(negatives, world.images, negative_set(negatives, load_references(world.references)))
    encoder = ReferenceEncoder(load_dinov2(world.dinov2))
    built = build_memory(encoder, train, world.images, load_references(world.references), negatives=given)
    np.testing.assert_array_equal(bank.memory.negatives, built.negatives)
    assert set(bank.provenance) - set(plain.provenance) == {"negatives", "negatives_sha256"}

    photo = next(world.images.iterdir())
    options = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": options["out"], "out": tmp_path / "found"}
    options |= {"points_per_side": 4, "score_threshold": 0, "negative_sigma": 0.1, "pictures": "none", "devices": 1}
    assert main(["segment", str(photo), *arguments(options | {"compilation_cache": world.cache})]) == 0
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"]
    predictor = Predictor(
        load_sam2(world.sam2),
        load_dinov2(world.dinov2),
        built.prototypes,
        DetectConfig(points_per_side=4, negative_sigma=0.1),
        negatives=built.negatives,
        canvas=640,
    )
    (expected,) = predictor([read_image(photo)])
    assert [one["score"] for one in found] == [pytest.approx(float(s), abs=1e-7) for s in expected.scores]


def test_run_equals_the_three_commands(world, finished, tmp_path):
    options = {
        "sam2": world.sam2,
        "dinov2": world.dinov2,
        "reference_annotations": world.train,
        "annotations": world.val,
        "images": world.images,
        "classes": "all",
        "shots": 2,
        "out": tmp_path / "run",
        "points_per_side": 4,
        "devices": 1,
        "compilation_cache": world.cache,
    }
    run(["run", *arguments(options)])
    for ours, theirs in (
        ("references.json", world.references),
        ("results.json", finished / "results.json"),
        ("metrics.json", finished / "metrics.json"),
    ):
        assert (tmp_path / "run" / ours).read_bytes() == theirs.read_bytes(), ours


def test_run_refuses_other_references_in_its_folder(world, tmp_path, capsys):
    (tmp_path / "references.json").write_bytes(world.references.read_bytes())
    options = {
        "sam2": world.sam2,
        "dinov2": world.dinov2,
        "reference_annotations": world.train,
        "annotations": world.val,
        "images": world.images,
        "classes": "all",
        "shots": 1,
        "out": tmp_path,
    }
    assert main(["run", *arguments(options)]) == 2
    assert "--restart" in capsys.readouterr().err
    assert (tmp_path / "references.json").read_bytes() == world.references.read_bytes()


@pytest.mark.parametrize(
    ("replaced", "named"),
    [
        ({"points_per_side": 5}, "points_per_side (was 4, now 5)"),
        ({"pred_iou_threshold": 0.3}, "pred_iou_threshold (was 0.4, now 0.3)"),
        ({"dtype": "bfloat16"}, "dtype (was float32, now bfloat16)"),
        ({"annotations": "train"}, "annotation file"),
        ({"sam2": "dinov2"}, "SAM 2 checkpoint"),
    ],
)
def test_a_changed_run_is_refused_with_the_reason(world, finished, capsys, replaced, named):
    replaced = {
        key: getattr(world, value) if key in ("annotations", "sam2") else value for key, value in replaced.items()
    }
    before = (finished / "results.json").read_bytes()
    assert main(world.evaluate(finished, **replaced)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error and "--restart" in error
    assert (finished / "results.json").read_bytes() == before


def test_odd_broken_and_missing_images(world, finished, tmp_path):
    """Grey, palette, RGBA and 16-bit images and one of 1 x 1 count; missing, broken and mis-sized ones are listed."""
    content = json.loads(world.val.read_text())
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    entries = content["images"][:9]
    files = [images / entry["file_name"] for entry in entries]
    pictures = [Image.open(file).copy() for file in files]
    pictures[0].convert("L").save(files[0])
    pictures[1].convert("P").save(files[1])
    pictures[2].convert("RGBA").save(files[2])
    Image.fromarray(np.asarray(pictures[3].convert("L")).astype(np.uint16) * 257).save(files[3])
    pictures[4].resize((1, 1)).save(files[4])
    entries[4] |= {"height": 1, "width": 1}
    files[5].unlink()
    files[6].write_bytes(files[6].read_bytes()[:-200])
    pictures[7].resize((30, 40)).save(files[7])
    content["images"] = entries
    kept = {entry["id"] for entry in entries} - {entries[4]["id"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(content))

    out = tmp_path / "run"
    error = run(world.evaluate(out, annotations=annotations, images=images))
    metrics = json.loads((out / "metrics.json").read_text())
    assert [s["file_name"] for s in metrics["skipped"]] == sorted(
        (entry["file_name"] for entry in entries[5:8]),
        key=lambda name: [e["id"] for e in entries if e["file_name"] == name],
    )
    reasons = " ".join(s["reason"] for s in metrics["skipped"])
    assert "No such file" in reasons and "30 x 40 pixels" in reasons
    assert "images skipped, which count as missed: 3 of 9" in error and all(
        entry["file_name"] in error for entry in entries[5:8]
    )
    done = {entry["image_id"] for entry in json.loads((out / "results.json").read_text())}
    assert done <= {entry["id"] for entry in entries[:5] + entries[8:]} and len(done) >= 3

    # The missing image turns up: only then is it done, and the others are not done again.
    pictures[5].save(files[5])
    run(world.evaluate(out, annotations=annotations, images=images))
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["skipped"]) == 2
    assert json.loads((out / "run.json").read_text())["starts"][1]["images"] == 1


def test_segment_writes_coco_masks_and_overlays(world, finished, tmp_path):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    names = sorted(path.name for path in world.images.iterdir())[-3:]
    for name, folder in zip(names, (photos, photos / "more", photos), strict=True):
        shutil.copy(world.images / name, folder / name)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (photos / "notes.txt").write_text("not an image")
    out = tmp_path / "found"
    options = {
        "sam2": world.sam2,
        "dinov2": world.dinov2,
        "memory": world.memory,
        "out": out,
        "points_per_side": 4,
        "devices": 1,
        "score_threshold": 0.1,
        "compilation_cache": world.cache,
    }
    error = run(["segment", str(photos), *arguments(options)])
    assert "images that could not be read: 1;" in error and "broken.jpg" in error
    content = json.loads((out / "detections.json").read_text())
    assert [s["file_name"] for s in content["skipped"]] == ["broken.jpg"]
    assert [i["file_name"] for i in content["images"]] == [f"more/{names[1]}", names[0], names[2]]
    assert content["annotations"]
    dataset = load_coco(out / "detections.json")  # a COCO file like any other
    for annotation in dataset.annotations.values():
        name = dataset.images[annotation.image_id].file_name.removesuffix(".png")
        masks = [np.asarray(Image.open(path)) for path in sorted((out / "masks" / name).iterdir())]
        assert any(np.array_equal(mask == 255, dataset.mask(annotation)) for mask in masks)
        assert read_image(out / "overlays" / f"{name}.png").shape[:2] == masks[0].shape


def test_two_runs_on_one_folder_do_not_mix(world, tmp_path, capsys):
    out = tmp_path / "run"
    first = start(world.evaluate(out))
    try:
        while not (out / "lock").exists() or not (out / "lock").read_text():
            assert first.poll() is None
            time.sleep(0.01)
        assert main(world.evaluate(out)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"in use by another ntt-jax (process {first.pid}" in error
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_what_is_finished(world, finished, tmp_path, number):
    out = tmp_path / "run"
    process = start(world.evaluate(out))
    records = out / "finished.records"
    while not records.exists() or not records.stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    process.send_signal(number)  # people press it twice
    _, stderr = process.communicate()
    if process.returncode == 0:  # it was done before the signal came
        return
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("ntt-jax: interrupted; what is finished is saved in")
    assert b"\n" in records.read_bytes()[-1:] and not (out / "results.json").exists()
    if number == signal.SIGINT:
        run(world.evaluate(out))
        assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.parametrize("patience", [10.0, 0.0])
def test_the_way_out_is_not_interrupted_in_its_turn(monkeypatch, patience):
    """But for one that takes too long."""
    monkeypatch.setattr(cli, "PATIENCE", patience)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), cli._interrupted_once():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                done.append("first")
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
                done.append("saved")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == (["first", "saved"] if patience else ["first"])


def test_a_disk_that_fills_up_costs_nothing_that_is_finished(world, finished, tmp_path):
    out = tmp_path / "run"
    limit = (finished / "finished.records").stat().st_size // 2
    process = start(world.evaluate(out), largest_file=limit)
    _, stderr = process.communicate()
    assert process.returncode == 2 and "Traceback" not in stderr
    assert stderr.splitlines()[-1] == f"ntt-jax: error: {out / 'finished.records'}: File too large"
    saved = (out / "finished.records").read_bytes()
    assert 0 < len(saved) <= limit and (finished / "finished.records").read_bytes().startswith(saved)


def test_progress_on_a_terminal_updates_one_line():
    class Terminal:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return True

    terminal = Terminal()
    progress = Progress(terminal)  # type: ignore[arg-type]
    progress.begin("evaluate", 5, done=2)
    for _ in range(3):
        time.sleep(0.11)
        progress.step()
    progress.note("skipped: a.jpg")
    progress.end()
    assert terminal.text.count("\n") == 2 and "ntt-jax: skipped: a.jpg\n" in terminal.text
    assert "evaluate:  40%" in terminal.text and "| 2/5 [" in terminal.text  # what an earlier start has done
    assert "evaluate: 100%" in terminal.text and " images/s" in terminal.text
