"""The whole method on made scenes with the small trained checkpoints of the package: numbers and pictures, offline.

The road is a user's own: PyTorch checkpoints are converted, references sampled from an annotation file, a memory is
built and saved, target images are read from the disk, detections evaluated with COCOeval.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntt_jax.compiled.predictor import Predictor
from ntt_jax.compiled.reference_encoder import ReferenceEncoder
from ntt_jax.config import DetectConfig, arithmetic
from ntt_jax.datasets.coco import load_coco
from ntt_jax.datasets.dataset import CocoDataset, select_classes
from ntt_jax.demo.scenes import NOVEL_SPLITS, Scene, SceneConfig, Variation, base_classes, make_scene, novel_classes
from ntt_jax.demo.scenes.export import write_coco
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.evaluation import evaluate_detections, prepare_ground_truth
from ntt_jax.evaluation.results import write_results
from ntt_jax.files import write_json
from ntt_jax.images import drawing as visualize
from ntt_jax.images.preprocess import encoder_input, resize_for_sam
from ntt_jax.images.reading import read_image
from ntt_jax.images.rle import Rle, decode_rles, encode_masks
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.memory.bank import MemoryBank, save_memory
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.references.build import build_memory
from ntt_jax.references.sampling import ReferenceSet, sample_references, save_references
from weight_port import convert

SAM2_NAME, DINOV2_NAME = "sam2_ntt_small", "dinov2_ntt_small"
SMALL_DETECT = DetectConfig(points_per_side=16)
"""Constants for the small models: objects are no smaller than a sixteenth of the image's side."""
SCENES = 40
REFERENCE_SCENES = 60
REFERENCE_VARIATION = Variation().scaled(2.0)
"""Objects differ from the rest of their class twice as much where references are taken as where objects are sought:
references are few and not chosen, and one alone may be an odd one."""
_SHOWN = 6
_SHOWN_SCORE = 0.5


@dataclass(frozen=True)
class Benchmark:
    """Made scenes on the disk. references: scenes to take references from; targets: scenes to find objects in;
    distractors: by image id of a target, the masks `[n, H, W]` of its objects of other classes, as run lengths."""

    folder: Path
    references: CocoDataset
    targets: CocoDataset
    distractors: dict[int, list[Rle]] = field(default_factory=dict)

    def target_images(self) -> Iterator[np.ndarray]:
        """The target images `[H, W, 3]` uint8, by ascending id."""
        for image_id in sorted(self.targets.images):
            yield read_image(self.targets.image_path(self.folder / "targets", image_id))


def make_benchmark(folder: Path, seed: int, scenes: int, reference_scenes: int = REFERENCE_SCENES) -> Benchmark:
    """Write scenes of one novel split (`seed` modulo 4) with base classes as distractors, in COCO's format.

    Targets and references are different scenes, those of references with `REFERENCE_VARIATION`; both follow from the
    seed alone.
    """
    classes, distractors = novel_classes(seed % NOVEL_SPLITS), base_classes()

    others: dict[int, list[Rle]] = {}

    def write(name: str, stream: int, count: int, config: SceneConfig) -> CocoDataset:
        def made() -> Iterator[Scene]:
            for index in range(count):
                scene = make_scene([seed, stream, index], classes, distractors, config)
                others[index + 1] = encode_masks(scene.masks[scene.labels < 0])  # ids count from 1
                yield scene

        return load_coco(write_coco(folder / name, made(), classes))

    references = write("references", 0, reference_scenes, SceneConfig(variation=REFERENCE_VARIATION))
    others.clear()
    return Benchmark(folder, references, write("targets", 1, scenes, SceneConfig()), others)


def convert_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Convert the package's PyTorch checkpoints into `folder`; returns the paths of SAM 2 and DINOv2."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in (SAM2_NAME, DINOV2_NAME):
        assets = resources.files("ntt_jax") / "assets"
        with resources.as_file(assets / f"{name}.pt") as source:
            given = json.loads((assets / f"{name}.json").read_text())
            convert(source, folder / f"{name}.safetensors", given=given)
        paths.append(folder / f"{name}.safetensors")
    return paths[0], paths[1]


