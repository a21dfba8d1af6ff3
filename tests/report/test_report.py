import fnmatch
import json
import re
import shutil
import tomllib
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from image_server import ImageServer
from random_detections import lvis_content, parse, random_content, random_detections
from report_files import CLASSES, HOSTILE, HOSTILE_FILE, WORDS, make_run

from ntt_jax.cli import main
from ntt_jax.datasets.coco import load_coco, parse_coco
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.results import read_results
from ntt_jax.images.rle import encode_masks
from ntt_jax.memory.bank import load_memory
from ntt_jax.report import analysis, gallery
from ntt_jax.report.matching import IGNORED, KINDS, RIGHT, match
from ntt_jax.report.memory_view import memory_view
from ntt_jax.report.page import SCRIPTS, threshold_file

SIZE = (60, 80)
SEEDS = (0, 2, 3, 5)  # for which no random mask is empty


def rectangle(box):
    mask = np.zeros(SIZE, bool)
    x, y, wide, high = box
    mask[y : y + high, x : x + wide] = True
    return mask


def truth(objects):
    """Ground truth from rows (image, class, box, crowd); classes 1, 2, 3 and images 1 to 4."""
    rles = encode_masks(np.asarray([rectangle(box) for _, _, box, _ in objects], bool).reshape(-1, *SIZE))
    annotations = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": label + 1,
            "bbox": list(box),
            "iscrowd": int(crowd),
            "segmentation": rle,
        }
        for i, ((image, label, box, crowd), rle) in enumerate(zip(objects, rles, strict=True))
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(1, 5)]
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    dataset = parse_coco(json.dumps(content).encode(), "truth.json")
    return prepare_ground_truth(dataset, tuple(dataset.categories.values()))


def found(rows):
    """Detections by image from rows (image, class, box, score)."""
    records = {}
    for image in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == image]
        masks = np.asarray([rectangle(box) for _, _, box, _ in own])
        corners = [(x, y, x + w, y + h) for _, _, (x, y, w, h), _ in own]
        scores, labels = np.asarray([row[3] for row in own]), np.asarray([row[1] for row in own])
        records[image] = HostDetections(*SIZE, np.asarray(corners), scores, labels, tuple(encode_masks(masks)))
    return records


def random_case(seed, kind="coco"):
    content = lvis_content(seed) if kind == "lvis" else random_content(seed, names=list("abcd"), crowds=True)
    dataset = parse(content)
    ground_truth = prepare_ground_truth(dataset, tuple(dataset.categories.values()))
    return ground_truth, dict(random_detections(dataset, seed, most=60))


@pytest.mark.parametrize("rules", ["coco", "lvis"])
@pytest.mark.parametrize("seed", SEEDS)
def test_curves_give_the_ap_of_the_evaluation(seed, rules):
    ground_truth, detections = random_case(seed, rules)
    assert ground_truth.protocol == rules
    metrics = evaluate_detections(ground_truth, detections.items())
    for kind in ("segm", "bbox"):
        rows = match(ground_truth, detections, kind)
        curves = analysis.precision_curves(rows)
        defined = 0
        for k, row in enumerate(metrics["per_class"]):
            assert rows.objects[k] == row["ground_truth"]
            if rows.objects[k]:
                means = [curves[:, :, k].mean(), curves[0, :, k].mean(), curves[5, :, k].mean()]
                assert [row[kind][name] for name in ("AP", "AP50", "AP75")] == pytest.approx(means, abs=1e-12)
                defined += 0 < means[0] < 1
        assert defined >= 2


def test_difficult_objects_do_not_count():
    """VOC's rules differ in ties, but what is difficult counts neither as found nor as missed."""
    ground_truth = truth([(1, 0, (5, 5, 20, 20), False), (1, 0, (40, 5, 20, 20), False)])
    ground_truth.entries[1]["difficult"] = 1
    found_both = found([(1, 0, (5, 5, 20, 20), 0.9), (1, 0, (40, 5, 20, 20), 0.8)])
    rows = match(ground_truth, found_both, "segm")
    assert [KINDS[kind] for kind in rows.kind] == ["right", "ignored"] and rows.objects.tolist() == [1, 0, 0]
    assert not analysis.missed(match(ground_truth, {}, "segm"))[1]


