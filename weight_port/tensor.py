"""Tensors that lie in a file: shape and type are known, the numbers are read when they are asked for.

So that a checkpoint costs the memory of one tensor at a time, and no more of its bytes are read than are used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array that is made when it is asked for: by `read`, or by numpy (`np.asarray(tensor)`)."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=False)

    def transpose(self, axes: Sequence[int]) -> "Tensor":
        """With its axes in another order, as numpy's."""
        axes = tuple(int(axis) for axis in axes)
        return replace(self, shape=tuple(self.shape[i] for i in axes), read=lambda: self.read().transpose(axes))

    def rows(self, start: int, stop: int) -> "Tensor":
        """Some of the first axis. `start` and `stop` must lie within it."""
        return replace(self, shape=(stop - start, *self.shape[1:]), read=lambda: self.read()[start:stop])

    def checked(self, check: Callable[[np.ndarray], None]) -> "Tensor":
        """The same, looked at by `check`, which may raise, whenever it is read."""

        def read() -> np.ndarray:
            array = self.read()
            check(array)
            return array

        return replace(self, read=read)


def tensor_of(array: Any) -> Tensor:
    """An array in memory, or a tensor as it is."""
    return array if isinstance(array, Tensor) else Tensor(array.dtype, array.shape, lambda: array)


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Parts of equal shape and type, one after the other along the first axis."""
    first = parts[0]
    shape = (first.shape[0] * len(parts), *first.shape[1:])
    return Tensor(first.dtype, shape, lambda: np.concatenate([part.read() for part in parts]))
