"""Writing a PyTorch checkpoint without PyTorch: the zip archive and the pickle that `torch.save` makes of tensors."""

import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from ntt_jax.files import replacing
from weight_port.pickle_scan import STORAGE_TYPES
from weight_port.tensor import Tensor

_STORAGE_OF = {dtype: name for name, (dtype, _) in STORAGE_TYPES.items()}
_ALIGNMENT = 64
_LOCAL_HEADER = 30


def write_torch(path: pathlib.Path, tensors: Mapping[str, Tensor], *, wrap: bool) -> None:
    """Write a checkpoint as Meta's: `{"model": {...}}` if `wrap`, else the flat dictionary.

    Every tensor lies in a record of its own, contiguous, on a 64-byte boundary, so that torch can map the file.

    Raises:
        InputError: the file system refuses; nothing is left behind then.
    """
    root = "archive"
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def record(name: str, content: bytes | memoryview) -> None:
            info = zipfile.ZipInfo(f"{root}/{name}")  # dated 1980: the same tensors make the same file
            end = file.tell() + _LOCAL_HEADER + len(info.filename) + 4
            info.extra = struct.pack("<2sH", b"FB", -end % _ALIGNMENT) + b"Z" * (-end % _ALIGNMENT)
            archive.writestr(info, content)

        record("data.pkl", _pickle(tensors, wrap=wrap))
        record("byteorder", b"little")
        for i, tensor in enumerate(tensors.values()):
            record(f"data/{i}", np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
        record("version", b"3\n")


def _pickle(tensors: Mapping[str, Tensor], *, wrap: bool) -> bytes:
    items = b"".join(_text(name) + _tensor(str(i), tensor) for i, (name, tensor) in enumerate(tensors.items()))
    state = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if wrap:
        state = pickle.EMPTY_DICT + _text("model") + state + pickle.SETITEM
    return pickle.PROTO + b"\x02" + state + pickle.STOP


def _tensor(key: str, tensor: Tensor) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`."""
    storage = pickle.GLOBAL + f"torch\n{_STORAGE_OF[str(tensor.dtype)]}\n".encode()
    place = _tuple(_text("storage"), storage, _text(key), _text("cpu"), _integer(tensor.size)) + pickle.BINPERSID
    strides = [1]
    for n in reversed(tensor.shape[1:]):
        strides.insert(0, strides[0] * max(1, n))
    stride = _tuple(*map(_integer, strides[: tensor.ndim]))
    hooks = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    shape = _tuple(*map(_integer, tensor.shape))
    arguments = _tuple(place, _integer(0), shape, stride, pickle.NEWFALSE, hooks)
    return pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + arguments + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