def test_at_most_100_detections_of_a_class_and_image_count():
    rows = [(1, 0, (10, 10, 20, 20), 0.1)] + [(1, 0, (40, 40, 5, 5), 0.9)] * 100
    rows = match(truth([(1, 0, (10, 10, 20, 20), False)]), found(rows), "segm")
    assert (
        not rows.hit.any() and KINDS[rows.kind[-1]] == "ignored" and analysis.precision_curves(rows)[:, :, 0].max() == 0
    )


def test_a_class_without_objects_has_no_curve():
    rows = match(truth([(1, 0, (10, 10, 20, 20), False)]), found([(1, 1, (10, 10, 20, 20), 0.9)]), "segm")
    curves = analysis.precision_curves(rows)
    assert (curves[:, :, 1:] == -1).all() and (curves[:, :, 0] == 0).all()


@pytest.fixture
def every_kind():
    """One detection of each kind; objects: 0 found, 1 found badly, 2 of another class, 3 missed, 4 crowd."""
    objects = [
        (1, 0, (5, 5, 20, 20), False),
        (1, 0, (40, 5, 20, 20), False),
        (2, 1, (5, 5, 20, 20), False),
        (3, 2, (40, 30, 20, 20), False),
        (3, 2, (0, 0, 30, 30), True),
    ]
    rows = [
        (1, 0, (5, 5, 20, 20), 0.9),  # right
        (1, 0, (5, 5, 20, 18), 0.8),  # duplicate
        (1, 0, (40, 5, 20, 8), 0.7),  # localisation: IoU 0.4
        (1, 1, (40, 5, 20, 7), 0.6),  # both
        (2, 0, (5, 5, 20, 19), 0.5),  # classification
        (2, 1, (50, 40, 9, 9), 0.4),  # background
        (3, 2, (2, 2, 10, 10), 0.3),  # ignored: in the crowd
    ]
    return truth(objects), found(rows)


def test_kinds(every_kind):
    rows = match(*every_kind, "segm")
    assert [KINDS[kind] for kind in rows.kind] == [
        "right", "duplicate", "localisation", "both", "classification", "background", "ignored",
    ]  # fmt: skip
    assert rows.target.tolist() == [0, 0, 1, 1, 2, -1, -1]
    np.testing.assert_allclose(rows.overlap, [1, 0.9, 0.4, 0.35, 0.95, 0, 0], atol=1e-6)
    assert rows.found.tolist() == [0, -1, -1, -1, -1]
    assert analysis.missed(rows).tolist() == [False, False, False, True, False]
    assert rows.taken.tolist() == [0, -2, -1, -1, 2, -1, -1]


