"""Which files belong to a run: what its folder holds, what run.json noted, and what the options say instead.

What an option names must be there and fit, or it is an error. What is only found by itself may be missing or unfit: the
report then does without it and says so.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.bank_classes import match_classes
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.datasets.image_files import survey
from ntt_jax.errors import InputError
from ntt_jax.evaluation import GroundTruth, prepare_ground_truth
from ntt_jax.evaluation.results import ImageDetections, read_results
from ntt_jax.files import parse_json, read_bytes, show_path
from ntt_jax.images.remote import Address, Location, location
from ntt_jax.memory.bank import MemoryBank, load_memory
from ntt_jax.references.sampling import ClassReferences, Reference, ReferenceSet, check_references
from ntt_jax.report.found import FILE, FoundPhotos, read_found
from ntt_jax.report.page import ReferenceSource, Report
from ntt_jax.report.tuned import FILE as TUNED
from ntt_jax.report.tuned import read_tuned
from ntt_jax.runs.folder import MAX_RUN_BYTES
from ntt_jax.runs.inputs import read_references
from ntt_jax.runs.paths import check_annotations, check_folder, check_input
from weight_port.files import sha256

DEMO = {"annotations": "targets/annotations.json", "images": "targets"}
DEMO |= {"reference_annotations": "references/annotations.json", "reference_images": "references"}

_OTHERS = {
    "ablation.json": "holds an ablation of many memories, whose numbers are in ablation.json; the page is about one"
    " memory: give the --out folder of evaluate",
}
"""Files of the other commands' folders, and what to do with such a folder."""


@dataclasses.dataclass
class RunFiles:
    """A run's files. given: by option; found: what an option left open; suffix: of the demo's file names, else "".

    elsewhere: addresses in run.json. They are named and never asked: the folder may come from others.
    """

    folder: Path
    suffix: str
    given: dict[str, Location]
    found: dict[str, Path]
    elsewhere: dict[str, Address]
    run: dict[str, Any]
    metrics: dict[str, Any]
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def results(self) -> Path:
        """The results file."""
        return self.folder / f"results{self.suffix}.json"

    def path(self, name: str) -> Path | None:
        """Where a file is, by the name of its option; None if that is not known."""
        path = self.given.get(name) or self.found.get(name)
        return path if isinstance(path, Path) else None

    def images(self, name: str = "images") -> Location | None:
        """The folder of images, by the name of its option, if it is there; an address only if the option says it."""
        given, path = self.given.get(name), self.path(name)
        return given if isinstance(given, Address) else path if path is not None and path.is_dir() else None


def find_files(folder: Path, given: Mapping[str, Location | None], shots: int | None) -> RunFiles:
    """The files of the run in `folder`; of a demo's runs the one with `shots`, or with the most.

    Raises `InputError` if the folder holds no finished run, or a file that an option names is not there.
    """
    check_folder(folder, "RUN_DIR")
    named = {name: path for name, path in given.items() if path is not None}
    for name, path in named.items():
        check_input(path, name)
    suffix = _suffix(folder, shots)
    run = _read(folder / "run.json")
    places: dict[str, Location] = {}
    for start in _list(run.get("starts")):
        noted = start.get("files") if isinstance(start, dict) else None
        if isinstance(noted, dict):
            places |= {name: location(path) for name, path in noted.items() if isinstance(path, str)}
    found = {name: path for name, path in places.items() if isinstance(path, Path)}
    elsewhere = {name: path for name, path in places.items() if isinstance(path, Address)}
    beside = {"memory": f"memory{suffix}.safetensors", "references": f"references{suffix}.json"}
    for name, path in {**beside, **(DEMO if suffix else {})}.items():
        if (folder / path).exists():
            found[name] = folder / path
    return RunFiles(folder, suffix, named, found, elsewhere, run, _read(folder / f"metrics{suffix}.json"))


