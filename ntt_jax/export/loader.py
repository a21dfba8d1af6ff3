"""Runs what `ntt-jax export` wrote. Needs jax, flatbuffers, safetensors, numpy and Pillow, and not ntt-jax.

found = load.Exported("FOLDER")(numpy.asarray(PIL.Image.open("photo.jpg").convert("RGB")))
"""

import json
import pathlib

import jax
import numpy as np
from jax import export
from PIL import Image
from safetensors.numpy import load_file


class Exported:
    """The target pass of a folder. `weights` and `classes` ("prototypes" `[K, C]`) may be replaced by others."""

    def __init__(self, folder: str):
        self.folder = pathlib.Path(folder)
        self.info = json.loads((self.folder / "export.json").read_text())
        self.weights = jax.device_put(load_file(self.folder / "weights.safetensors"))
        self.classes = jax.device_put(load_file(self.folder / "classes.safetensors"))
        self.detect, self.draw = self.program("detect"), self.program("draw")

    def program(self, name: str):
        """ "detect", "draw", "encode" or "match" for this machine; docs/export.md says what they take and return."""
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        program = export.deserialize(bytearray((self.folder / f"{name}.{platform}.jax").read_bytes()))
        return jax.jit(program.call, compiler_options=self.info["compiler_options"][name])

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """`[H, W, 3]` uint8 RGB -> boxes `[n, 4]` (x1, y1, x2, y2), scores, labels, masks `[n, H, W]` bool."""
        size, side = np.array(image.shape[:2], np.int32), self.info["image_size"]
        wide = Image.fromarray(image).resize((side, image.shape[0]), Image.Resampling.BICUBIC)
        resized = np.asarray(wide.resize((side, side), Image.Resampling.BICUBIC))
        found = self.detect(self.weights, self.classes, resized, size)
        count = np.sum(found["valid"], dtype=np.int32)
        canvas = np.zeros(-(-size // self.info["canvas_step"]) * self.info["canvas_step"], np.uint8)
        masks = np.asarray(self.draw(found["logits"], count, size, canvas))[:count, : size[0], : size[1]]
        return {"masks": masks} | {name: np.asarray(found[name])[:count] for name in ("boxes", "scores", "labels")}
