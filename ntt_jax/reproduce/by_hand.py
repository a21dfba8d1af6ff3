"""PASCAL VOC and CD-FSOD on the disk, fetched by hand: which runs a published number is the mean of.

DIR/VOCdevkit/{VOC2007,VOC2012}, DIR/vocsplit                        as their archives and TFA's project have them
DIR/{ArTaxOr,clipart1k,DIOR,FISH,NEU-DET,UODD}/{annotations,train,test}   as the CD-FSOD benchmark has them
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.reproduce.published import BY_HAND, ByHand

VOC_SPLITS = (1, 2, 3)
CD_FSOD_SETS = ("ArTaxOr", "clipart1k", "DIOR", "FISH", "NEU-DET", "UODD")


@dataclass(frozen=True)
class Task:
    """One run: references with boxes, whose masks SAM 2 makes first, and the images to segment.

    name: of its folder. classes, shots: as `ntt-jax run` takes them. source: the annotation file of the references;
    lists: what chooses among them, None where all of its annotations are references. images: their folder. annotations,
    target_images: of the targets.
    """

    name: str
    classes: str
    shots: int
    source: Path
    lists: Path | None
    images: Path
    annotations: Path
    target_images: Path


def tasks(benchmark: ByHand, folder: Path, shots: Sequence[int]) -> tuple[list[Task], list[str]]:
    """The runs of a benchmark at these numbers of shots, and which of its data sets are not there.

    Raises `InputError` that says what is missing, and where it is to be had.
    """
    if unknown := [number for number in shots if number not in benchmark.shots]:
        known = ", ".join(map(str, benchmark.shots))
        raise InputError(f"--shots: {benchmark.name} has reference lists of {known} shots, not of {unknown[0]}")
    made, lacking = _voc(folder, shots) if benchmark is BY_HAND["voc"] else _cd_fsod(folder, shots)
    for task in made:
        # With lists, the source names two years of VOC at once, each of which has been looked for.
        needed = [task.images, task.annotations, task.target_images]
        for path in [*needed, task.lists] if task.lists else [task.source, *needed]:
            if not path.exists():
                raise _missing(path, benchmark)
    if not made:
        raise _missing(folder / lacking[0], benchmark)
    return made, lacking


def _voc(folder: Path, shots: Sequence[int]) -> tuple[list[Task], list[str]]:
    devkit, lists = folder / "VOCdevkit", folder / "vocsplit"
    for year in ("VOC2007", "VOC2012"):
        if not (path := devkit / year / "ImageSets" / "Main" / "trainval.txt").exists():
            raise _missing(path, BY_HAND["voc"])
    if not any(lists.glob("box_*shot_*_train.txt")):
        lists /= "seed1"
    source = devkit / "VOC2007+VOC2012" / "ImageSets" / "Main" / "trainval.txt"
    targets = devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    made = [
        Task(f"split{split}-{number}shot", f"voc-novel{split}", number, source, lists, devkit, targets, devkit)
        for split in VOC_SPLITS
        for number in shots
    ]
    return made, []


def _cd_fsod(folder: Path, shots: Sequence[int]) -> tuple[list[Task], list[str]]:
    there = [name for name in CD_FSOD_SETS if (folder / name).is_dir()]
    made = []
    for name in there:
        place = folder / name
        for number in shots:
            source, targets = (place / "annotations" / f"{stem}.json" for stem in (f"{number}_shot", "test"))
            task = Task(f"{name}-{number}shot", "all", number, source, None, place / "train", targets, place / "test")
            made.append(task)
    return made, [name for name in CD_FSOD_SETS if name not in there]


def _missing(path: Path, benchmark: ByHand) -> InputError:
    return InputError(f"--data: {show_path(path)} is not there; it must be fetched by hand: {benchmark.sources}")
