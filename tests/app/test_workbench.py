"""References learned one by one, taken over at the next start, and the search through the photos."""

import cli_files
import dinov2_weights
import numpy as np
import pytest
import sam2_weights

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from app_files import full_disk

from ntt_jax.app.project import Project
from ntt_jax.app.search import Search
from ntt_jax.app.workbench import Workbench
from ntt_jax.compiled.prompt_masker import Prompt
from ntt_jax.config import DetectConfig
from ntt_jax.datasets.coco import load_coco
from ntt_jax.errors import InputError
from ntt_jax.images.rle import decode_rle, encode_masks
from ntt_jax.memory.bank import load_memory
from ntt_jax.segmenter.segmenter import Segmenter

CONFIG = DetectConfig(
    points_per_side=4, pred_iou_threshold=0.0, nms_iou_threshold=1.0, max_detections=12, classes_per_mask=2
)


@pytest.fixture(scope="module")
def models():
    return sam2_weights.recipe_model(cli_files.SAM2, 3), dinov2_weights.recipe_model(cli_files.DINOV2, 3)


@pytest.fixture
def photos(tmp_path):
    """A folder of photos, and their annotations elsewhere."""
    annotations = cli_files.write_scenes(tmp_path, 5, 7)
    return tmp_path / "images", load_coco(annotations)


@pytest.fixture
def opened(models, photos):
    """Opens the workbench of the folder; all are closed at the end."""
    made = []

    def again():
        while made:
            search, project = made.pop()
            search.close()
            project.close()
        project = Project(photos[0])
        bench = Workbench(project, *models, config=CONFIG)
        made.append((search := Search(bench), project))
        return bench, search

    yield again
    for search, project in made:
        search.close()
        project.close()


def show(bench, dataset, chosen, kind="reference"):
    """Add annotations of the data set as references; returns their ids."""
    photos = {photo.name: photo for photo in bench.project.photos.values()}
    ids = []
    for annotation in chosen:
        name = dataset.images[annotation.image_id].file_name.split("/")[-1]
        category = dataset.categories[annotation.category_id].name
        ids.append(bench.add(kind, photos[name], category, dataset.rle(annotation)).id)
    return ids


def test_learned_one_by_one_is_learned_at_once(opened, photos, models):
    """Bit for bit, with references removed on the way, negatives, and a start in between."""
    _, dataset = photos
    annotations = [one for one in dataset.annotations.values() if not one.iscrowd]
    bench, _ = opened()
    ids = show(bench, dataset, annotations[:5])
    show(bench, dataset, annotations[4:5], "negative")
    bench.remove(ids[0])
    bench, _ = opened()
    show(bench, dataset, annotations[5:6])

    expected = Segmenter(*models, CONFIG)
    for kind, add in (("reference", expected.add), ("negative", expected.add_negative)):
        for reference in bench.project.references.values():
            if reference.kind == kind:
                add(reference.class_name, [(bench.project.path_of(reference), decode_rle(reference.mask))])
    memory = load_memory(bench.project.memory)
    assert sorted(memory.class_names) == sorted(expected.classes)
    for name in memory.class_names:
        row, other = memory.class_names.index(name), list(expected.classes).index(name)
        np.testing.assert_array_equal(memory.memory.prototypes[row], expected.memory.prototypes[other])


def test_only_what_is_new_is_encoded(opened, photos, monkeypatch):
    _, dataset = photos
    bench, _ = opened()
    show(bench, dataset, list(dataset.annotations.values())[:3])
    before = bench.project.memory.read_bytes()
    count = 0
    learn = Workbench._learn

    def counted(self, reference):
        nonlocal count
        count += 1
        learn(self, reference)

    monkeypatch.setattr(Workbench, "_learn", counted)
    bench, _ = opened()
    assert count == 0 and bench.project.memory.read_bytes() == before
    show(bench, dataset, list(dataset.annotations.values())[3:4])
    assert count == 1
    (bench.project.home / "learned.json").write_text("{}")  # not ours any more: all of them are
    bench, _ = opened()
    assert count == 5
    diagnoses = bench.diagnoses()
    assert set(diagnoses) == set(bench.project.references) and all(d["verdict"] for d in diagnoses.values())


def test_a_refused_reference_leaves_nothing(opened, photos):
    _, dataset = photos
    bench, _ = opened()
    photo = next(iter(bench.project.photos.values()))
    first = next(iter(dataset.annotations.values()))
    with pytest.raises(InputError, match="show what it looks like first"):
        show(bench, dataset, [first], "negative")
    with pytest.raises(InputError, match="size"):
        bench.full_mask(photo, {"size": [1, 1], "counts": "01"})
    assert not bench.project.references and not bench.project.memory.exists()
    (only,) = show(bench, dataset, [first])
    size = bench.project.memory.stat().st_size
    bench.remove(only)
    assert not bench.segmenter.classes and not bench.project.memory.exists()
    with full_disk(size - 1), pytest.raises(InputError, match=r"memory\.safetensors: cannot be written"):
        show(bench, dataset, [first])
    assert not bench.project.references and not bench.segmenter.classes and not bench.project.memory.exists()


