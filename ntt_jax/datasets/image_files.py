"""The images of a data set in their folder: which file each entry means, how large it is, how it is turned.

Annotation files come from other machines: their names may hold that machine's folders, another case or Unicode form, or
web addresses. Whatever a name says, only files below the image folder are looked at.
"""

import contextlib
import dataclasses
import os
import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from ntt_jax.datasets.dataset import CocoDataset, CocoImage
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, show_path
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.reading import EXIF, ImageHeader, read_header
from ntt_jax.images.remote import Address
from ntt_jax.images.tree import plain_name
from ntt_jax.notes import Notes

_MAX_NAME = 4096
"""Characters of the longest path that a system opens; addresses with a signature stay below it."""
_MAX_PARTS = 32
"""Folders of a name, from its end, that are looked for."""
_RAW_ADVICE = "--exif raw takes the pixels as they are stored"


def safe_name(written: str) -> str:
    """A relative name without "..", drive and NUL that is as much of the written one as can lie in a folder.

    Empty if nothing is left, or it is longer than any path.
    """
    if len(written) > _MAX_NAME:
        return ""
    name = written.replace("\0", "_")
    if not os.path.isabs(name) and not re.match(r"[A-Za-z]:[\\/]|\\|[A-Za-z][\w+.-]+://", name):
        parts = name.split("/")
        if not {"..", ".", ""} & set(parts) and "\\" not in name:
            return name
    candidates = names_in_folder(name)
    return candidates[0] if candidates else ""


def names_in_folder(written: str) -> list[str]:
    """Relative names below a folder that a written name may stand for, the longest first."""
    texts = [written]
    if "://" in written or "?" in written:
        with contextlib.suppress(ValueError):  # "http://[": no address after all
            address = urllib.parse.urlsplit(written)
            query = urllib.parse.parse_qs(address.query)
            texts = [*query.get("d", []), address.path, *texts]  # Label Studio's local files: .../?d=folder/img.jpg
    if "%" in written:
        texts += [urllib.parse.unquote(text) for text in texts]
    found: dict[str, None] = {}
    for text in texts:
        for separators in ("/", r"/\\"):
            parts = [part for part in re.split(f"[{separators}]+", text) if part not in ("", ".")]
            if parts and separators != "/" and re.fullmatch("[A-Za-z]:", parts[0]):
                parts = parts[1:]
            if "\0" in text:
                continue
            above = max((i + 1 for i, part in enumerate(parts) if part == ".."), default=0)
            for start in range(max(above, len(parts) - _MAX_PARTS), len(parts)):
                found["/".join(parts[start:])] = None
    return sorted(found, key=lambda name: -name.count("/"))  # stable


