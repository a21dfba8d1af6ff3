"""All parts of a report as one HTML file that needs nothing else: no network, no other file.

What comes from annotation files, image names and memories travels as JSON in a block that is never executed, and the
page's scripts put it on the screen as text only. The page's own policy allows exactly its one script and one style
sheet, by their hashes, and no connection to anywhere.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

import ntt_jax
from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.detection.thresholds import threshold_at
from ntt_jax.errors import InputError
from ntt_jax.evaluation import GroundTruth, evaluate_detections
from ntt_jax.evaluation.results import ImageDetections
from ntt_jax.files import PathLike, write_bytes
from ntt_jax.images.drawing import distinct_colours
from ntt_jax.images.remote import Location
from ntt_jax.memory.bank import MemoryBank
from ntt_jax.references import doctor
from ntt_jax.references.sampling import ReferenceSet
from ntt_jax.report import analysis, gallery
from ntt_jax.report.matching import KINDS, MatchedRows, match
from ntt_jax.report.memory_view import memory_view

SCRIPTS = (
    "dom.js",
    "base.js",
    "tables.js",
    "charts.js",
    "masks.js",
    "gallery.js",
    "viewer.js",
    "references.js",
    "tuning.js",
    "sections.js",
)
MAX_THUMBNAILS = 300
_CURVE_STEPS = 1000


@dataclass(frozen=True)
class ReferenceSource:
    """References and the data set their annotations and images are from; images None: no pictures of them."""

    references: ReferenceSet
    dataset: CocoDataset
    images: Location | None


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    title, provenance: text for people; provenance as headings with names and values. dataset: of the evaluated images,
    which lie in `images` (None: the gallery shows masks alone). detections: of the run, each image's once. bank,
    sources, patches (of `patch_pictures`): shown where given. skipped: images the run left out, as in metrics.json.
    notes: what a reader should know first. max_images: of the gallery. thresholds: name of the file beside the page
    that holds the classes' thresholds. tune: of `tuned.read_tuned`, where the folder holds what `ntt-jax tune` found.
    """

    title: str
    dataset: CocoDataset
    images: Location | None
    ground_truth: GroundTruth
    detections: Sequence[ImageDetections]
    bank: MemoryBank | None = None
    sources: ReferenceSource | None = None
    patches: Sequence[Sequence[str]] = ()
    skipped: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    max_images: int = 200
    thresholds: str = "thresholds.json"
    tune: Mapping[str, Any] | None = None


