"""Modules that lay flat in this package before it had rooms are still found under their old names.

A program that says `from ntt_jax.coco import load_coco` gets `ntt_jax.datasets.coco`, the very same module.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "box_masks": "compiled.prompt_masker",
    "builder": "references.build",
    "coco": "datasets.coco",
    "dinov2": "models.dinov2",
    "doctor": "references.doctor",
    "match": "detection.match",
    "memory_file": "memory.bank",
    "parallel": "compiled.parallel",
    "predictor": "compiled.predictor",
    "preprocess": "images.preprocess",
    "resize": "images.resize",
    "results": "evaluation.results",
    "rle": "images.rle",
    "sam2": "models.sam2",
    "sampling": "references.sampling",
    "scenes": "demo.scenes",
    "visualize": "images.drawing",
}


class _Finder:
    """Finder and loader in one. It is none of `importlib.abc`, which brings a dozen modules with it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "ntt_jax" or name not in MOVED:
            return None
        return ModuleSpec(fullname, self)  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"ntt_jax.{MOVED[spec.name.partition('.')[2]]}")
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's in its place


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.append(_Finder())
