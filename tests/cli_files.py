"""A small world for the command line: converted checkpoints of tiny models, a data set of simple scenes on the disk."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import dinov2_weights
import numpy as np
import safetensors.numpy
import sam2_weights
from flax import nnx
from PIL import Image
from recipe import recipe

import weight_port
from ntt_jax.config import DinoV2Config, HieraConfig, Sam2Config, to_dict
from ntt_jax.rle import encode_masks

SAM2 = Sam2Config(
    name="tiny_sam2",
    hiera=HieraConfig(8, 1, (1, 1, 2, 1), (3,), (8, 4, 4, 4), (4, 4)),
    image_size=128,
    d_model=32,
    decoder_num_heads=2,
    decoder_mlp_dim=64,
    iou_head_hidden_dim=32,
)
DINOV2 = DinoV2Config(name="tiny_dinov2", embed_dim=24, depth=2, num_heads=2, image_size=70, input_size=70)
OTHER_DINOV2 = dataclasses.replace(DINOV2, name="other", embed_dim=36)
CLASSES = {3: "square", 5: "disc", 8: "bar"}
COLOURS = {3: (230, 60, 60), 5: (40, 80, 220), 8: (60, 220, 60)}


def convert(folder: Path, config: Sam2Config | DinoV2Config, seed: int = 3) -> Path:
    """A checkpoint of recipe weights with Meta's names in Hugging Face's container, through the weight tool."""
    if isinstance(config, Sam2Config):
        shapes = sam2_weights.checkpoint_shapes(config)
    else:
        state = nnx.to_flat_state(nnx.state(dinov2_weights.skeleton(config), nnx.Param))
        shapes = dict(dinov2_weights.checkpoint_shape(path, param.shape) for path, param in state)
    original, converted = (
        folder / f"{config.name}_{seed}_meta.safetensors",
        folder / f"{config.name}_{seed}.safetensors",
    )
    safetensors.numpy.save_file({name: recipe(name, shape, seed) for name, shape in shapes.items()}, original)
    weight_port.convert(original, converted, given=to_dict(config))
    return converted


def scene(generator: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image with one large object on noise, and its class and mask."""
    height, width = size, size + int(generator.integers(0, 30))
    image = generator.integers(40, 190, (height, width, 3)).astype(np.uint8)
    category = int(generator.choice(list(CLASSES)))
    y, x = np.mgrid[:height, :width]
    side = int(generator.integers(36, size - 24))
    top, left = 12 + generator.integers(0, size - 24 - side + 1), 12 + generator.integers(0, width - 24 - side + 1)
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    if category == 5:
        inside &= (y - top - side / 2) ** 2 + (x - left - side / 2) ** 2 <= (side / 2) ** 2
    elif category == 8:
        inside &= (x - left) < 33
    image[inside] = np.clip(COLOURS[category] + generator.normal(0, 20, (int(inside.sum()), 3)), 0, 255)
    return image, [(category, inside)]


def write_scenes(folder: Path, count: int, seed: int, *, size: int = 72) -> Path:
    """`count` scenes as PNG files in `folder`/images and their annotation file, whose path is returned."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in CLASSES.items()],
    }
    for index in range(count):
        image, objects = scene(generator, size + 4 * (index % 5))
        name = f"scene{seed}_{index:03}.png"
        Image.fromarray(image).save(folder / "images" / name)
        # Ids neither start at 0 nor ascend, as in real files.
        image_id = 1000 + (index * 7) % 997
        content["images"].append({"id": image_id, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for category, mask in objects:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            content["annotations"].append(
                {
                    "id": 50 + len(content["annotations"]),
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [int(v) for v in box],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_masks(mask[None])[0],
                }
            )
    path = folder / f"annotations{seed}.json"
    path.write_text(json.dumps(content))
    return path
