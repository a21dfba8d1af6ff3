"""What the page does: photos opened and encoded once, masks of clicks, references learned as they come.

The search through the photos is in `search`. Points and masks that come from the page are in pixels of the picture
that it shows, which is the photo, made smaller if it is large.
"""

import contextlib
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from ntt_jax.app.project import Kind, Photo, Project, Reference
from ntt_jax.compiled.prompt_masker import Choices, EncodedImage, Prompt, PromptMasker
from ntt_jax.datasets.coco import load_coco
from ntt_jax.errors import InputError
from ntt_jax.files import parse_json, read_bytes, show_path, write_json
from ntt_jax.images.reading import read_image
from ntt_jax.images.rle import Rle, decode_rle, encode_masks, segmentation_to_rle
from ntt_jax.memory.bank import load_memory
from ntt_jax.models.encoder import Encoder
from ntt_jax.models.sam2.sam2_base import Sam2
from ntt_jax.references.doctor import Shape, examine, measure
from ntt_jax.segmenter.segmenter import Segmenter
from ntt_jax.text import one_line
from weight_port.files import sha256

PICTURE_SIDE = 1280
"""Photos are shown, and clicked on, at most this many pixels a side."""
THUMBNAIL_SIDE = 256
_ENCODED = 12  # images whose features are kept; 16 MB each for Hiera-L
_PICTURES = 24
_LEARNED = "learned.json"
T = TypeVar("T")


class Picture(NamedTuple):
    """A photo as the page shows it: `[h, w, 3]` uint8, and the photo's own height and width, upright."""

    pixels: np.ndarray
    height: int
    width: int


class _Kept(Generic[T]):
    """The latest results of a function of photos. Two threads never make the same one at the same time."""

    def __init__(self, make: Callable[[Photo], T], count: int):
        self._make, self._count, self._lock = make, count, threading.Lock()
        self._found: OrderedDict[str, T] = OrderedDict()

    def __contains__(self, photo: Photo) -> bool:
        return photo.id in self._found

    def __call__(self, photo: Photo) -> T:
        with self._lock:
            if photo.id not in self._found:
                self._found[photo.id] = self._make(photo)
                while len(self._found) > self._count:
                    self._found.popitem(last=False)
            self._found.move_to_end(photo.id)
            return self._found[photo.id]


