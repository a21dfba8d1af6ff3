"""Images and reference masks on their way into the two encoders (METHOD stage 1, steps 1 to 5; stage 3, steps 1 to 3).

Host functions work on numpy arrays of any size; device functions on batches of one fixed size, under jit.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images.resize import resize_host, resize_images

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics, RGB in [0, 1], that both models were trained with."""

# Margin around a reference object, as a share of the longer side of its box.
_CROP_MARGIN = 0.2


def normalise(images: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """RGB in [0, 1] `[..., 3]` float32 -> zero mean, unit variance by ImageNet's statistics."""
    shape = (1,) * (images.ndim - 1) + (3,)
    mean = jnp.asarray(IMAGENET_MEAN, jnp.float32).reshape(shape)
    return (images - mean) / jnp.asarray(IMAGENET_STD, jnp.float32).reshape(shape)


def resize_for_sam(image: np.ndarray, size: int) -> np.ndarray:
    """Host: the image as SAM 2 gets it, `[H, W, 3]` uint8 -> `[size, size, 3]` uint8.

    Straight to a square, no letterbox, by PIL's bicubic (METHOD stage 3, step 1), horizontally first: the only order
    there was before Pillow 13, which starts with the vertical pass where that is less work and rounds otherwise then.

    Raises:
      InputError: not a uint8 RGB image.
    """
    check_image(image)
    resized = Image.fromarray(np.ascontiguousarray(image))
    for shape in ((size, resized.height), (size, size)):
        resized = resized.resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(resized)


def sam_input(images: UInt8[Array, "B S S 3"]) -> Float32[Array, "B S S 3"]:
    """Device: `[B, S, S, 3]` uint8 -> float32, /255 and normalised: the input of SAM 2's image encoder."""
    return normalise(images.astype(jnp.float32) / 255.0)


def encoder_input(images: UInt8[Array, "B S S 3"], size: int) -> Float32[Array, "B E E 3"]:
    """Device: SAM's image `[B, S, S, 3]` uint8 -> DINOv2's input `[B, size, size, 3]` float32, normalised.

    Torch's bicubic without antialiasing on values in [0, 1], not clipped (METHOD stage 3, step 2).
    """
    return normalise(resize_images(images.astype(jnp.float32) / 255.0, (size, size), "bicubic"))


def crop_box(height: int, width: int, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """The square region around a reference object, clipped to the image (METHOD stage 1, step 2).

    Args:
      height, width: image size in pixels. box: COCO box x, y, w, h in pixels.

    Returns:
      x1, y1, x2, y2 in pixels, the end exclusive.

    Raises:
      InputError: the box is not four finite numbers, or covers no pixel of the image.
    """
    values = [float(v) for v in box]
    if len(values) != 4 or not all(np.isfinite(values)):
        raise InputError(f"reference box: expected four finite numbers x, y, w, h, found {box!r:.80}")
    x, y, w, h = values
    x1, y1, x2, y2 = int(x), int(y), int(x + w), int(y + h)
    side = max(x2 - x1, y2 - y1) * (1.0 + _CROP_MARGIN)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    left, top = max(0, int(centre_x - side / 2)), max(0, int(centre_y - side / 2))
    right, bottom = min(width, int(centre_x + side / 2)), min(height, int(centre_y + side / 2))
    if x2 <= x1 or y2 <= y1 or right <= left or bottom <= top:
        raise InputError(f"reference box {values} covers no pixel of the {width} x {height} image")
    return left, top, right, bottom


def reference_crop(
    image: np.ndarray, mask: np.ndarray, box: tuple[float, float, float, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Host: one reference object as DINOv2 gets it (METHOD stage 1, steps 1 to 4).

    Args:
      image: `[H, W, 3]` uint8 RGB at its original size.
      mask: `[H, W]` bool or 0/1, the mask of one annotation.
      box: its COCO box, x, y, w, h in pixels.
      size: side of the result (518).

    Returns:
      crop `[size, size, 3]` float32, normalised; mask `[size, size]` float32 in [0, 1], soft at its edges.

    Raises:
      InputError: wrong types or sizes, or a box that covers no pixel of the image.
    """
    check_image(image)
    mask = np.asarray(mask)
    if mask.shape != image.shape[:2]:
        raise InputError(f"reference mask: expected {image.shape[:2]} like the image, found {mask.shape}")
    left, top, right, bottom = crop_box(image.shape[0], image.shape[1], box)
    crop = image[top:bottom, left:right].astype(np.float32) / np.float32(255.0)
    crop = resize_host(crop, (size, size), "bicubic")
    crop = (crop - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return crop.astype(np.float32), reference_mask(mask, box, size)


def reference_mask(mask: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The mask that `reference_crop` returns, without needing the image: `[H, W]` -> `[size, size]` float32."""
    left, top, right, bottom = crop_box(mask.shape[0], mask.shape[1], box)
    soft = resize_host((mask[top:bottom, left:right] != 0).astype(np.float32), (size, size), "bilinear")
    return soft.astype(np.float32)


def mask_to_grid(mask: np.ndarray, grid: int) -> np.ndarray:
    """Soft mask `[E, E]` -> patch grid `[grid, grid]`, torch's nearest, the values kept (METHOD stage 1, step 5)."""
    rows = np.arange(grid) * mask.shape[0] // grid
    columns = np.arange(grid) * mask.shape[1] // grid
    return mask[rows[:, None], columns[None, :]]


def check_image(image: Any, what: str = "image") -> np.ndarray:
    """The image. Raises `InputError`, beginning with `what`, unless it is uint8 RGB `[H, W, 3]` with pixels."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
        raise InputError(f"{what}: expected an image as a numpy array uint8 [H, W, 3], found {found}")
    if not image.size:
        raise InputError(f"{what}: expected an image with pixels, found an empty one")
    return image
