"""Tensors that lie in a file and are read when somebody asks for them: a model costs no memory until it is used.

They are copied out of the file piece by piece, not mapped: a file that is cut while it is read ends in one line, where
a mapped one would end the process.
"""

import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntt_jax.errors import InputError
from ntt_jax.files import open_input, reason, show_path


class InputFile:
    """A checkpoint held open: looked at and read through one descriptor, whatever happens to its name meanwhile."""

    def __init__(self, path: pathlib.Path, *, what: str = "checkpoint"):
        """Raises `InputError` unless `path` is a regular file with something in it that can be read."""
        with open_input(path, what=what) as file:
            self.size = os.fstat(file.fileno()).st_size
            self._descriptor = os.dup(file.fileno())
        self.path = path
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytearray:
        """`size` bytes from `offset` on. Raises `InputError` if they are not there (any more)."""
        out = bytearray(size)
        view, done = memoryview(out), 0
        try:
            while done < size:
                count = self._read_into(view[done : done + 2**30], offset + done)
                if count == 0:
                    raise InputError(f"{show_path(self.path)}: truncated, or cut while it was read; download it again")
                done += count
        except OSError as error:
            raise InputError(f"{show_path(self.path)}: cannot be read: {reason(error)}") from None
        return out

    def _read_into(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        return len(data)


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor without reading it, and how to read it. It has as much of an array as names need."""

    dtype: np.dtype
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    def transpose(self, axes: Any) -> "Tensor":
        """The same with its axes in another order, as `np.ndarray.transpose`."""
        axes = tuple(int(axis) for axis in axes)
        return Tensor(self.dtype, tuple(self.shape[i] for i in axes), lambda: self.load().transpose(axes))

    @staticmethod
    def of(array: np.ndarray) -> "Tensor":
        return Tensor(array.dtype, array.shape, lambda: array)


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, in order: `tensors[name]` reads one; `tensors.entries` are what is known without reading."""

    def __init__(self, entries: Mapping[str, Tensor]):
        self.entries = dict(entries)

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> "Tensors":
        """Of arrays in memory; of `Tensors` themselves."""
        if isinstance(arrays, Tensors):
            return arrays
        return Tensors({name: Tensor.of(array) for name, array in arrays.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __or__(self, other: Mapping[str, np.ndarray]) -> "Tensors":
        return Tensors(self.entries | Tensors.of(other).entries)