def evaluate(
    benchmark: Benchmark, predictor: Predictor, results: Path | None = None
) -> tuple[dict[str, Any], list[HostDetections]]:
    """Metrics of `evaluate_detections` on the targets, and the detections by ascending image id."""
    dataset, categories = benchmark.targets, select_classes(benchmark.targets, "all")
    found = list(predictor(benchmark.target_images()))
    records = list(zip(sorted(dataset.images), found, strict=True))
    if results is not None:
        write_results(results, records, [c.id for c in categories])
    return evaluate_detections(prepare_ground_truth(dataset, categories), records), found


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    scenes: int | None = None,
    shots: Sequence[int] = (1, 5),
    dtype: str = "float32",
    batch_size: int = 4,
    devices: Sequence[Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[int, dict[str, Any]]:
    """Run the demo into the folder `out`; returns the metrics by number of shots.

    Args:
      seed: of the scenes and of the choice of references; also chooses one of four sets of six novel classes.
      scenes: target images, 40 if None. shots: references per class; each number is one run.
      dtype: one of `config.DTYPES`. batch_size, devices: as for `Predictor`. say: prints a line.

    Writes weights/, references/, targets/ (COCO folders), and for each number of shots references_N.json,
    memory_N.safetensors, results_N.json, metrics_N.json; pictures: references.png, targets.png, features.png.

    Raises:
      InputError: too few scenes for the shots, files that cannot be written.
    """
    out, started = Path(out), time.monotonic()
    scenes = SCENES if scenes is None else scenes
    if not shots or min(shots) < 1 or scenes < 1:
        raise InputError(f"demo: expected at least one scene and shot, found scenes {scenes}, shots {list(shots)}")
    benchmark = make_benchmark(out, seed, scenes, max(REFERENCE_SCENES, 12 * max(shots)))
    classes = select_classes(benchmark.references, "all")
    say(
        f"{scenes} scenes with {len(benchmark.targets.annotations)} objects of {len(classes)} classes no model has seen"
    )
    sam2_path, dinov2_path = convert_checkpoints(out / "weights")
    kernels, precision = arithmetic(dtype)
    sam2, dinov2 = load_sam2(sam2_path, kernels), load_dinov2(dinov2_path, kernels)
    encoder = ReferenceEncoder(dinov2, batch_size=batch_size, devices=devices, matmul_precision=precision)

    metrics: dict[int, dict[str, Any]] = {}
    detections: list[HostDetections] = []
    predictor: Predictor | None = None
    for count in shots:
        references = sample_references(benchmark.references, classes, count, seed)
        save_references(out / f"references_{count}.json", references)
        memory = build_memory(encoder, benchmark.references, benchmark.folder / "references", references)
        names, ids = tuple(c.name for c in classes), tuple(c.id for c in classes)
        bank = MemoryBank(memory, names, ids, dinov2.config, {"shots": count, "seed": seed})
        save_memory(out / f"memory_{count}.safetensors", bank)
        if predictor is None:
            predictor = Predictor(
                sam2,
                dinov2,
                memory.prototypes,
                SMALL_DETECT,
                batch_size=batch_size,
                devices=devices,
                divide="images",
                matmul_precision=precision,
                canvas=640,
            )
        else:
            predictor = predictor.with_prototypes(memory.prototypes)
        metrics[count], detections = evaluate(benchmark, predictor, out / f"results_{count}.json")
        write_json(out / f"metrics_{count}.json", metrics[count])
        _draw_references(out / "references.png", benchmark, references)
    _draw_targets(out / "targets.png", benchmark, detections, shots[-1])
    _draw_features(out / "features.png", benchmark, sam2, dinov2)
    say(table(metrics))
    say(f"{time.monotonic() - started:.0f} s; pictures: {out}/references.png, targets.png, features.png")
    return metrics


def table(metrics: dict[int, dict[str, Any]]) -> str:
    """AP and AP50 of boxes and masks at each number of shots, as text."""
    lines = ["shots   bbox AP  bbox AP50   segm AP  segm AP50"]
    for shots, values in metrics.items():
        numbers = [values[kind][name] for kind in ("bbox", "segm") for name in ("AP", "AP50")]
        cells = ["      -" if number is None else f"{number:7.3f}" for number in numbers]
        lines.append(f"{shots:5d}   {cells[0]}  {cells[1]:>9}   {cells[2]}  {cells[3]:>9}")
    return "\n".join(lines)


def _shown_images(benchmark: Benchmark) -> list[int]:
    """The first images that have objects."""
    return [i for i in sorted(benchmark.targets.images) if benchmark.targets.image_annotations[i]][:_SHOWN]


def _draw_references(path: Path, benchmark: Benchmark, references: ReferenceSet) -> None:
    """One row per class: its references with their masks."""
    dataset, tiles = benchmark.references, []
    columns = max(len(chosen.references) for chosen in references.classes)
    for k, chosen in enumerate(references.classes):
        for number, reference in enumerate(chosen.references, 1):
            image = read_image(dataset.image_path(benchmark.folder / "references", reference.image_id))
            mask = dataset.mask(dataset.annotations[reference.annotation_id])
            # All but the reference itself is dimmed.
            tile = visualize.overlay(np.where(mask[..., None], image, image // 3), mask[None], [k], opacity=0.0)
            tiles.append(visualize.titled(tile, f"{chosen.name}, {number}"))
    sheet = visualize.grid(tiles, columns)
    visualize.save_picture(path, visualize.titled(sheet, "The references of each class: all that the method is told"))


def _draw_targets(path: Path, benchmark: Benchmark, detections: Sequence[HostDetections], shots: int) -> None:
    """Ground truth on the left, detections on the right; objects of other classes are crossed out."""
    dataset = benchmark.targets
    names = [c.name.split(maxsplit=2)[-1] for c in dataset.categories.values()]
    tiles = []
    for image_id, found in zip(sorted(dataset.images), detections, strict=True):
        if image_id not in _shown_images(benchmark):
            continue
        image = read_image(dataset.image_path(benchmark.folder / "targets", image_id))
        annotations = dataset.image_annotations[image_id]
        labels = [a.category_id - 1 for a in annotations]
        truth = np.stack([dataset.mask(a) for a in annotations])
        other = decode_rles(benchmark.distractors.get(image_id, []), *image.shape[:2])
        drawn = visualize.overlay(visualize.outlined(image, other), truth, labels, [names[k] for k in labels])
        tiles.append(visualize.titled(drawn, f"scene {image_id}: what is there"))
        shown = np.flatnonzero(found.scores >= _SHOWN_SCORE)
        masks = decode_rles([found.rles[i] for i in shown], *image.shape[:2])
        captions = [f"{names[found.labels[i]]} {found.scores[i]:.2f}" for i in shown]
        drawn = visualize.overlay(image, masks, found.labels[shown], captions)
        tiles.append(visualize.titled(drawn, f"scene {image_id}: what was found"))
    words = f"{shots} reference{'s' if shots != 1 else ''} per class; detections that score {_SHOWN_SCORE} or more."
    sheet = visualize.grid(tiles, 4)
    title = f"{words} Crossed out: objects of other classes, which are not to be found"
    visualize.save_picture(path, visualize.titled(sheet, title))


def _draw_features(path: Path, benchmark: Benchmark, sam2: Sam2, dinov2: Encoder) -> None:
    """Target images above the three main directions of their DINOv2 features."""
    chosen = _shown_images(benchmark)
    images = [read_image(benchmark.targets.image_path(benchmark.folder / "targets", i)) for i in chosen]
    if not images:
        return
    batch = np.stack([resize_for_sam(image, sam2.config.image_size) for image in images])
    features = jax.jit(lambda model, x: model(encoder_input(x, model.config.input_size)))(dinov2, batch)
    colours = visualize.pca_colours(np.asarray(features, np.float32))
    maps = [visualize.enlarge(c, *image.shape[:2]) for c, image in zip(colours, images, strict=True)]
    tiles = [visualize.titled(image, f"scene {i}") for i, image in zip(chosen, images, strict=True)]
    tiles += [visualize.titled(m, f"scene {i}: features") for i, m in zip(chosen, maps, strict=True)]
    title = "Three main components of DINOv2's patch features as red, green and blue: like colours, like features"
    visualize.save_picture(path, visualize.titled(visualize.grid(tiles, len(images)), title))