class Workbench:
    """A project with the models that work on it. Threads may share one; edits happen one at a time.

    What the project's memory file holds already is not encoded again. Raises `InputError` as `Project` and `Segmenter`.
    """

    def __init__(self, project: Project, sam2: Sam2, dinov2: Encoder, **options: Any):
        self.project = project
        self.segmenter = Segmenter(sam2, dinov2, **options)
        self.edits = threading.Lock()
        self.revision = 0
        self.memory_sha256 = ""
        self._models, self._options = (sam2, dinov2), options
        self._masker = PromptMasker(sam2, matmul_precision=options.get("matmul_precision", "highest"))
        self._opened = _Kept(self._open, _PICTURES)
        self._encoded = _Kept(self._encode, _ENCODED)
        self._thumbnails = _Kept(self._thumbnail, 4096)
        self._learned: dict[str, dict[Kind, list[int]]] = {}
        self._shapes: dict[int, Shape] = {}
        self.problems: dict[int, str] = {}
        """References that cannot be used now, and why."""
        self._resume()

    def snapshot(self) -> tuple[str, Segmenter]:
        """The memory of this moment: its sha256, and a segmenter that later edits do not change.

        Raises `InputError` if there is no class.
        """
        with self.edits:
            if not self.segmenter.classes:
                raise InputError("show a reference first: what should be found?")
            return self.memory_sha256, self.segmenter.snapshot()

    # Looking

    def picture(self, photo: Photo) -> Picture:
        """The photo as the page shows it. Raises `InputError` if it cannot be read."""
        return self._opened(photo)

    def thumbnail(self, photo: Photo) -> bytes:
        """A small JPEG. Raises `InputError` if the photo cannot be read."""
        return self._thumbnails(photo)

    def encode(self, photo: Photo) -> None:
        """Prepare a photo for `choices`."""
        self._encoded(photo)

    def choices(self, photo: Photo, prompt: Prompt) -> Choices:
        """The masks that a prompt in the picture may mean. Raises `InputError` if the photo cannot be read."""
        encoded, picture = self._encoded(photo), self.picture(photo)
        height, width = picture.pixels.shape[:2]
        return self._masker.choices(encoded, _scaled(prompt, encoded.width / width, encoded.height / height))

    def _open(self, photo: Photo) -> Picture:
        pixels = _read(photo)
        return Picture(_smaller(pixels, PICTURE_SIDE), *pixels.shape[:2])

    def _thumbnail(self, photo: Photo) -> bytes:
        pixels = self._opened(photo).pixels if photo in self._opened else _read(photo)
        return jpeg(_smaller(pixels, THUMBNAIL_SIDE), quality=80)

    def _encode(self, photo: Photo) -> EncodedImage:
        return self._masker.encode(_read(photo))

    def warm(self) -> None:
        """Compile what the first clicks need, so that they need not wait for it."""
        size = self._masker.config.image_size
        encoded = self._masker.encode(np.zeros((size, size, 3), np.uint8))
        points = tuple((8.0 + i, 8.0) for i in range(4))
        for count in range(1, len(points) + 1):
            self._masker.choices(encoded, Prompt(points=points[:count]))
        for count in range(3):
            self._masker.choices(encoded, Prompt(box=(4.0, 4.0, 16.0, 16.0), points=points[:count]))

    # Learning

    def add(self, kind: Kind, photo: Photo, class_name: str, mask: Rle) -> Reference:
        """One more reference, on the disk and learned; `mask` is of the photo's full size. Raises `InputError`."""
        with self.edits:
            reference = self.project.add(kind, photo, class_name, mask)
            try:
                self._learn(reference)
                self._keep()
            except BaseException:
                with contextlib.suppress(InputError):  # of a disk that is full: the start after next takes it back
                    self._forget(reference)
                raise
            return reference

    def remove(self, id: int) -> None:
        """Forget a reference. Raises `InputError` if it is not there."""
        with self.edits:
            self._forget(self.project.remove(id), removed=True)

    def _forget(self, reference: Reference, *, removed: bool = False) -> None:
        self.problems.pop(reference.id, None)
        ids = self._learned.get(reference.class_name, {}).get(reference.kind, [])
        learned = reference.id in ids
        if learned:
            self._unlearn(reference, ids)
        if not removed:
            self.project.remove(reference.id)
        if learned or removed:
            self._keep()

    def full_mask(self, photo: Photo, mask: Mapping[str, Any]) -> Rle:
        """A mask of the picture at the photo's full size. Raises `InputError` if it is not of the picture's size."""
        picture = self.picture(photo)
        height, width = picture.pixels.shape[:2]
        checked = segmentation_to_rle(dict(mask), height, width, "mask")
        if (height, width) == (picture.height, picture.width):
            return checked
        small = Image.fromarray(decode_rle(checked))
        large = np.asarray(small.resize((picture.width, picture.height), Image.Resampling.NEAREST))
        return encode_masks(large[None])[0]

    def diagnoses(self) -> dict[int, dict[str, Any]]:
        """The doctor's verdict and words on every reference that has been learned, by annotation id."""
        with self.edits:
            names = list(self.segmenter.classes)
            if not names:
                return {}
            ids = [self._learned[name]["reference"] for name in names]
            self._measure([id for row in ids for id in row])
            shapes = [[self._shapes.get(id) for id in row] for row in ids]
            memory = self.segmenter.memory
        found = examine(memory, names, shapes)
        flat = [id for row in ids for id in row]
        return {
            id: {"verdict": one.verdict, "words": [finding.text for finding in one.findings]}
            for id, one in zip(flat, found, strict=True)
        }

    def _measure(self, ids: Sequence[int]) -> None:
        if missing := [id for id in ids if id not in self._shapes]:
            dataset = load_coco(self.project.home / "references.json")
            encoder = self._models[1].config
            for id in missing:
                annotation = dataset.annotations[id]
                self._shapes[id] = measure(dataset, annotation, input_size=encoder.input_size, grid=encoder.grid)

    def _learn(self, reference: Reference) -> None:
        """Encode one reference, and no other. Raises `InputError` if it cannot be used."""
        name, given = reference.class_name, [(self.project.path_of(reference), decode_rle(reference.mask))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the doctor says the same, and more
            if reference.kind == "negative":
                if name not in self.segmenter.classes:
                    raise InputError(f"{name}: show what it looks like first; then what is none of it")
                self.segmenter.add_negative(name, given)
            else:
                self.segmenter.add(name, given, category_id=self.project.categories[name])
        self._learned.setdefault(name, {"reference": [], "negative": []})[reference.kind].append(reference.id)

    def _unlearn(self, reference: Reference, ids: list[int]) -> None:
        name, place = reference.class_name, ids.index(reference.id)
        if reference.kind == "negative":
            self.segmenter.remove_negative(name, place)
        elif len(ids) > 1:
            self.segmenter.remove(name, place)
        else:  # its negatives come back with its next reference
            self.segmenter.remove(name)
            del self._learned[name]
            return
        ids.remove(reference.id)

    def _keep(self) -> None:
        """The memory of what has been learned, and which references are in it, on the disk."""
        self._learn_waiting()
        self.revision += 1
        if not self.segmenter.classes:
            self.project.memory.unlink(missing_ok=True)
            self.memory_sha256 = ""
            return
        self.segmenter.save(self.project.memory)
        self.memory_sha256 = sha256(self.project.memory)
        known = self.project.references
        content = {
            name: {k: [[i, known[i].digest] for i in ids] for k, ids in of.items()}
            for name, of in self._learned.items()
        }
        write_json(self.project.home / _LEARNED, {"memory": self.memory_sha256, "classes": content})

    def _learn_waiting(self) -> None:
        """Learn the references that are in the project and not in the memory; those that cannot be are `problems`."""
        learned = {id for of in self._learned.values() for ids in of.values() for id in ids}
        waiting = [reference for id, reference in self.project.references.items() if id not in learned]
        for reference in sorted(waiting, key=lambda one: one.kind == "negative"):
            try:
                self._learn(reference)
                self.problems.pop(reference.id, None)
            except InputError as error:
                self.problems[reference.id] = str(error)

    def _resume(self) -> None:
        """Take over what an earlier start learned, as far as the project still has it; then the rest is learned."""
        for name, of in self._earlier().items():
            self._learned[name] = of
        if self._learned:
            known = self.project.references
            self.segmenter = Segmenter.load(self.project.memory, *self._models, **self._options)
            for name, of in list(self._learned.items()):
                for kind in ("negative", "reference"):
                    for id in [id for id in of[kind] if id not in known]:
                        self._unlearn(Reference(id, kind, "", name, {"size": [1, 1], "counts": ""}), of[kind])
        self._keep()

    def _earlier(self) -> dict[str, dict[Kind, list[int]]]:
        """Ids by class and kind of the memory file in order; nothing if it is not the one that `_keep` wrote down."""
        path = self.project.home / _LEARNED
        try:
            content = parse_json(read_bytes(path, max_bytes=2**26, what="list"), path, what="list of references")
            if content["memory"] != sha256(self.project.memory):
                return {}
            bank, known = load_memory(self.project.memory), self.project.references
            found: dict[str, dict[Kind, list[int]]] = {}
            for name in bank.class_names:
                of = content["classes"][name]
                if any(known[id].digest != digest for rows in of.values() for id, digest in rows if id in known):
                    return {}
                found[name] = {"reference": [i for i, _ in of["reference"]], "negative": [i for i, _ in of["negative"]]}
            counts = [(len(of["reference"]), len(of["negative"])) for of in found.values()]
            same = counts == list(zip(bank.shots, bank.negative_shots, strict=True))
            return found if same else {}
        except (InputError, OSError, KeyError, TypeError, ValueError, AttributeError):
            return {}  # none, or another's: everything is learned from the references


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    """An image `[h, w, 3]` uint8 as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _read(photo: Photo) -> np.ndarray:
    """The photo's pixels. An error calls it as the page does: who asks is told no path of this machine."""
    try:
        return read_image(photo.path)
    except InputError as error:
        raise InputError(str(error).replace(show_path(photo.path), one_line(photo.name), 1)) from error.__cause__


def _smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image made smaller, to at most `side` pixels a side; a smaller one as it is."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(image)


def _scaled(prompt: Prompt, across: float, down: float) -> Prompt:
    points = tuple((x * across, y * down) for x, y in prompt.points)
    box = prompt.box and (prompt.box[0] * across, prompt.box[1] * down, prompt.box[2] * across, prompt.box[3] * down)
    return Prompt(box, points, prompt.labels)
