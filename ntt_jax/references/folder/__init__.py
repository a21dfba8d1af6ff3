"""References as people have them: a folder of photos with masks, boxes or annotation files beside them. No JAX.

    found = find_references(["photos"])
    found.table()      # {"bird": [reference, ...], ...}
    found.left_out     # files and objects that are not taken, each with the reason

One file for each kind of annotation: `masks` (PNG), `labelme`, `coco`, `voc`, `yolo`. Each has a function that takes
the files of the folder (`Tree`) and returns a `Part`: references, and what was left out. Another kind is one more file
and its name in `find.READERS`.
"""

from ntt_jax.references.folder.find import find_references
from ntt_jax.references.folder.found import FoundReference, FoundReferences, LeftOut

__all__ = ["FoundReference", "FoundReferences", "LeftOut", "find_references"]