class _Listing:
    """What a folder holds, listed once: names as they are, and by a form without case and Unicode composition."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._names: dict[str, tuple[set[str], dict[str, list[str]]]] = {}

    def find(self, name: str) -> tuple[str, bool] | None:
        """The one name of a file below the folder that is this one, exactly (True) or but for case and form."""
        here, exactly = "", True
        for part in name.split("/"):
            exact, alike = self._list(here)
            if part not in exact:
                same = alike.get(plain_name(part), [])
                if len(same) != 1:
                    return None
                part, exactly = same[0], False
            here = f"{here}/{part}" if here else part
        return (here, exactly) if (self.folder / here).is_file() else None

    def _list(self, below: str) -> tuple[set[str], dict[str, list[str]]]:
        if below not in self._names:
            try:
                names = set(os.listdir(self.folder / below))
            except (OSError, ValueError):
                names = set()
            alike: dict[str, list[str]] = {}
            for name in names:
                alike.setdefault(plain_name(name), []).append(name)
            self._names[below] = names, alike
        return self._names[below]


def survey(
    dataset: CocoDataset,
    folder: PathLike,
    *,
    exif: str = "upright",
    image_ids: Collection[int] | None = None,
    apart: bool = False,
) -> CocoDataset:
    """The data set with what the image folder says: files of other names, missing sizes, how photos are turned.

    image_ids: the images that will be read, all by default; of these the headers are read. Images that are not there,
    or cannot be read, stay as they are. What was done is added to the `notes`. apart: another process reads the
    headers, so that an image that kills its reader does not kill this one.

    Of a folder elsewhere (`Address`) only images without a size are asked for, by their names as they are.

    Raises `InputError` for an unknown `exif`.
    """
    if exif not in EXIF:
        raise InputError(f"exif: expected {' or '.join(EXIF)}, found {exif!r:.40}")
    notes = Notes()
    images = [dataset.images[i] for i in (dataset.images if image_ids is None else image_ids) if i in dataset.images]
    if isinstance(folder, Address):
        images = [image for image in images if not image.height]
        found = dataclasses.replace(dataset, exif=exif)
    else:
        files = _locate(dataset, Path(folder), images, notes)
        found = dataclasses.replace(dataset, files=files, exif=exif)
    sizes: dict[int, CocoImage] = {}
    for image, read in zip(images, _headers(found, folder, images, apart), strict=True):
        fits = (image.height, image.width) if image.height else None
        name = show_path(image.file_name)
        if read is None:
            if fits is None:
                notes.add("images without a size, whose files cannot be read", name)
            continue
        if fits is None:
            height, width = read.size(exif)
            sizes[image.id] = dataclasses.replace(image, height=height, width=width)
            notes.add("images without a size, which their files say", name)
        if read.orientation != 1 and exif == "upright":
            stored = (read.height, read.width)
            if not read.turns(exif, fits):
                notes.add("photos with an EXIF orientation whose annotations fit the stored pixels: not turned", name)
            elif fits == stored == read.upright:
                what = "photos with an EXIF orientation that fits both ways (180 degrees, mirrored or square): upright"
                notes.add(what, name, _RAW_ADVICE)
            elif fits is None or fits == read.upright:
                notes.add("photos turned upright, as their EXIF orientation says", name, "" if fits else _RAW_ADVICE)
    return found.with_sizes(sizes, notes.lines())


def _headers(
    dataset: CocoDataset, folder: PathLike, images: list[CocoImage], apart: bool
) -> Iterator[ImageHeader | None]:
    """The headers of images; None for one that cannot be read: whoever needs it says so."""
    paths = [dataset.image_path(folder, image.id) for image in images]
    if apart and not isinstance(folder, Address):
        from ntt_jax.images.trial import headers_apart

        yield from (None if isinstance(found, str) else found[1] for found in headers_apart(paths))
        return

    def header(path: PathLike) -> ImageHeader | None:
        try:
            return read_header(path)
        except InputError:
            return None

    yield from map_ahead(header, paths, ahead=64)


def locate_first(dataset: CocoDataset, folders: Iterable[Path], image: CocoImage) -> Path | None:
    """The image's file in the first of the folders that has it."""
    for folder in folders:
        files = _locate(dataset, folder, [image], Notes())
        path = folder / files.get(image.id, image.file_name)
        if _is_file(path):
            return path
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _locate(dataset: CocoDataset, folder: Path, images: list[CocoImage], notes: Notes) -> dict[int, str]:
    """For images that are not there under their own name: the name of the one file they mean, by image id."""
    missing = [image for image in images if image.written is not None or not _is_file(folder / image.file_name)]
    if not missing:
        return {}
    listing = _Listing(folder)
    resolve = _resolver(listing)
    # Two entries must not mean one file: whoever has the same last part is looked at too.
    last = {_last(image): None for image in missing}
    claims: dict[str, set[int]] = {}
    for image in dataset.images.values():
        if _last(image) in last:
            own = resolve(image)
            if own is not None:
                claims.setdefault(own[0], set()).add(image.id)
    files: dict[int, str] = {}
    for image in missing:
        found = resolve(image)
        if found is None or (found[0] == image.file_name and image.written is None):
            continue
        name, how = found
        shown = f"{show_path(image.written or image.file_name)} is {show_path(name)}"
        if len(claims.get(name, ())) > 1:
            notes.add("images whose names fit one and the same file: not read", shown)
            files[image.id] = ""  # the folder itself: cannot be read
            continue
        files[image.id] = name
        if how:
            notes.add(f"images found in the folder {how}", shown)
    return files


def _last(image: CocoImage) -> str:
    return plain_name(image.file_name.replace("\\", "/").rsplit("/", 1)[-1])


def _resolver(listing: _Listing) -> Callable[[CocoImage], tuple[str, str] | None]:
    def resolve(image: CocoImage) -> tuple[str, str] | None:
        """The file's name in the folder, and how it was found: empty if it is the written one."""
        written = image.written or image.file_name
        whole = written.replace("\\", "/").lstrip("/")
        for name in names_in_folder(written):
            if (found := listing.find(name)) is not None:
                actual, exactly = found
                if actual == written:
                    return actual, ""
                if not exactly:
                    return actual, "under a name of other case or Unicode form"
                return actual, "by another spelling of the name" if actual == whole else "by the last part of the name"
        return None

    return resolve
