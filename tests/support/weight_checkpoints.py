"""Small checkpoints with Meta's names for the tests of the weight tool, made without torch."""

import functools
import json
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from recipe import recipe
from sam2_weights import SMALL

from ntt_jax.config import DinoV2Config, Sam2Config
from weight_port import rules
from weight_port.store import Item, write_safetensors

TINY_DINOV2 = DinoV2Config(
    name="dinov2_custom", embed_dim=16, depth=2, num_heads=2, image_size=56, patch_size=14, input_size=518
)
TINY_SAM2 = SMALL
DINOV2_GIVEN = {"num_heads": 2}
SAM2_GIVEN = {
    "name": "small",
    "image_size": 256,
    "hiera": {"num_heads": 1, "window_spec": [8, 4, 14, 7], "global_att_blocks": [4, 6]},
}


@functools.cache
def shapes(config: DinoV2Config | Sam2Config, video: str = "") -> dict[str, tuple[int, ...]]:
    """Meta's names and torch's shapes; `video` is "", "2.0" or "2.1" for SAM 2."""
    out = {rule.torch_name: rule.torch_shape for rule in rules.skeleton(config).rules.values()}
    if video:
        names = {"maskmem_tpos_enc": (7, 1, 1, 64)}
        names |= {f"memory_attention.layers.{i}.x": () for i in range(2)}
        names |= {f"memory_encoder.fuser.layers.{i}.x": () for i in range(2)}
        names |= {"no_obj_embed_spatial": ()} if video == "2.1" else {}
        out = rules.video_tensors(names, config) | out
    return out


def state_dict(config: DinoV2Config | Sam2Config, video: str = "", dtype=np.float32) -> dict[str, np.ndarray]:
    """The recipe's weights."""
    return {name: recipe(name, shape).astype(dtype) for name, shape in shapes(config, video).items()}


def save(path: pathlib.Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> pathlib.Path:
    """Write tensors as they are."""
    items = [Item(n, a.dtype, a.shape, functools.partial(np.ascontiguousarray, a)) for n, a in tensors.items()]
    write_safetensors(path, items, {"format": "pt"} if metadata is None else metadata)
    return path


def save_raw(path: pathlib.Path, header: object, data: bytes = b"") -> pathlib.Path:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def assert_same_bits(found: Mapping[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert np.asarray(found[name]).tobytes() == array.tobytes(), name


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return path


def tensor_pickle(name="norm.bias", numel=16, shape=(16,), stride=(1,), offset=0, key="0", storage="FloatStorage"):
    """What torch.save would write for `{name: tensor}`, made by hand (text opcodes of protocol 0 are refused)."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def integer(value):
        size = max(8, value.bit_length() // 8 + 1)
        code = b"\x8a\x08" if size == 8 else b"\x8b" + struct.pack("<I", size)
        return code + value.to_bytes(size, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(integer, values)) + b"t"

    persistent = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + integer(numel)
    arguments = b"(" + persistent + b"tQ" + integer(offset) + numbers(shape) + numbers(stride)
    arguments += b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def checkpoint(path, data, storage=b"\0" * 64, **more):
    return archive(path, {"x/data.pkl": data, "x/version": b"3\n", "x/data/0": storage, **more})
