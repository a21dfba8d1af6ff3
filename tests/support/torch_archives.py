"""Archives like those of torch.save, made by hand."""

import struct
import zipfile


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
        data = value.to_bytes(8, "little", signed=True)
        return b"\x8a\x08" + data

    def numbers(values):
        return b"(" + b"".join(map(integer, values)) + b"t"

    persistent = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + integer(numel)
    arguments = b"(" + persistent + b"tQ" + integer(offset) + numbers(shape) + numbers(stride)
    arguments += b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def checkpoint(path, data, storage=b"\0" * 64, **more):
    return archive(path, {"x/data.pkl": data, "x/version": b"3\n", "x/data/0": storage, **more})
