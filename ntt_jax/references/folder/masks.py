"""References of masks that are images of their own beside photos (`images.mask_names` says which those are)."""

from functools import partial
from pathlib import Path

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.images.mask_files import read_mask
from ntt_jax.images.mask_names import class_of, mask_files, photo_of
from ntt_jax.images.prefetch import map_ahead
from ntt_jax.images.tree import Tree
from ntt_jax.notes import Notes
from ntt_jax.references.folder.found import FoundReference, Lazy, Part


def read(tree: Tree, *, instances: bool = False) -> Part:
    """References of the masks. instances: each number in a mask is an object of its own.

    They are looked at: of the photo's size, not empty, one value beside 0.
    """
    part = Part()
    part.claimed = mask_files(tree)
    tree.claimed |= part.claimed
    masks = [image for image in tree.images if image in part.claimed]
    for found in map_ahead(partial(_read_one, tree, instances), masks, ahead=8):
        part.references += found.references
        part.left_out += found.left_out
    return part


def _read_one(tree: Tree, instances: bool, file: Path) -> Part:
    part = Part()
    found = photo_of(file, tree)
    if found is None:
        part.leave_out(file, "a mask without a photo of its name, or with several")
        return part
    photo, rest = found
    class_name = class_of(tree.below(file), tree.below(photo), rest)
    if class_name is None:
        part.leave_out(file, "a mask whose name says no class (expected NAME_CLASS.png or CLASS/NAME.png)")
        return part
    try:
        numbers = read_mask(file)
        shape = numbers.values.shape
        tree.check_size(photo, shape[0], shape[1])
        if not numbers.values.any():
            raise InputError("an empty mask")
        if instances:
            for number, (value, _) in enumerate(numbers.instances(), 1):
                lazy = Lazy(partial(_one_instance, file, value), {"mask": file.name, "instance": value})
                part.references.append(FoundReference(class_name, photo, file, photo, lazy, number=number))
        else:
            numbers.mask("", Notes())  # raises for several values
            part.references.append(FoundReference(class_name, photo, file, photo, file))
    except InputError as error:
        reason = str(error)
        part.leave_out(file, reason.replace("instances=True makes", "--instances makes"))
    return part


def _one_instance(file: Path, value: float) -> np.ndarray:
    return read_mask(file).values == value
