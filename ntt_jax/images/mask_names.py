"""Masks as images of their own beside photos: which they are, of which photo, and which class their names say.

    bus1.jpg  bus1_bus.png  bus1_bus_2.png         NAME_CLASS.png, NAME_CLASS_2.png
    bus1.jpg  bus/bus1.png                         CLASS/NAME.png
    photos/bus1.jpg  masks/bus/bus1.png            masks/CLASS/NAME.png, also NAME_2.png
    photos/bus1.jpg  masks/bus1_bus.png
    bus/1.jpg  bus/1_mask.png                      a folder for each class

Only what looks like a mask is one (few values, 0 among them): a colour photo of such a name stays a photo.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.images.mask_files import MaskNumbers, read_mask
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.tree import Tree, is_generic
from ntt_jax.notes import Notes

_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_LOSSY = (".jpg", ".jpeg")  # looked at only where a name or a folder says "mask": photos are many
_SEPARATORS = "_. -"  # the last, so that it is no range in a pattern
_WORD = r"(?:masks?|labels?|segs?|gt|instances?|objects?|annotations?)"
_LEADING = re.compile(rf"^{_WORD}(?:[{_SEPARATORS}]+|$)", re.I)
_TRAILING = re.compile(rf"(?:^|[{_SEPARATORS}]+){_WORD}$", re.I)
_SAYS_MASK = re.compile(rf"(?:^|[{_SEPARATORS}]){_WORD}(?:[{_SEPARATORS}]|\d|$)", re.I)
_NUMBER = re.compile(rf"(?:^|[{_SEPARATORS}]+)\d+$")
_FEW_VALUES, _MANY_VALUES = 32, 4096
"""How many values a mask may have: of 8 bits or colours, and of more bits, which photos rarely have."""
_LOOKED_AT = 20
"""Files that an example of the naming rule is looked for in."""
RULES = "NAME_CLASS.png, NAME_CLASS_2.png, CLASS/NAME.png or masks/CLASS/NAME.png for the photo NAME.jpg"


def mask_files(tree: Tree) -> set[Path]:
    """Images that are masks of others by name and content."""
    masks = _like_masks((image for image in tree.photos() if _others(image, tree)), tree)
    # Of drawings and scans, "page.png" and "page_2.png", neither is the mask of the other.
    drawings = masks | _like_masks({other for mask in masks for other in _others(mask, tree)} - masks, tree)
    return {image for image in masks if not drawings.issuperset(_others(image, tree))}


def _like_masks(images: Iterable[Path], tree: Tree) -> set[Path]:
    possible = [image for image in images if _may_be_mask(image, tree)]
    looks = map_ahead(looks_like_mask, possible, ahead=8)
    return {image for image, is_mask in zip(possible, looks, strict=True) if is_mask}


def _may_be_mask(image: Path, tree: Tree) -> bool:
    """By its ending; a JPEG if its name or a folder of it says what it is."""
    ending = image.suffix.lower()
    if ending in _LOSSY:
        return any(_SAYS_MASK.search(name) for name in (image.stem, *tree.below(image)))
    return ending in _SUFFIXES


def looks_like_mask(file: Path) -> bool:
    """Whether an image holds few values, with 0 (background, black) among them, soft edges aside."""
    try:
        numbers = read_mask(file)
    except InputError:
        return False
    values = numbers.values
    if not values.any():
        return not numbers.colours
    limit = _FEW_VALUES if numbers.colours or values.dtype in (np.uint8, np.bool_) else _MANY_VALUES
    if len(np.unique(values.ravel()[:: max(1, values.size // 10_000)])) <= limit:
        found = np.unique(values)
        if len(found) <= limit:
            return bool(found[0] == 0)
    return _is_one(numbers)


def _is_one(numbers: MaskNumbers) -> bool:
    try:
        return not numbers.mask("", Notes()).all()
    except InputError:
        return False


def _stems(image: Path) -> list[tuple[str, str]]:
    """Names that a photo can have, the longest first, and what the mask's name says beside them."""
    name = image.stem
    found = [(name[:i], name[i + 1 :]) for i in range(len(name) - 1, 0, -1) if name[i] in _SEPARATORS]
    return [(name, ""), *found]


def _others(image: Path, tree: Tree) -> list[Path]:
    """The images that this one can be the mask of, by its name."""
    return [other for stem, _ in _stems(image) for other in tree.named(stem) if other != image]


def photo_of(mask: Path, tree: Tree) -> tuple[Path, str] | None:
    """The photo of a mask, and what the mask's name says beside the photo's."""
    for stem, rest in _stems(mask):
        if (photo := tree.photo_named(stem, mask)) is not None:
            return photo, rest
    return None


def class_of(mask_folders: tuple[str, ...], photo_folders: tuple[str, ...], rest: str) -> str | None:
    """The class of a mask: its own folder's name, or what stands behind the photo's name, or the folder of both.

    mask_folders, photo_folders: names of the folders above each. rest: of the mask's name, behind the photo's.
    """
    own = [name for name in mask_folders if not is_generic(name)]
    alone = [name for name in own if name not in photo_folders]
    name = alone[-1] if alone else _without_words(rest) or (own[-1] if own else None)
    return name if name is None else unicodedata.normalize("NFC", name)  # macOS writes names decomposed


def _without_words(rest: str) -> str:
    """The rest of a mask's name without a number at its end and words such as "mask"."""
    before = None
    while rest != before:
        before = rest
        rest = _NUMBER.sub("", rest)
        rest = _TRAILING.sub("", _LEADING.sub("", rest))
    return rest.strip(_SEPARATORS)


def advice(tree: Tree, said: Collection[Path]) -> str:
    """The naming rule, with an example from these files: a photo, and what looks like a mask and was not `said`."""
    masks = [f for f in _some(f for f in tree.images if f.suffix.lower() in _SUFFIXES) if looks_like_mask(f)]
    photos = [photo for photo in tree.images if photo not in masks and photo not in tree.claimed]
    if not photos:
        return f"masks are named {RULES}"
    photo = photos[0]
    folder = "/".join(tree.below(photo))
    here = f"{folder}/" if folder else ""
    text = f"for {here}{photo.name} call the mask of a bird {here}{photo.stem}_bird.png or masks/bird/{photo.stem}.png"
    if strange := [mask for mask in masks if mask not in said]:
        text += f" ({'/'.join((*tree.below(strange[0]), strange[0].name))} looks like a mask, but of which photo?)"
    return text


def _some(files: Iterable[Path]) -> list[Path]:
    return [file for file, _ in zip(files, range(_LOOKED_AT), strict=False)]