def test_costs_of_errors(every_kind):
    rows = match(*every_kind, "segm")
    costs = analysis.error_costs(rows)
    assert {kind: count for kind, (count, _) in costs.items()} == {
        "localisation": 1, "classification": 1, "both": 1, "duplicate": 1, "background": 1, "missed": 1,
    }  # fmt: skip
    # Class 0: right, duplicate, localisation, classification by score, two objects. AP50 is 51 / 101 as it stands.
    assert costs["classification"][1] == pytest.approx(1 / 6, abs=1e-12)  # class 1's only object, second of two
    # Mended: right, wrong, right: precision 1 up to half the objects, then 2 / 3.
    assert costs["localisation"][1] == pytest.approx((51 + 50 * 2 / 3) / 101 / 3 - 51 / 101 / 3, abs=1e-12)
    assert costs["background"][1] == costs["both"][1] == costs["duplicate"][1] == 0
    # Class 2 is asked for nothing any more, so it no longer counts.
    assert costs["missed"][1] == pytest.approx(51 / 101 / 2 - 51 / 101 / 3, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_threshold_changes_nothing_above_it(seed):
    ground_truth, detections = random_case(seed)
    rows = match(ground_truth, detections, "segm")
    kept = {}
    for image, record in detections.items():
        kept[image] = record.select(record.scores >= np.float32(0.5))
    fewer, above = match(ground_truth, kept, "segm"), rows.score >= np.float32(0.5)
    for name in ("image", "label", "score", "hit", "ignored", "kind", "target", "overlap", "taken"):
        np.testing.assert_array_equal(getattr(fewer, name), getattr(rows, name)[above])
    found_above = (rows.found >= 0) & (rows.score[rows.found] >= np.float32(0.5))
    np.testing.assert_array_equal(fewer.found >= 0, found_above)


def test_confusion_counts(every_kind):
    rows = match(*every_kind, "segm")
    table = Counter()
    for true, predicted, _, count in analysis.confusion(rows).tolist():
        table[true, predicted] += count
    nothing, taken = 3, 4
    assert table == {(0, 0): 1, (taken, 0): 1, (nothing, 0): 1, (nothing, 1): 2, (1, 0): 1}
    assert analysis.confusion(rows)[:, 3].sum() == (rows.kind != IGNORED).sum()


def test_histograms_and_thresholds(every_kind):
    rows = match(*every_kind, "segm")
    counts = analysis.histograms(rows)
    assert counts.sum() == 6 and counts[0].sum() == (rows.kind == RIGHT).sum() == 1
    assert counts[0, 0, 44] == 1 or counts[0, 0, 45] == 1  # float32 0.9 lies just below or above
    thresholds, f1 = analysis.best_thresholds(rows)
    assert thresholds[0] == pytest.approx(0.9) and f1[0] == pytest.approx(2 / 3)  # 1 of 1 right, 1 of 2 found
    assert np.isnan(thresholds[1:3]).all() and f1[3] == pytest.approx(2 / 5)


def test_thresholds_keep_equal_scores_together():
    rows = [(1, 0, (40, 40, 9, 9), 0.5), (1, 0, (5, 5, 20, 20), 0.5), (1, 0, (50, 10, 9, 9), 0.3)]
    matched = match(truth([(1, 0, (5, 5, 20, 20), False)]), found(rows), "segm")
    thresholds, f1 = analysis.best_thresholds(matched)
    assert thresholds[0] == 0.5 and f1[0] == pytest.approx(2 / 3)


def test_nothing_found_and_nothing_there():
    rows = match(truth([]), {}, "segm")
    assert len(rows.label) == 0 and analysis.confusion(rows).shape == (0, 4)
    assert analysis.error_costs(rows)["missed"] == (0, 0.0)
    rows = match(truth([(2, 1, (5, 5, 9, 9), False)]), {}, "bbox")
    assert analysis.missed(rows).tolist() == [True] and analysis.histograms(rows).sum() == 0


def test_detections_of_other_images_and_classes_are_refused():
    with pytest.raises(InputError, match="image 9"):
        match(truth([]), found([(9, 0, (5, 5, 9, 9), 0.5)]), "segm")
    with pytest.raises(InputError, match="class 7"):
        match(truth([]), found([(1, 7, (5, 5, 9, 9), 0.5)]), "segm")


def test_pictures_are_small_whatever_they_show():
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3)).astype(np.uint8)
    assert len(gallery.data_uri(noise)) < 1.4 * gallery.PICTURE_BYTES
    assert gallery.picture_size(4000, 3000) == (512, 384) and gallery.picture_size(30, 20) == (30, 20)


def test_chosen_images_are_spread_over_those_with_content(every_kind):
    rows = match(*every_kind, "segm")
    assert gallery.choose_images(rows, 4, 10) == [0, 1, 2, 3] and gallery.choose_images(rows, 4, 3) == [0, 1, 2]
    assert gallery.choose_images(rows, 4, 2) == [0, 2] and gallery.choose_images(rows, 4, 0) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report"), 20)


def page_data(path):
    """The data blocks of a page, as a browser would read them."""
    text = path.read_text("utf-8")
    blocks = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', text, re.S)
    return text, {name: json.loads(block) for name, block in blocks}


