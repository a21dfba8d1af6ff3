"""Every reader of files from elsewhere, by name: the tests give all of them one list of poisons, the fuzzer one each.

A new reader is one line in `READERS` and its module's name in `MODULES`; a test fails until both are there.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ntt_jax.app.project import NAME, Project
from ntt_jax.config import DetectConfig
from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.box_proposals import load_box_proposals
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.datasets.voc import load_voc, parse_xml
from ntt_jax.detection.thresholds import read_thresholds
from ntt_jax.evaluation.results import read_results
from ntt_jax.files import parse_json, read_bytes
from ntt_jax.formats import output
from ntt_jax.hub import cache, fetch, repository
from ntt_jax.hub.resolve import _beside
from ntt_jax.images.mask_files import read_mask
from ntt_jax.images.photos import read_list
from ntt_jax.images.reading import open_image, open_image_size, read_image, read_index_image
from ntt_jax.memory.bank import load_memory
from ntt_jax.references.folder import find_references
from ntt_jax.references.folder.found import Lazy
from ntt_jax.references.prompted import load_prompted
from ntt_jax.references.published_lists import read_reference_lists
from ntt_jax.references.sampling import load_references
from ntt_jax.report import run_files
from ntt_jax.report.found import read_found
from ntt_jax.report.tuned import read_tuned
from ntt_jax.reproduce.archive import Archive, unpack
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.inputs import read_references
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.records import RecordFile, RecordReader
from ntt_jax.upstream.memory import read_upstream_memory
from ntt_jax.upstream.references import import_upstream_references
from weight_port import source
from weight_port.__main__ import _read_given
from weight_port.port import inspect, read_converted

ARCHIVE = Archive("a.zip", 1000, 100_000, ("a/", "A/"), 3)
DATA = CocoDataset("data.json", "", {}, {}, {}, {})
DOG = CocoCategory(1, "dog")


def coco_with_masks(path: Path) -> None:
    """An annotation file with all its masks."""
    dataset = load_coco(path)
    for annotation in dataset.annotations.values():
        if annotation.segmentation is not None and dataset.images[annotation.image_id].height < 10_000:
            dataset.rle(annotation)


def whole_image(path: Path) -> None:
    """An image as masks and opened pictures are read: all of it, in its own mode."""
    with open_image(path, max_pixels=1_000_000) as image:
        np.asarray(image)


def voc_annotation(path: Path) -> Any:
    """The file as the only XML of a VOC data set."""
    folder = _beside_of(path, "VOCdevkit") / "VOC2007"
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / "a.txt").write_text("000001\n")
    _place(path, folder / "Annotations" / "000001.xml")
    return load_voc(folder / "ImageSets" / "Main" / "a.txt")


def voc_list(path: Path) -> Any:
    """The file as a list of VOC images."""
    folder = _beside_of(path, "lists") / "VOC2007"
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    target = folder / "ImageSets" / "Main" / "a.txt"
    _place(path, target)
    return load_voc(target)


def published_list(path: Path) -> Any:
    """The file as the published list of one class, of COCO's form."""
    folder = _beside_of(path, "published")
    _place(path, folder / "full_box_1shot_dog_trainval.json")
    return read_reference_lists(folder, DATA, [DOG], 1)


def published_voc_list(path: Path) -> Any:
    """The file as the published list of one class, of VOC's form."""
    folder = _beside_of(path, "published_voc")
    _place(path, folder / "box_1shot_dog_train.txt")
    return read_reference_lists(folder, DATA, [DOG], 1)


def run_folder(path: Path) -> None:
    """The file as run.json of a folder with finished work."""
    folder = _beside_of(path, "run")
    identity = {"memory": "a" * 64}
    if not (folder / "finished.records").exists():
        with FolderLock(folder) as lock, RunFolder(lock, identity) as run:
            run.records.append([{"image_id": 5}])
    _place(path, folder / "run.json")
    with FolderLock(folder) as lock, RunFolder(lock, identity):
        pass


def records(path: Path) -> None:
    """The file as records of finished work, and those records read back."""
    if path.exists():
        reader = RecordReader(path)
        try:
            for id in reader:
                reader.read(id)
        finally:
            reader.close()
    RecordFile(path).close()


