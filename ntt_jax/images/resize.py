"""Resizing that agrees with PyTorch and PIL: every resize is one small weight table per axis.

Four kinds are used by the method (METHOD stages 1 to 3):

- torch's bilinear and bicubic (Keys a = -0.75), half-pixel centres, no antialiasing, taps clamped to the border;
- torch's antialiased bilinear, whose triangle widens with the downscaling factor and is renormalised at the border;
- torch's nearest, source index floor(i * in / out);
- PIL's bicubic on uint8 (a = -0.5, antialiased, 22-bit fixed point, rounded to uint8 between the two passes).

Tables for sizes known ahead are made by numpy in float64. `antialias_taps` gives those of the logits' final resize on
the device for sizes known only when the program runs, from integers, so that no position is ever rounded.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, UInt8

from ntt_jax.errors import InputError

_PIL_PRECISION_BITS = 22
_HOST_CHUNK = 2**15  # numbers of a result worked on at once: 256 KiB


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@functools.lru_cache(maxsize=256)
def resize_taps(out_size: int, in_size: int, method: str, antialias: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The input samples that make each output sample of a 1-D resize, as `torch.nn.functional.interpolate` has them.

    Args:
      out_size, in_size: lengths in samples, at least 1.
      method: "bilinear", "bicubic" (a = -0.75; -0.5 with antialias, as torch does) or "nearest".
      antialias: widen the kernel when downscaling and renormalise the taps inside the border; without it taps beyond
        the border repeat the border sample. Not for "nearest".

    Returns:
      indices `[out, taps]` int64 in [0, in), weights `[out, taps]` float64, each row summing to 1. Both read-only.

    Raises:
      InputError: a size below 1, an unknown method, antialiased "nearest".
    """
    if out_size < 1 or in_size < 1:
        raise InputError(f"resize: sizes must be at least 1, found {in_size} -> {out_size}")
    if method not in ("bilinear", "bicubic", "nearest") or (method == "nearest" and antialias):
        raise InputError(f'resize: expected "bilinear", "bicubic" or plain "nearest", found {method!r}')
    out = np.arange(out_size)
    if method == "nearest":
        indices, weights = (out * in_size // out_size)[:, None], np.ones((out_size, 1))
    elif antialias:
        a = -0.5
        kernel, reach = (_triangle, 1.0) if method == "bilinear" else (functools.partial(_keys, a=a), 2.0)
        indices, weights = _antialiased_taps(out_size, in_size, kernel, reach)
    else:
        centre = (out + 0.5) * in_size / out_size - 0.5
        if method == "bilinear":
            centre = np.maximum(centre, 0.0)
            offsets, kernel = np.arange(0, 2), _triangle
        else:
            offsets, kernel = np.arange(-1, 3), functools.partial(_keys, a=-0.75)
        base = np.floor(centre)
        weights = kernel(offsets[None, :] - (centre - base)[:, None])
        indices = np.clip(base[:, None].astype(np.int64) + offsets[None, :], 0, in_size - 1)
    indices.setflags(write=False)
    weights.setflags(write=False)
    return indices, weights


def _antialiased_taps(out_size: int, in_size: int, kernel, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Window and normalised weights of each output sample, in the arithmetic that torch and PIL share."""
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = reach * stretch
    centre = (np.arange(out_size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), in_size)
    offsets = np.arange(max(1, int(np.max(last - first))))
    weights = kernel((offsets[None, :] + (first - centre + 0.5)[:, None]) * (1.0 / stretch))
    weights = np.where(offsets[None, :] < (last - first)[:, None], weights, 0.0)
    # Summed one by one, as both libraries do: the fixed-point tables of PIL depend on the last bit.
    total = np.zeros(out_size)
    for column in weights.T:
        total = total + column
    weights = weights / total[:, None]
    return np.minimum(first[:, None] + offsets[None, :], in_size - 1), weights


@functools.lru_cache(maxsize=256)
def resize_matrix(out_size: int, in_size: int, method: str, antialias: bool = False) -> np.ndarray:
    """The same 1-D resize as one matrix `[out, in]` float64 (read-only); arguments and errors as `resize_taps`."""
    indices, weights = resize_taps(out_size, in_size, method, antialias)
    matrix = np.zeros((out_size, in_size))
    np.add.at(matrix, (np.arange(out_size)[:, None], indices), weights)
    matrix.setflags(write=False)
    return matrix


def resize_images(
    images: Float[Array, "*batch H W C"], size: tuple[int, int], method: str
) -> Float[Array, "*batch h w C"]:
    """Resize `[..., H, W, C]` float32 to `[..., h, w, C]` by two matrix products, without antialiasing.

    Pure, differentiable; source: `torch.nn.functional.interpolate(mode=method, align_corners=False)`.
    """
    rows = jnp.asarray(resize_matrix(size[0], images.shape[-3], method), jnp.float32)
    columns = jnp.asarray(resize_matrix(size[1], images.shape[-2], method), jnp.float32)
    images = jnp.einsum("iy,...yxc->...ixc", rows, images, precision="highest")
    return jnp.einsum("jx,...ixc->...ijc", columns, images, precision="highest")


def resize_host(array: np.ndarray, size: tuple[int, int], method: str, antialias: bool = False) -> np.ndarray:
    """`resize_images` on the host: `[H, W, ...]` to `[h, w, ...]` float64, touching only the taps that count.

    For one-off resizes of arrays whose size differs every time, where compiling a program would cost more.
    """
    for axis, length in ((1, size[1]), (0, size[0])):
        indices, weights = resize_taps(length, array.shape[axis], method, antialias)
        shape = [1] * array.ndim
        shape[axis] = -1
        total = np.zeros((*array.shape[:axis], length, *array.shape[axis + 1 :]))
        rows = max(1, _HOST_CHUNK // max(1, total[:1].size))
        for start in range(0, len(total), rows):  # a few rows at a time, which stay in the cache
            part = slice(start, start + rows)
            source, own = (array, part) if axis == 0 else (array[part], slice(None))
            for index, weight in zip(indices[own].T, weights[own].T, strict=True):
                total[part] += np.take(source, index, axis=axis) * weight.reshape(shape)
        array = total
    return array


def antialias_taps(
    index: Array, size: int | Array, in_size: int
) -> tuple[Array, Callable[[int | Array], Array], Array]:
    """Antialiased bilinear resize in_size -> size as taps, where `size` may be a traced value.

    The weight of input sample j in output sample i is max(0, 1 - |d| / 2s) with d = (2j + 1) size - (2i + 1) in_size
    and s = max(size, in_size), normalised over j. All of it but the last division is integer, hence exact: large
    sizes do not drift as float32 positions do.

    Args:
      index: `[n]` int32, output samples; weights of samples outside [0, size) are 0.
      size: output length, a Python int or an int32 scalar, at most 2**20.
      in_size: input length, at most 1024.

    Returns:
      first `[n]` int32: the first input sample of each output sample, possibly -1.
      weight: function of t giving the float32 weight `[n]` of input sample first + t; 0 for samples that do not exist.
      taps: int32 scalar, how many t count; 2 if size >= in_size.
      Source: torch's `_upsample_bilinear2d_aa`, METHOD stage 3 step 8.
    """
    size = jnp.asarray(size, jnp.int32)
    stretch = jnp.maximum(size, in_size)
    first = ((2 * index + 1) * in_size - 2 * stretch - size) // (2 * size) + 1
    taps = (2 * stretch + size - 1) // size
    inside = (index >= 0) & (index < size)

    def share(t: int | Array) -> Array:  # times 2 * stretch, a whole number
        j = first + t
        distance = jnp.abs((2 * j + 1) * size - (2 * index + 1) * in_size)
        return jnp.where(inside & (j >= 0) & (j < in_size), jnp.maximum(0, 2 * stretch - distance), 0)

    total = lax.fori_loop(0, taps, lambda t, total: total + share(t), jnp.zeros_like(index))
    total = jnp.maximum(1, total).astype(jnp.float32)
    return first, lambda t: share(t).astype(jnp.float32) / total, taps


def antialias_resize(array: Array, index: Array, size: int | Array, axis: int) -> Array:
    """Output samples `index` `[n]` of the antialiased bilinear resize of one axis to `size`; see `antialias_taps`.

    Two taps per sample if `size`, known or traced, is not below the axis' length; as many as it takes otherwise.
    """
    in_size = array.shape[axis]
    first, weight, taps = antialias_taps(index, size, in_size)
    shape = [1] * array.ndim
    shape[axis] = index.shape[0]

    def tap(t: int | Array) -> Array:
        samples = jnp.take(array, jnp.clip(first + t, 0, in_size - 1), axis=axis, mode="clip")
        return samples * weight(t).reshape(shape)

    def two_taps() -> Array:
        return tap(0) + tap(1)

    def all_taps() -> Array:
        return lax.fori_loop(1, taps, lambda t, total: total + tap(t), tap(0))

    if isinstance(size, int):
        return two_taps() if size >= in_size else all_taps()
    return lax.cond(size >= in_size, two_taps, all_taps)


@functools.lru_cache(maxsize=64)
def _pil_taps(out_size: int, in_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and 22-bit fixed-point weights `[taps, out]` int32 of PIL's bicubic."""
    indices, weights = _antialiased_taps(out_size, in_size, functools.partial(_keys, a=-0.5), 2.0)
    scaled = weights * (1 << _PIL_PRECISION_BITS)
    fixed = np.trunc(scaled + np.where(weights < 0, -0.5, 0.5))
    return indices.T.astype(np.int32), fixed.T.astype(np.int32)


def pil_resize_bicubic(image: UInt8[Array, "H W C"], size: tuple[int, int]) -> UInt8[Array, "h w C"]:
    """PIL's bicubic, first horizontally, then vertically, bit for bit, on the device, for shapes known ahead.

    Every Pillow resizes in this order when told to in two steps (`preprocess.resize_for_sam`); in one step, Pillow 13
    and later may start with the vertical pass.

    Args:
      image: `[H, W, C]` uint8.
      size: (height, width) of the result in pixels.

    Returns:
      `[height, width, C]` uint8. Source: METHOD stage 3 step 1.

    Raises:
      InputError: `image` is not a uint8 array of rank 3, or a side is below 1.
    """
    if image.ndim != 3 or image.dtype != jnp.uint8 or min(*image.shape, *size) < 1:
        raise InputError(
            f"pil_resize_bicubic: expected uint8 [H, W, C] and sides >= 1, found {image.dtype} {image.shape} -> {size}"
        )
    for axis, length in ((1, size[1]), (0, size[0])):
        if image.shape[axis] != length:
            image = _pil_pass(image, length, axis)
    return image


def _pil_pass(image: Array, length: int, axis: int) -> Array:
    shape = [1, 1, 1]
    shape[axis] = length

    def add_tap(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        index, weight = tap
        samples = jnp.take(image, index, axis=axis).astype(jnp.int32)
        return total + samples * weight.reshape(shape), None

    indices, weights = _pil_taps(length, image.shape[axis])
    start = jnp.full((*image.shape[:axis], length, *image.shape[axis + 1 :]), 1 << (_PIL_PRECISION_BITS - 1), jnp.int32)
    total, _ = lax.scan(add_tap, start, (jnp.asarray(indices), jnp.asarray(weights)))
    return jnp.clip(total >> _PIL_PRECISION_BITS, 0, 255).astype(jnp.uint8)