def test_a_large_photo_is_clicked_on_its_picture(opened, photos, monkeypatch):
    """Points are in pixels of the picture; the mask that is kept has the photo's size."""
    monkeypatch.setattr("ntt_jax.app.workbench.PICTURE_SIDE", 40)
    bench, _ = opened()
    photo = next(iter(bench.project.photos.values()))
    picture = bench.picture(photo)
    height, width = picture.pixels.shape[:2]
    assert max(height, width) == 40 and picture.width > 40
    choices = bench.choices(photo, Prompt(points=((width / 2, height / 2),)))
    encoded = bench._encoded(photo)
    direct = bench._masker.choices(encoded, Prompt(points=((picture.width / 2, picture.height / 2),)))
    np.testing.assert_array_equal(choices.logits, direct.logits)
    painted = np.zeros((height, width), bool)
    painted[: height // 2] = True
    full = decode_rle(bench.full_mask(photo, encode_masks(painted[None])[0]))
    assert full.shape == (picture.height, picture.width)
    assert abs(full.mean() - painted.mean()) < 0.05 and full[0].all() and not full[-1].any()


def test_search_stops_resumes_and_knows_what_is_stale(opened, photos):
    folder, dataset = photos
    bench, search = opened()
    all_photos = list(bench.project.photos.values())
    with pytest.raises(InputError, match="reference first"):
        search.start(all_photos)
    show(bench, dataset, list(dataset.annotations.values())[:3])
    search.start(all_photos[:2])
    search._thread.join()
    assert [search.photo_status(p)["searched"] for p in all_photos] == [True, True, False, False, False]
    expected = bench.segmenter.predict(all_photos[0].path)
    found = search.found(all_photos[0])
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.rles == expected.rles and found.class_names == expected.class_names

    bench, search = opened()  # the records are there again
    assert search.found(all_photos[0]).rles == expected.rles
    search.start(all_photos)
    search._thread.join()
    assert search.status()["done"] == 5 and search.status()["problem"] is None
    assert all(search.photo_status(p)["current"] for p in all_photos)

    all_photos[1].path.write_bytes(b"no image any more")
    assert not search.photo_status(all_photos[1])["searched"] and search.found(all_photos[1]) is None
    search.start(all_photos)
    search._thread.join()
    assert "image" in search.photo_status(all_photos[1])["problem"]
    show(bench, dataset, list(dataset.annotations.values())[3:4])
    status = search.photo_status(all_photos[0])
    assert status["searched"] and not status["current"]

    least = float(np.median(search.found(all_photos[0]).scores))
    bench.project.set_thresholds(dict.fromkeys(bench.segmenter.classes, least))
    folder = search.export(["csv", "coco"])
    entries = load_coco(next((bench.project.home / "exports").rglob("instances*.json")))
    counted = sum(len(search.found(p).chosen(score_threshold=least)) for p in all_photos if search.found(p))
    assert len(entries.annotations) == counted > 0 and folder.endswith("exports")


def test_records_of_somebody_else_are_passed_over(opened, photos):
    """A record may be whole and hold anything: its photo counts as not searched, or says that it is damaged."""
    bench, search = opened()
    photo = next(iter(bench.project.photos.values()))
    number = int(photo.id, 16)
    stamp = [photo.path.stat().st_size, photo.path.stat().st_mtime_ns]
    found = {"height": 4, "width": 4, "boxes": [[0, 0, 1, 1]], "scores": [0.5], "labels": [0], "counts": ["`0"]}
    whole = {"photo": number, "memory": "x", "stamp": stamp, "classes": ["dog"], "detections": found}
    unsound: list[dict] = [{"photo": number}, whole | {"memory": 5}, whole | {"skipped": [1]}, whole | {"classes": {}}]
    unsound += [whole | {"detections": found | {key: value}} for key, value in (("labels", [7]), ("scores", ["a"]))]
    unsound += [whole | {"detections": 5}, whole | {"classes": [[]]}, whole | {"detections": found | {"labels": [-1]}}]
    for record in unsound:
        search._records.append([record])
        bench, search = opened()
        assert search.photo_status(photo) == {"searched": False, "current": False}, record
    for damaged in (found | {"counts": ["~"]}, found | {"boxes": [[10**400, 0, 1, 0.5]]}):
        search._records.append([whole | {"detections": damaged}])
        bench, search = opened()
        with pytest.raises(InputError, match=r"record|run lengths|boxes|counts|numbers"):
            search.found(photo)
    search._records.append([whole])
    bench, search = opened()
    assert len(search.found(photo)) == 1
    with pytest.raises(InputError, match="holds a class that is not here any more"):
        search.export(["csv"])
