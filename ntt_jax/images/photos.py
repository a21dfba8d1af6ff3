"""Which files of a folder are photos: not what systems and tools leave beside them, nor masks, nor our own output."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ntt_jax.errors import InputError
from ntt_jax.files import describe, read_bytes, show_path
from ntt_jax.images.mask_names import mask_files
from ntt_jax.images.reading import HEIF_ADVICE, HEIF_SUFFIXES, SUFFIXES, can_read_heif, open_image
from ntt_jax.images.remote import Address, Location, is_pattern, listed, location
from ntt_jax.images.tree import Tree, by_number, is_companion, output_folders
from ntt_jax.notes import Notes

_NOT_READ = {
    **dict.fromkeys(HEIF_SUFFIXES, HEIF_ADVICE),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), "raw camera files are not read"),
    **dict.fromkeys((".jxl", ".svg", ".psd", ".pdf", ".eps"), "this format is not read"),
}
_MASK_NAME = re.compile(r"(.+?)[._ -](?:(?:instance|object)[._ -]?)?(?:masks?|labels?|seg|gt|overlay)[._ -]?\d*", re.I)
_MASK_FOLDER = re.compile(r"masks?|labels?|segmentations?|segmentation(class|object)\w*|overlays?", re.I)
LIST_SUFFIX = ".txt"
_MAX_ADDRESS = 8192  # characters; signed ones have thousands
_LIST_BYTES = 2**28
_MASK_MODES = ("1", "P", "L", "I", "F", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Photos:
    """Photos of a folder and below, by path, numbers in it by value (frame 2 before frame 10); and what is none."""

    files: tuple[Path, ...]
    notes: Notes


def photos_of_folder(path: Path, *, output: Path | None = None) -> Photos:
    """The photos in a folder and below. What looks like one and is not taken is counted in the `notes`.

    Not taken: companions that macOS writes ("._a.jpg", __MACOSX), hidden files, what `ntt-jax segment` wrote (and
    whatever lies in `output`), masks beside photos, by their names (`mask_names`) or folders, formats that cannot be
    read.
    Raises `InputError` if nothing is left.
    """
    notes = Notes()
    ours = _outputs(path, output)
    found = [p for p in path.rglob("*") if not is_companion(p.relative_to(path)) and p.is_file()]
    images: list[Path] = []
    for file in sorted(found, key=by_number):
        suffix = file.suffix.lower()
        if any(folder in file.parents for folder in ours):
            if suffix in SUFFIXES:
                notes.add("pictures that ntt-jax wrote, not taken for photos", _shown(file, path))
        elif suffix in _NOT_READ and not (suffix in HEIF_SUFFIXES and can_read_heif()):
            notes.add("images left out", _shown(file, path), _NOT_READ[suffix])
        elif suffix in SUFFIXES or suffix in HEIF_SUFFIXES:
            images.append(file)
    photos: list[Path] = []
    names = {(p.parent, p.stem.lower()): p for p in reversed(images) if p.suffix.lower() in (".jpg", ".jpeg")}
    stems = {(p.parent, p.stem.lower()) for p in images}
    masks = mask_files(Tree(dict.fromkeys(images, path)))
    for file in images:
        if file in masks or _is_mask(file, path, names, stems):
            notes.add("masks beside photos, not taken for photos", _shown(file, path))
        else:
            photos.append(file)
    if not photos:
        more = "; ".join(notes.lines())
        looked = f"looked for {', '.join(SUFFIXES)}" + (f"; {more}" if more else "")
        raise InputError(f"{show_path(path)}: the folder holds no image ({looked})")
    return Photos(tuple(photos), notes)


def find_photos(
    paths: Sequence[Location], output: Path | None = None, note: Callable[[str], None] = print
) -> dict[str, Location]:
    """The photos to work on by the names they get in the output: as given, or relative to the folder they lie in.

    A file that is named itself may have any suffix; one that ends in .txt is a list of addresses, one a line. output:
    the folder to write to, of which nothing is taken. note: hears, a line each, of what in a folder is not taken for a
    photo (`photos_of_folder`).

    Names differ in more than their suffix (a number is added where needed), so each can name a picture or a folder.
    Raises `InputError` for a folder without images.
    """
    found: dict[str, Location] = {}
    taken: set[PurePosixPath] = set()
    last: dict[PurePosixPath, int] = {}  # the number that a name has got last
    for path in paths:
        for name, file in _photos_at(path, output, note):
            plain = unique = PurePosixPath(name)
            number = last.get(plain.with_suffix(""), 2)
            while unique.with_suffix("") in taken:
                unique, number = plain.with_stem(f"{plain.stem}_{number}"), number + 1
            last[plain.with_suffix("")] = number
            taken.add(unique.with_suffix(""))
            found[str(unique)] = file
    return found


def _photos_at(path: Location, output: Path | None, note: Callable[[str], None]) -> Iterable[tuple[str, Location]]:
    """The photos that one argument means, with the names that they bring along."""
    if isinstance(path, Address):
        return remote_photos(path, note)
    if path.is_dir():
        photos = photos_of_folder(path, output=output)
        for line in photos.notes.lines():
            note(f"{show_path(path)}: {line}")
        return [(p.relative_to(path).as_posix(), p) for p in photos.files]
    return read_list(path) if path.suffix.lower() == LIST_SUFFIX else [(path.name, path)]


def remote_photos(address: Address, note: Callable[[str], None]) -> Iterator[tuple[str, Address]]:
    """The photos at an address: a file by its ending, the files of a pattern, or those of a folder and below.

    Of a folder, files with the ending of an image; what its pixels are is not looked at. Raises `InputError` if there
    is none, or it cannot be listed.
    """
    endings = (*SUFFIXES, *HEIF_SUFFIXES) if can_read_heif() else SUFFIXES
    if address.suffix.lower() in endings and not is_pattern(address):
        yield _output_name(address.name), address
        return
    count, notes = 0, Notes()
    for name, file in listed(address):
        if file.suffix.lower() in endings and not is_companion(Path(name)):
            count += 1
            yield _output_name(name), file
        else:
            notes.add("files that are no photos by their ending", name)
    for line in notes.lines():
        note(f"{address}: {line}")
    if not count:
        raise InputError(f"{address}: there is no image (looked for {', '.join(SUFFIXES)})")


def read_list(path: Path) -> list[tuple[str, Location]]:
    """The addresses in a file, one a line, each with a name: all of its path. Raises `InputError` for anything else.

    A list may come from elsewhere, so nothing in it is a file of this machine.
    """
    text = read_bytes(path, max_bytes=_LIST_BYTES, what="list of addresses").decode("utf-8-sig", "surrogateescape")
    found: list[tuple[str, Location]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if (written := line.strip()) and not written.startswith("#"):
            address = location(written) if len(written) <= _MAX_ADDRESS and written.isprintable() else None
            if not isinstance(address, Address):
                raise InputError(
                    f"{show_path(path)}: line {number}: expected an address (https://...), found {describe(written)}"
                )
            found.append((_output_name(re.split("[?#]", address.url.partition("://")[2])[0]), address))
    if not found:
        raise InputError(f"{show_path(path)}: the list holds no address")
    return found


def _output_name(name: str) -> str:
    """A name from elsewhere as one that a file below the output can have."""
    parts = [re.sub(r"[^\w .()+,@=-]", "_", part).strip(" ")[-100:] for part in unquote(name).split("/")]
    return "/".join(part for part in parts if part.strip(".")) or "photo"


def _shown(file: Path, folder: Path) -> str:
    return show_path(file.relative_to(folder))


def _outputs(path: Path, output: Path | None) -> list[Path]:
    """Folders of pictures that `ntt-jax segment` wrote: they lie beside its other files."""
    ours = output_folders(path)
    if output is not None and output.resolve() != path.resolve():
        ours += [folder for folder in _below(path, output)]
    return ours


def _below(path: Path, output: Path) -> Iterator[Path]:
    try:
        yield path / output.resolve().relative_to(path.resolve())
    except ValueError:  # elsewhere
        return


def _is_mask(file: Path, root: Path, jpegs: dict[tuple[Path, str], Path], stems: set[tuple[Path, str]]) -> bool:
    """A mask by its name, its folder or its pixels, beside a photo that it can be the mask of."""
    if file.suffix.lower() in (".jpg", ".jpeg") and not _MASK_NAME.fullmatch(file.stem):
        return False
    stem = file.stem.lower()
    named = _MASK_NAME.fullmatch(file.stem)
    if named and (file.parent, named[1].lower()) in stems:
        return True
    if (file.parent, stem) in jpegs and jpegs[file.parent, stem] != file:
        return _looks_like_numbers(file)
    inside = [
        folder for folder in file.parents if folder != root and root in folder.parents and _is_mask_folder(folder)
    ]
    if inside:
        photo = named[1].lower() if named else stem
        return any(name in (stem, photo) and not _is_mask_folder(parent) for parent, name in stems)
    return False


def _is_mask_folder(folder: Path) -> bool:
    return _MASK_FOLDER.fullmatch(folder.name) is not None


def _looks_like_numbers(file: Path) -> bool:
    try:
        with open_image(file) as image:
            return image.mode in _MASK_MODES
    except InputError:
        return False