def write_report(path: PathLike, report: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the page, whole or not at all.

    Returns the metrics of `evaluate_detections`, and what `thresholds.json` holds (`threshold_file`).
    Raises `InputError` as `evaluate_detections` does, and if the file cannot be written.
    """
    metrics = evaluate_detections(report.ground_truth, report.detections)
    kinds = [kind for kind in ("segm", "bbox") if kind in report.ground_truth.kinds]
    records = dict(report.detections)
    rows = {kind: match(report.ground_truth, records, kind) for kind in kinds}
    main = rows[kinds[0]]
    names = [category.name for category in report.ground_truth.categories]
    scenes, pictures = _scenes(report, main, records)
    data: dict[str, Any] = {
        "title": report.title,
        "kinds": kinds,
        "metrics": {name: metrics[name] for name in (*kinds, "semantic", "images", "detections") if name in metrics},
        "objects": int(main.objects.sum()),
        "classes": _classes(metrics["per_class"], main, names),
        "curves": {kind: _curves(rows[kind]) for kind in kinds},
        "bins": analysis.BINS,
        "histograms": analysis.histograms(main).tolist(),
        "errors": [[name, count, round(cost, 5)] for name, (count, cost) in analysis.error_costs(main).items()],
        "confusion": analysis.confusion(main).tolist(),
        "threshold": _threshold(main),
        "threshold_file": report.thresholds,
        "steps": gallery.SCORE_STEPS,
        "error_kinds": list(KINDS),
        "scenes": scenes,
        "skipped": [[str(s.get("file_name", "")), str(s.get("reason", ""))] for s in report.skipped],
        "provenance": {heading: dict(values) for heading, values in report.provenance.items()},
        "notes": list(report.notes),
    }
    if report.tune is not None:
        data["tune"] = dict(report.tune)
    if report.bank is not None:
        data["memory"] = memory_view(report.bank) | {"classes": class_colours(report.bank.class_names)}
        data["references"], thumbnails = reference_cards(report.bank, report.sources)
        pictures = {**pictures, "references": thumbnails, "patches": report.patches}
    write_bytes(path, render(data, pictures))
    return metrics, threshold_file(main, names, kinds[0])


def threshold_file(rows: MatchedRows, names: Sequence[str], kind: str) -> dict[str, Any]:
    """The score threshold with the best F1 at IoU 0.5 of each class, as `ntt-jax segment --thresholds` reads it.

    kind: what was compared, "segm" or "bbox". thresholds: by class name, the score itself, so that the detection which
    has it is kept; a class of which nothing is right has none and is named in "undefined". f1 and objects say how much
    a threshold is worth: that of a class with a handful of objects is little more than chance.
    """
    best, f1 = analysis.best_thresholds(rows)
    known = [k for k in range(len(names)) if np.isfinite(best[k])]
    return {
        "thresholds": {names[k]: threshold_at(best[k]) for k in known},
        "f1": {names[k]: round(float(f1[k]), 4) for k in known},
        "objects": {names[k]: int(rows.objects[k]) for k in known},
        "undefined": [name for k, name in enumerate(names) if k not in known],
        "compared": kind,
        "iou": 0.5,
    }


def write_reference_page(
    path: PathLike,
    title: str,
    bank: MemoryBank,
    sources: ReferenceSource | None,
    patches: Sequence[Sequence[str]] = (),
) -> list[dict[str, Any]]:
    """Write a page of the references and the memory alone; returns what `reference_cards` says of them.

    Raises `InputError` if it cannot be written.
    """
    cards, thumbnails = reference_cards(bank, sources)
    memory = memory_view(bank) | {"classes": class_colours(bank.class_names)}
    data = {"title": title, "references": cards, "memory": memory}
    write_bytes(path, render(data, {"references": thumbnails, "patches": patches}))
    return cards


def render(data: Mapping[str, Any], pictures: Mapping[str, Any]) -> bytes:
    """The HTML file that shows `data`; `pictures` are data URIs, kept apart so that the rest is quick to read."""
    folder = resources.files("ntt_jax") / "report"
    style = (folder / "page.css").read_text("utf-8")
    script = '"use strict";\n' + "".join((folder / name).read_text("utf-8") for name in SCRIPTS)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(str(data["title"])),
        "GENERATOR": f"ntt-jax {ntt_jax.__version__}",
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _json(data),
        "PICTURES": _json(pictures),
    }
    # Split once, so that nothing which is filled in is searched for placeholders.
    pieces = (folder / "page.html").read_text("utf-8").split("%%")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces)).encode(
        "utf-8", "backslashreplace"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json(value: Any) -> str:
    """JSON that cannot end the script block it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def class_colours(names: Sequence[str]) -> list[list[str]]:
    """Name and colour of each class."""
    colours = distinct_colours(len(names))
    return [[name, "#{:02x}{:02x}{:02x}".format(*colour)] for name, colour in zip(names, colours, strict=True)]


def _classes(per_class: Sequence[Mapping[str, Any]], rows: MatchedRows, names: Sequence[str]) -> list[dict[str, Any]]:
    thresholds, f1 = analysis.best_thresholds(rows)
    return [
        {
            "name": name,
            "colour": colour,
            "objects": row["ground_truth"],
            "detections": row["detections"],
            "segm": row.get("segm"),
            "bbox": row.get("bbox"),
            "threshold": _finite(thresholds[k]),
            "f1": _finite(f1[k]),
        }
        for k, (row, (name, colour)) in enumerate(zip(per_class, class_colours(names), strict=True))
    ]


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _curves(rows: MatchedRows) -> list[list[list[int]] | None]:
    """Per class precision at 101 recalls in thousandths, at IoU 0.5, 0.75 and the mean of all ten; None: no objects."""
    curves = analysis.precision_curves(rows)  # [10, 101, K]
    shown = np.stack([curves[0], curves[5], curves.mean(axis=0)])  # [3, 101, K]
    whole = np.round(shown * _CURVE_STEPS).astype(int)
    return [whole[:, :, k].tolist() if rows.objects[k] else None for k in range(rows.classes)]


def _threshold(rows: MatchedRows) -> int:
    """The score step to start from: where F1 over all classes is best."""
    best = analysis.best_thresholds(rows)[0][-1]
    return int(analysis.bins(np.asarray([best]))[0]) if np.isfinite(best) else analysis.BINS // 2


def _scenes(
    report: Report, rows: MatchedRows, records: Mapping[int, HostDetections]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    ids = report.ground_truth.image_ids
    scenes, pictures = [], []
    for position in gallery.choose_images(rows, len(ids), report.max_images):
        image = report.dataset.images[ids[position]]
        picture, problem = "", "the images were not given"
        if report.images is not None:
            picture, problem = gallery.read_picture(report.dataset, report.images, image.id)
        shown = gallery.scene(report.ground_truth, rows, position, records.get(image.id), image.height, image.width)
        scenes.append({"id": image.id, "name": image.file_name, "problem": problem if not picture else ""} | shown)
        pictures.append(picture)
    return scenes, {"scenes": pictures}


def reference_cards(
    bank: MemoryBank, sources: ReferenceSource | None, *, pictures: bool = True
) -> tuple[list[dict[str, Any]], list[str]]:
    """The doctor's account of every reference, JSON-ready, and thumbnails (data URIs, "" where there is none).

    With more than `MAX_THUMBNAILS` references, those with findings and each class's first ones get a thumbnail.
    """
    shapes, places = None, None
    size, grid = bank.encoder.input_size, bank.encoder.grid
    if sources is not None:
        annotations = sources.dataset.annotations
        places = [[annotations[r.annotation_id] for r in chosen.references] for chosen in sources.references.classes]
        shapes = [[doctor.measure(sources.dataset, a, input_size=size, grid=grid) for a in row] for row in places]
    diagnoses = doctor.examine(bank.memory, bank.class_names, shapes)
    replacements: dict[tuple[int, int], Any] = {}
    if sources is not None:
        replacements = doctor.suggest_replacements(
            sources.dataset, sources.references, diagnoses, input_size=size, grid=grid
        )
    wanted = sorted(diagnoses, key=lambda d: (doctor.VERDICTS.index(d.verdict), d.number, d.label))[:MAX_THUMBNAILS]
    pictured = {(d.label, d.number) for d in wanted}
    cards, thumbnails = [], []
    for d in diagnoses:
        card, thumbnail = d.to_json(), ""
        if places is not None and sources is not None:
            annotation = places[d.label][d.number]
            card |= {"annotation": annotation.id, "image": sources.dataset.images[annotation.image_id].file_name}
            if (d.label, d.number) in pictured and sources.images is not None and pictures:
                thumbnail = _thumbnail(sources, annotation, d.label)
            if (new := replacements.get((d.label, d.number))) is not None:
                name = sources.dataset.images[new.image_id].file_name
                card["replacement"] = {"image": name, "image_id": new.image_id, "annotation": new.annotation_id}
        cards.append(card)
        thumbnails.append(thumbnail)
    return cards, thumbnails


def _thumbnail(sources: ReferenceSource, annotation: Any, label: int) -> str:
    assert sources.images is not None
    try:
        image = sources.dataset.read_image(sources.images, annotation.image_id)
        mask = sources.dataset.mask(annotation)
        return gallery.reference_thumbnail(image, mask, annotation.bbox, label) if mask.shape == image.shape[:2] else ""
    except InputError:  # the table says all that is known without it
        return ""