def is_found(folder: Path, shots: int | None) -> bool:
    """Whether a folder is one that `ntt-jax segment` wrote, and holds no run to compare."""
    return (folder / FILE).is_file() and not _has_runs(folder) and shots is None


def _has_runs(folder: Path) -> bool:
    return (folder / "results.json").exists() or any(folder.glob("results_*.json"))


def is_tuned(folder: Path, shots: int | None) -> bool:
    """Whether a folder is one that `ntt-jax tune` wrote, and holds no run to compare."""
    return (folder / TUNED).is_file() and not _has_runs(folder) and shots is None


def load_found(folder: Path, images: Location | None, title: str | None, max_images: int) -> FoundPhotos:
    """What `segment` wrote into a folder. images: where the photos are, where run.json does not say or they have moved.

    Raises `InputError` as `read_found`.
    """
    run = _read(folder / "run.json")
    for start in _list(run.get("starts")):
        noted = start.get("files") if isinstance(start, dict) else None
        if images is None and isinstance(noted, dict) and isinstance(noted.get("images"), str):
            images = Path(noted["images"])
    if isinstance(images, Path) and not images.is_dir():
        images = None
    identity = run.get("identity")
    exif = identity.get("exif", "upright") if isinstance(identity, dict) else "upright"
    name = title or folder.resolve().name or "segment"
    return read_found(folder, images, run, title=name, max_images=max_images, exif=str(exif))


def _suffix(folder: Path, shots: int | None) -> str:
    if (folder / "results.json").is_file() and shots is None:
        return ""
    names = (re.fullmatch(r"results_([0-9]{1,6})\.json", path.name) for path in folder.iterdir())
    runs = sorted(int(match[1]) for match in names if match)
    if shots is None and runs:
        return f"_{runs[-1]}"
    if shots in runs:
        return f"_{shots}"
    if shots is not None:
        there = f"it has those of {', '.join(map(str, runs))}" if runs else "only the demo's folder has such runs"
        raise InputError(f"--shots: {show_path(folder)} holds no results_{shots}.json; {there}")
    for name, words in _OTHERS.items():
        if (folder / name).exists():
            raise InputError(f"{show_path(folder)}: {words}")
    if (folder / "run.json").exists():
        raise InputError(f"{show_path(folder)}: the run is not finished; start the same `ntt-jax evaluate` again first")
    raise InputError(f"{show_path(folder)}: holds no results.json; give the --out folder of evaluate, run or demo")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that describes the run; empty without the file."""
    if not path.exists():
        return {}
    content = parse_json(read_bytes(path, max_bytes=MAX_RUN_BYTES, what="run"), path, what="run")
    if not isinstance(content, dict):
        raise InputError(f"{show_path(path)}: expected a JSON object; it is not a file of this program")
    return content


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@dataclasses.dataclass(frozen=True)
class Scored:
    """A run's detections and what they are measured against; bank: None where the memory was not found."""

    dataset: CocoDataset
    bank: MemoryBank | None
    ground_truth: GroundTruth
    detections: list[ImageDetections]


def load_scored(files: RunFiles) -> Scored:
    """Read and check annotations, memory and results. Raises `InputError` if annotations or results are unfit."""
    dataset, bank = _annotations(files), _memory(files)
    if bank is not None:
        with contextlib.suppress(InputError):  # a memory of other classes: shown as it is
            bank = match_classes(bank, dataset)[0]
    ground_truth = prepare_ground_truth(dataset, _categories(files, dataset, bank))
    ids = [category.id for category in ground_truth.categories]
    return Scored(dataset, bank, ground_truth, read_results(files.results, dataset, ids))