def test_report_of_a_run_folder_needs_no_options(run, capsys):
    assert main(["report", str(run.folder)]) == 0
    captured = capsys.readouterr()
    assert "40 detections in 20 images" in captured.out and captured.err == ""
    text, blocks = page_data(run.folder / "report.html")
    data = blocks["data"]
    dataset = load_coco(run.annotations)
    ground_truth = prepare_ground_truth(dataset, tuple(dataset.categories.values()))
    metrics = evaluate_detections(ground_truth, read_results(run.folder / "results.json", dataset, sorted(CLASSES)))
    assert data["metrics"]["segm"] == metrics["segm"] and [c["name"] for c in data["classes"]] == list(CLASSES.values())
    assert [c["bbox"] for c in data["classes"]] == [row["bbox"] for row in metrics["per_class"]]
    assert len(data["scenes"]) == len(blocks["pictures"]["scenes"]) == 20
    assert all(picture.startswith("data:image/jpeg") for picture in blocks["pictures"]["scenes"])
    kinds = [KINDS[d[4]] for scene in data["scenes"] for d in scene["detections"] if d[1] < 8500]
    assert kinds == [WORDS[i % 5] for i in range(20)]
    assert len(data["references"]) == 12 and all(blocks["pictures"]["references"])
    assert [r["verdict"] for r in data["references"]].count("replace") == 1
    assert data["skipped"] == [["scene_0.png", "broken square"]]
    assert str(run.annotations.parent) not in text  # a page may be passed on: no folders of this machine
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)