def described(path: Path) -> Any:
    """The file as one that describes a run for the report; a missing one is an empty description."""
    if not path.exists():
        raise _missing(path)
    return run_files._read(path)


def index_of_shards(path: Path) -> Any:
    """The file as the index of a model in several files."""
    return source._shards(path)


def hints(path: Path) -> Any:
    """The file as config.json beside a Hugging Face checkpoint; a missing one gives no hints."""
    if not path.exists():
        raise _missing(path)
    return source._read_hints(path)


def beside_a_photo(name: str, **more: str) -> Callable[[Path], Any]:
    """Reads the file as NAME in a folder of references, with a photo and further files (name without its ending)."""

    def read(path: Path) -> Any:
        folder = _beside_of(path, f"photos of {name}")
        if not (folder / "a.png").exists():
            Image.new("RGB", (12, 8)).save(folder / "a.png")
            for stem, content in more.items():
                (folder / f"{stem}.txt").write_text(content)
        _place(path, folder / name)
        found = find_references(folder)
        for one in found.references:
            np.asarray(one.mask if isinstance(one.mask, Lazy) else 0)
        return found

    return read


def project(path: Path) -> None:
    """The file as the references of a project of `ntt-jax app`."""
    folder = _beside_of(path, "project")
    if not (folder / "a.png").exists():
        Image.new("RGB", (12, 8)).save(folder / "a.png")
        (folder / NAME).mkdir()
    _place(path, folder / NAME / "references.json")
    if not path.exists() and not path.is_symlink():
        raise _missing(path)
    Project(folder).close()


def found_photos(path: Path) -> Any:
    """The file as what `ntt-jax segment` found."""
    folder = _beside_of(path, "found")
    _place(path, folder / "detections.json")
    return read_found(folder, None, {}, title="found", max_images=3)


def written_files(path: Path) -> Any:
    """The file as the list of a folder of formats; None if it names nothing."""
    return output._read_list(path) or None if path.exists() else None