def load_report(files: RunFiles, title: str | None, max_images: int) -> Report:
    """Read and check everything the page needs. Raises `InputError` for what it cannot do without."""
    scored = load_scored(files)
    images = find_images(files) if max_images else None
    dataset, bank, ground_truth = scored.dataset, scored.bank, scored.ground_truth
    if "segm" not in ground_truth.kinds:
        files.notes.append("The annotations have no masks, or not all: boxes are compared, masks are not.")
    if ground_truth.protocol == "voc":
        files.notes.append("AP is by VOC's rules; curves, errors and confusion match detections as COCO does.")
    return Report(
        title=title
        or f"Evaluation report: {files.folder.resolve().name or 'run'}" + files.suffix.replace("_", ", shots "),
        dataset=dataset,
        images=images,
        ground_truth=ground_truth,
        detections=scored.detections,
        bank=bank,
        sources=None if bank is None else _sources(files, bank, dataset, images),
        skipped=[entry for entry in _list(files.metrics.get("skipped")) if isinstance(entry, dict)],
        provenance=_provenance(files, dataset, bank),
        notes=files.notes,
        max_images=max_images,
        thresholds=f"thresholds{files.suffix}.json",
        tune=read_tuned(files.folder / TUNED) if (files.folder / TUNED).is_file() else None,
    )


def _annotations(files: RunFiles) -> CocoDataset:
    path = files.path("annotations")
    try:
        if path is None:
            raise InputError("run.json does not say where")
        check_annotations(path, "they are no longer there")  # more than one file, perhaps
    except InputError as error:
        needed = f"{show_path(files.folder)}: the annotations are needed and {error}; give --annotations"
        raise InputError(needed) from None
    dataset = load_dataset(path)
    expected = _identity(files).get("annotation file")
    if isinstance(expected, str) and expected != dataset.sha256:
        raise InputError(
            f"{show_path(path)}: its sha256 is {dataset.sha256[:12]}..., the run was evaluated on {expected[:12]!a}...;"
            " give the run's own file with --annotations"
        )
    images = files.images()
    return dataset if images is None else survey(dataset, images, exif=_exif(files))


def _exif(files: RunFiles) -> str:
    return "raw" if _identity(files).get("exif") == "raw" else "upright"


def _identity(files: RunFiles) -> dict[str, Any]:
    identity = files.run.get("identity")
    return identity if isinstance(identity, dict) else {}


def find_images(files: RunFiles) -> Location:
    """The folder of the run's images. Raises `InputError` if it is not known or gone."""
    if (images := files.images()) is not None:
        return images
    path, address = files.path("images"), files.elsewhere.get("images")
    where = "run.json does not say where" if path is None else f"they are no longer in {show_path(path)}"
    if path is None and address is not None:
        where = f"run.json names an address, {address}, which is asked only if you name it"
    raise InputError(
        f"{show_path(files.folder)}: pictures need the images and {where}; give --images, or go without pictures"
    )


def _memory(files: RunFiles) -> MemoryBank | None:
    path = files.path("memory")
    if path is None or not (path.exists() or "memory" in files.given):
        files.notes.append("The memory file was not found, so references and memory are not shown; give --memory.")
        return None
    expected = _identity(files).get("memory")
    if isinstance(expected, str) and sha256(path) != expected:
        if "memory" in files.given:
            raise InputError(f"--memory: {show_path(path)} is not the memory of this run (its sha256 differs)")
        files.notes.append(f"{path.name} has changed since the run, so references and memory are not shown.")
        return None
    return load_memory(path)


def _categories(files: RunFiles, dataset: CocoDataset, bank: MemoryBank | None) -> list[CocoCategory]:
    """The evaluated classes: those of the metrics, else of the memory, else of the annotations."""
    rows = [row for row in _list(files.metrics.get("per_class")) if isinstance(row, dict)]
    ids = [row.get("category_id") for row in rows] or list(bank.category_ids if bank else dataset.categories)
    for category_id in ids:
        if not isinstance(category_id, int) or category_id not in dataset.categories:
            raise InputError(
                f"{show_path(dataset.path)}: has no category {category_id!r:.40}, which the run was evaluated on; give "
                "the run's own file with --annotations"
            )
    return [dataset.categories[i] for i in ids if isinstance(i, int)]