def test_thresholds_for_segment(run, tmp_path, capsys):
    """The file holds the classes' own best thresholds, and what it says of F1 holds when they are applied."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    assert main(["report", str(folder), "--max-images", "0", "--out", str(tmp_path / "page.html")]) == 0
    assert f"--thresholds {folder / 'thresholds.json'}" in capsys.readouterr().out
    content = json.loads((folder / "thresholds.json").read_text())
    assert list(content["thresholds"]) == list(CLASSES.values()) and content["undefined"] == []
    dataset = load_coco(run.annotations)
    ground_truth = prepare_ground_truth(dataset, tuple(dataset.categories.values()))
    detections = dict(read_results(folder / "results.json", dataset, sorted(CLASSES)))
    rows = match(ground_truth, detections, "segm")
    for k, name in enumerate(CLASSES.values()):
        kept = (rows.label == k) & (rows.score >= np.float32(content["thresholds"][name]))
        right, objects = (kept & (rows.kind == RIGHT)).sum(), content["objects"][name]
        assert objects == rows.objects[k] and content["f1"][name] == round(2 * right / (kept.sum() + objects), 4)
        assert 0.8 <= content["thresholds"][name] <= 0.9
    data = page_data(tmp_path / "page.html")[1]["data"]
    assert data["threshold_file"] == "thresholds.json"


def test_a_class_without_a_right_detection_has_no_threshold(every_kind):
    content = threshold_file(match(*every_kind, "segm"), ["a", "b", "c"], "segm")
    assert list(content["thresholds"]) == ["a"] and content["undefined"] == ["b", "c"]
    assert np.float32(content["thresholds"]["a"]) == np.float32(0.9)


def test_every_part_of_the_page_is_installed():
    folder = resources.files("ntt_jax") / "report"
    parts = {path.name for path in folder.iterdir() if path.is_file() and not path.name.endswith(".py")}
    assert parts == {"page.html", "page.css", *SCRIPTS}
    project = Path(__file__).parents[2] / "pyproject.toml"
    patterns = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["ntt_jax.report"]
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in parts)


def test_the_same_run_gives_the_same_page(run, tmp_path):
    for name in "ab":
        assert main(["report", str(run.folder), "--out", str(tmp_path / name), "--max-images", "3"]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(page_data(tmp_path / "a")[1]["data"]["scenes"]) == 3


def test_hostile_names_stay_inside_the_data(tmp_path, capsys):
    run = make_run(tmp_path, 5, names=HOSTILE, file_name=HOSTILE_FILE)
    title = "</title><script>window.hacked='title'</script>"
    assert main(["report", str(run.folder), "--title", title]) == 0
    text, blocks = page_data(run.folder / "report.html")
    assert [c["name"] for c in blocks["data"]["classes"]] == list(HOSTILE.values())
    assert blocks["data"]["scenes"][0]["name"] == HOSTILE_FILE.format(0)
    outside = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S)
    assert "hacked" not in outside.replace("&#x27;", "'").replace(
        "&lt;/title&gt;&lt;script&gt;window.hacked='title'&lt;/script&gt;", ""
    )
    assert text.count("<script") == 3 and text.count("</script>") == 3


def bad(case, run, tmp):
    """Arguments that cannot work and what the message must contain."""
    folder = tmp / "run"
    shutil.copytree(run.folder, folder)
    if case == "no folder":
        return [tmp / "nowhere"], "RUN_DIR"
    if case == "not a run":
        return [tmp], "holds no results.json"
    if case == "unfinished":
        (folder / "results.json").unlink()
        return [folder], "not finished"
    if case in ("an ablation", "a folder of segment"):
        (folder / "results.json").unlink()
        name, message = {
            "a": ("ablation.json", "many memories"),
            "s": ("detections.json", "detections.json: not a COCO"),
        }["s" if "segment" in case else "a"]
        (folder / name).write_text("{}")
        return [folder], message
    if case == "no such shots":
        return [folder, "--shots", "3"], "--shots"
    if case == "results are not JSON":
        (folder / "results.json").write_text("[{")
        return [folder], "results.json: the results file is not valid JSON"
    if case == "result of an unknown image":
        (folder / "results.json").write_text('[{"image_id": 7}]')
        return [folder], "[0]: image 7 is not in"
    if case == "result without a mask":
        entry = {"image_id": 100, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
        (folder / "results.json").write_text(json.dumps([entry]))
        return [folder], "[0]: segmentation"
    if case == "score that is text":
        entry = {"image_id": 100, "category_id": 3, "bbox": [1, 2, 3, 4], "score": "x"}
        (folder / "results.json").write_text(json.dumps([entry]))
        return [folder], "[0]: score"
    if case == "other annotations":
        (tmp / "other.json").write_bytes(run.annotations.read_bytes() + b"\n")
        return [folder, "--annotations", tmp / "other.json"], "the run was evaluated on"
    if case == "no annotations":
        (folder / "run.json").unlink()
        return [folder], "give --annotations"
    if case == "no images":
        (folder / "run.json").unlink()
        return [folder, "--annotations", run.annotations], "give --images"
    if case == "images are a file":
        return [folder, "--images", run.annotations], "--images"
    if case == "another memory":
        (tmp / "memory").write_bytes(b"x")
        return [folder, "--memory", tmp / "memory"], "not the memory of this run"
    if case == "another reference file":
        (tmp / "references.json").write_text("{}")
        return [folder, "--references", tmp / "references.json"], "not a reference file"
    if case == "folder to write":
        return [folder, "--out", tmp], "--out"
    if case == "run.json is a list":
        (folder / "run.json").write_text("[]")
        return [folder], "run.json: expected a JSON object"
    raise AssertionError(case)


CASES = [
    "no folder", "not a run", "unfinished", "an ablation", "a folder of segment",
    "no such shots", "results are not JSON", "result of an unknown image",
    "result without a mask", "score that is text", "other annotations", "no annotations", "no images",
    "images are a file", "another memory", "another reference file", "folder to write", "run.json is a list",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(run, tmp_path, capsys, case):
    arguments, message = bad(case, run, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_only_found_may_be_missing(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (folder / "memory.safetensors").write_bytes(b"changed")
    assert main(["report", str(folder), "--max-images", "0"]) == 0
    assert "memory.safetensors has changed since the run" in capsys.readouterr().err
    data = page_data(folder / "report.html")[1]["data"]
    assert "memory" not in data and data["scenes"] == [] and len(data["notes"]) == 1


def test_images_elsewhere(run, tmp_path, capsys):
    """Their address is asked where an option names it, not because a folder's run.json does."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    with ImageServer(run.images) as server:
        content = json.loads((folder / "run.json").read_text())
        content["starts"][-1]["files"]["images"] = server.url
        (folder / "run.json").write_text(json.dumps(content))
        assert main(["report", str(folder)]) == 2
        assert f"run.json names an address, {server.url}, which is asked only if you" in capsys.readouterr().err
        assert main(["negatives", str(folder), "--out", str(tmp_path / "n.json")]) == 0
        assert not server.requests
        there = ["--images", server.url]
        assert main(["report", str(folder), *there]) == 0
        pictures = ["--out", str(tmp_path / "n.json"), "--pictures", str(tmp_path / "check")]
        assert main(["negatives", str(folder), *pictures, *there]) == 0
        references = ["references", "--memory", str(folder / "memory.safetensors"), "--annotations"]
        assert main([*references, str(run.annotations), *there, "--out", str(tmp_path / "page.html")]) == 0
    negatives = json.loads((tmp_path / "n.json").read_text())
    assert len(list((tmp_path / "check").iterdir())) == len(negatives["images"]) > 0
    assert main(["report", str(run.folder)]) == 0
    pages = [page_data(one / "report.html")[1]["pictures"] for one in (run.folder, folder)]
    assert pages[0] == pages[1] and all(page_data(tmp_path / "page.html")[1]["pictures"]["references"])


