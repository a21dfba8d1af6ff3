"""Files and folders that a job is given: looked at before the work begins. Imports nothing large."""

import os
import re
from pathlib import Path

from ntt_jax.errors import InputError
from ntt_jax.files import open_input, show_path
from ntt_jax.images.remote import Address, Location


def check_input(path: Location, name: str) -> None:
    """Raise `InputError` unless `path` is what an option `name` (with underscores) asks for.

    Names that end in "images" ask for a folder, those that end in "annotations" for annotations, others for a file.
    """
    if isinstance(path, Address):
        check_address(path, f"--{name.replace('_', '-')}")
        return
    check = {"images": check_folder, "annotations": check_annotations}.get(name.split("_")[-1], check_file)
    check(path, f"--{name.replace('_', '-')}")


def check_file(path: Path, option: str) -> None:
    """Raise `InputError` unless `path` is a readable file; `option` is where it was given."""
    try:
        open_input(path, empty=True).close()
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            _check_here(path, option)
            raise InputError(f"{option}: there is no file {show_path(path)}") from None
        raise InputError(f"{option}: {error}") from None


def check_annotations(path: Path, option: str) -> None:
    """`check_file` for annotations, which may be several lists of VOC images (`VOC2007+VOC2012`)."""
    if "+" not in str(path):  # a mistyped path is answered before anything large is imported
        check_file(path, option)
        return
    from ntt_jax.datasets.voc import image_lists

    for file in image_lists(path):
        check_file(file, option)


def check_folder(path: Path, option: str) -> None:
    """Raise `InputError` unless `path` is a folder that can be listed; `option` is where it was given."""
    try:
        if not path.is_dir():
            _check_here(path, option)
            what = "a file" if path.exists() else "nothing"
            raise InputError(f"{option}: expected a folder, found {what} at {path}")
        os.listdir(path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{option}: cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None


def _check_here(path: Path, option: str) -> None:
    """Raise `InputError` if what is no path here was meant as an address (of which `Path` keeps one slash)."""
    if found := re.match(r"([a-z][a-z0-9+.-]+):/", str(path)):
        raise InputError(
            f"{option}: expected a path of this machine, found an address ({found[1]}://); only photos and the images "
            "of annotations may be elsewhere (docs/remote.md)"
        )


def check_address(address: Address, option: str) -> None:
    """Raise `InputError` unless what reads such an address is installed. Asks nobody whether something is there."""
    try:
        address.check()
    except InputError as error:
        raise InputError(f"{option}: {error}") from None


def make_output_folder(path: Path, option: str = "--out") -> None:
    """Create the folder `path` with its parents if it is not there; `InputError` if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option}: cannot make the folder {str(path)!r}: {reason}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{option}: no permission to write in {path}")