def _sources(
    files: RunFiles, bank: MemoryBank, dataset: CocoDataset, images: Location | None
) -> ReferenceSource | None:
    """The references behind the memory, if they can be found and fit it."""
    try:
        return find_sources(bank, files.path, dataset, files.images("reference_images") or images, _exif(files))
    except InputError as error:
        if any(name.startswith("reference") for name in files.given):
            raise
        files.notes.append(f"The references cannot be shown ({error}); give --reference-annotations.")
        return None


def find_sources(
    bank: MemoryBank,
    path: Callable[[str], Path | None],
    dataset: CocoDataset,
    images: Location | None,
    exif: str = "upright",
) -> ReferenceSource:
    """The references of a memory, their annotations and images.

    path: from an option's name to its file, None where not known. dataset: used where there is no other. images: the
    folder of the references, if it is known. exif: as the memory was made.
    Raises `InputError` if something is missing or does not fit the memory.
    """
    annotations = path("reference_annotations")
    source = dataset if annotations is None or Path(dataset.path) == annotations else load_dataset(annotations)
    file = path("references")
    references = remembered(bank) if file is None else read_references(file, source)
    if images is not None:
        ids = {reference.image_id for chosen in references.classes for reference in chosen.references}
        source = survey(source, images, exif=exif, image_ids=ids)
    check_references(references, source)
    counts = tuple(len(chosen.references) for chosen in references.classes)
    if tuple(chosen.category_id for chosen in references.classes) != bank.category_ids or counts != bank.shots:
        raise InputError("the reference file has other classes or numbers of references than the memory")
    return ReferenceSource(references, source, images)


def remembered(bank: MemoryBank) -> ReferenceSet:
    """The references that a memory file names itself. Raises `InputError` if it does not."""
    noted, sha = bank.provenance.get("references"), bank.provenance.get("annotations_sha256")
    try:
        if not isinstance(noted, dict):
            raise TypeError
        classes = tuple(
            ClassReferences(category_id, name, tuple(Reference(int(i), int(a)) for i, a in noted[str(category_id)]))
            for category_id, name in zip(bank.category_ids, bank.class_names, strict=True)
        )
    except (KeyError, TypeError, ValueError):
        raise InputError("the memory file does not name its references; give --references") from None
    return ReferenceSet(classes, max(bank.shots), None, None, sha if isinstance(sha, str) else None)


def _provenance(files: RunFiles, dataset: CocoDataset, bank: MemoryBank | None) -> dict[str, dict[str, str]]:
    """What the run was made of, as text; folders of this machine stay out of a page that may be passed on."""
    result = {"Run": {"folder": files.folder.resolve().name, "annotations": Path(dataset.path).name}}
    result["Run"] |= _flat(_identity(files), leave_out=("classes",))
    if "annotation file" not in result["Run"]:
        result["Run"]["annotation file"] = dataset.sha256
    for number, start in enumerate((s for s in _list(files.run.get("starts")) if isinstance(s, dict)), 1):
        result[f"Start {number}"] = _flat(start, leave_out=("files",))
    if bank is not None:
        result["Memory"] = {"encoder": bank.encoder.name, "classes": str(len(bank.class_names))}
        result["Memory"] |= {"references per class": _range(bank.shots)}
        if any(bank.negative_shots):
            result["Memory"] |= {"negative references per class": _range(bank.negative_shots)}
        result["Memory"] |= _flat(bank.provenance, leave_out=("references", "negatives"))
    return result


def _flat(values: Mapping[str, Any], leave_out: tuple[str, ...] = (), before: str = "") -> dict[str, str]:
    """Nested values as one level of text."""
    result: dict[str, str] = {}
    for name, value in values.items():
        if name in leave_out:
            continue
        if isinstance(value, dict):
            result |= _flat(value, before=f"{before}{name}: ")
        else:
            result[f"{before}{name}"] = "–" if value is None else str(value)[:200]
    return result


def _range(counts: tuple[int, ...]) -> str:
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