def test_boxes_alone(run, tmp_path, capsys):
    content = json.loads(run.annotations.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (folder / "run.json").unlink()
    options = ["--annotations", str(tmp_path / "boxes.json"), "--images", str(run.images)]
    assert main(["report", str(folder), *options]) == 0
    assert "boxes are compared, masks are not" in capsys.readouterr().err
    data = page_data(folder / "report.html")[1]["data"]
    assert data["kinds"] == ["bbox"] and data["metrics"]["bbox"]["AP50"] > 0.3


def test_references_command(run, tmp_path, capsys):
    memory = run.folder / "memory.safetensors"
    options = ["references", "--memory", str(memory), "--annotations", str(run.annotations)]
    assert main(options) == 0
    table = capsys.readouterr().out
    assert "12 references of 3 classes: 1 to replace, 0 to check, 11 good" in table
    assert "looks like disc, not like the other references of its class" in table and table.count("\n") == 5
    assert "try instead: annotation" in table
    assert main([*options, "--all"]) == 0
    assert capsys.readouterr().out.count("good") == 12
    assert main([*options, "--json", "--images", str(run.images), "--out", str(tmp_path / "page.html")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in rows] == ["square"] * 4 + ["disc"] * 4 + ["bar"] * 4
    assert [row["verdict"] for row in rows].index("replace") == 3 and rows[3]["nearest"] == "disc"
    blocks = page_data(tmp_path / "page.html")[1]
    assert len(blocks["data"]["references"]) == 12 and "metrics" not in blocks["data"]
    assert all(uri.startswith("data:image/jpeg") for uri in blocks["pictures"]["references"])


def test_references_command_bad_input(run, tmp_path, capsys):
    memory, annotations = str(run.folder / "memory.safetensors"), str(run.annotations)
    bank = load_memory(memory)
    assert bank.shots == (4, 4, 4)
    for options, message in (
        (["--annotations", annotations], "one of the arguments --memory --dinov2 is required"),
        (["--memory", annotations, "--annotations", annotations], "not a safetensors file"),
        (["--dinov2", memory, "--annotations", annotations], "give --references and --images too"),
        (["--memory", memory, "--annotations", annotations, "--references", annotations], "not a reference file"),
        (["--memory", memory, "--annotations", annotations, "--out", str(tmp_path)], "--out"),
    ):
        assert main(["references", *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error


def test_memory_view(run):
    view = memory_view(load_memory(run.folder / "memory.safetensors"))
    assert len(view["points"]) == 12 and len(view["prototypes"]) == 3
    assert np.sum(view["clusters"]) == 12 and view["pure"] == 11  # the one that is like another class
    similarity = np.asarray(view["similarity"])
    assert (similarity == similarity.T).all() and (np.diag(similarity) == 100).all()
    assert view["pairs"][0][:2] == [0, 1] and 0.4 < sum(view["explained"]) <= 1