READERS: dict[str, Callable[[Path], Any]] = {
    "load_dataset": load_dataset,
    "load_coco": coco_with_masks,
    "voc annotation": voc_annotation,
    "voc list": voc_list,
    "parse_xml": lambda path: parse_xml(read_bytes(path, max_bytes=2**22, what="XML"), path),
    "load_memory": load_memory,
    "load_references": load_references,
    "load_prompted": load_prompted,
    "load references or pickle": lambda path: read_references(path, DATA),
    "published list": published_list,
    "published VOC list": published_voc_list,
    "import_upstream_references": lambda path: import_upstream_references(path, DATA),
    "read_upstream_memory": read_upstream_memory,
    "read_results": lambda path: read_results(path, DATA, []),
    "list of addresses": read_list,
    "thresholds": read_thresholds,
    "boxes": load_box_proposals,
    "method": DetectConfig.from_file,
    "read_image": lambda path: read_image(path, max_pixels=1_000_000),
    "read_index_image": lambda path: read_index_image(path, max_pixels=1_000_000),
    "open_image": whole_image,
    "read_mask": read_mask,
    "open_image_size": open_image_size,
    "read_converted": read_converted,
    "inspect": inspect,
    "run.json": run_folder,
    "description of a run": described,
    "tune.json": read_tuned,
    "index of shards": index_of_shards,
    "index of shards, Hub": repository._shards,
    "hints": hints,
    "annotations beside a photo": beside_a_photo("a.json"),
    "labels beside a photo": beside_a_photo("a.txt", classes="dog\n"),
    "list of classes": beside_a_photo("data.yaml", a="0 0.5 0.5 0.2 0.2\n"),
    "XML beside a photo": beside_a_photo("a.xml"),
    "mask beside a photo": beside_a_photo("a_dog.png"),
    "project": project,
    "found photos": found_photos,
    "archive of a server": lambda path: unpack(path, _beside_of(path, "unpacked"), ARCHIVE),
    "configuration": lambda path: _read_given(str(path)),
    "json": lambda path: parse_json(read_bytes(path, max_bytes=2**30, what="file"), path, what="file"),
}
FORGIVING: dict[str, Callable[[Path], Any]] = {
    "records": records,
    "record of the cache": cache._read,
    "note of a download": lambda path: fetch._validator(path.with_name(path.name[: -len(".json")]), "http://a"),
    "list of written files": written_files,
    "configuration beside a checkpoint": lambda path: _beside(path.with_suffix(".pt")),
}
"""Readers of what only saves time, given NAME.json: content that cannot be read is as if it were not there (None)."""
MODULES: dict[str, tuple[str, ...]] = {
    "ntt_jax/config.py": ("method",),
    "ntt_jax/datasets/__init__.py": ("load_dataset",),
    "ntt_jax/datasets/box_proposals.py": ("boxes",),
    "ntt_jax/datasets/coco.py": ("load_coco", "project"),
    "ntt_jax/datasets/voc.py": ("voc annotation", "voc list", "parse_xml"),
    "ntt_jax/detection/thresholds.py": ("thresholds",),
    "ntt_jax/evaluation/results.py": ("read_results",),
    "ntt_jax/files.py": ("json",),
    "ntt_jax/formats/output.py": ("list of written files",),
    "ntt_jax/hub/cache.py": ("record of the cache",),
    "ntt_jax/hub/fetch.py": ("note of a download",),
    "ntt_jax/hub/repository.py": ("index of shards, Hub",),
    "ntt_jax/hub/resolve.py": ("configuration beside a checkpoint",),
    "ntt_jax/images/photos.py": ("list of addresses",),
    "ntt_jax/images/reading.py": ("read_image", "read_index_image", "open_image", "open_image_size", "read_mask"),
    "ntt_jax/memory/bank.py": ("load_memory",),
    "ntt_jax/references/folder/coco.py": ("annotations beside a photo",),
    "ntt_jax/references/folder/found.py": ("mask beside a photo",),
    "ntt_jax/references/folder/labelme.py": ("annotations beside a photo",),
    "ntt_jax/references/folder/voc.py": ("XML beside a photo",),
    "ntt_jax/references/folder/yolo.py": ("labels beside a photo", "list of classes"),
    "ntt_jax/references/prompted.py": ("load_prompted",),
    "ntt_jax/references/published_lists.py": ("published list", "published VOC list"),
    "ntt_jax/references/sampling.py": ("load_references",),
    "ntt_jax/report/found.py": ("found photos",),
    "ntt_jax/report/run_files.py": ("description of a run",),
    "ntt_jax/report/tuned.py": ("tune.json",),
    "ntt_jax/reproduce/archive.py": ("archive of a server",),
    "ntt_jax/runs/folder.py": ("run.json",),
    "ntt_jax/runs/inputs.py": ("load references or pickle",),
    "ntt_jax/runs/paths.py": (),  # looks and closes: the readers read; tests/hostile/test_readers.py
    "ntt_jax/runs/records.py": ("records",),
    "ntt_jax/upstream/memory.py": ("read_upstream_memory",),
    "ntt_jax/upstream/references.py": ("import_upstream_references",),
    "weight_port/__main__.py": ("configuration",),
    "weight_port/files.py": ("inspect",),
    "weight_port/port.py": ("read_converted",),
    "weight_port/source.py": ("index of shards", "hints"),
}
"""Which readers stand for a module that opens files from elsewhere (by `open_input`, `read_bytes`, `parse_json`)."""


def _beside_of(path: Path, name: str) -> Path:
    """A folder beside the file; a path that is none has nothing beside it."""
    if "\0" in str(path):
        raise _missing(path)
    (path.parent / name).mkdir(exist_ok=True)
    return path.parent / name


def _place(path: Path, target: Path) -> None:
    """Put what lies at `path`, whatever it is, at `target`: as a link, or as a copy of a small file."""
    if target.is_symlink() or target.exists():
        target.unlink()
    if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20:
        shutil.copyfile(path, target)
    elif path.is_symlink() or path.exists():
        target.symlink_to(path)


def _missing(path: Path) -> Exception:
    from ntt_jax.errors import InputError
    from ntt_jax.files import show_path

    return InputError(f"{show_path(path)}: there is no such file")
