"""Coverage-guided fuzzing of the readers: whatever the bytes, nothing but `InputError`, of one bounded, printable line.

    pip install "ntt-jax[fuzz]"
    nice -n 19 python scripts/fuzz.py READER [CORPUS_FOLDER] [-max_total_time=600 ...]     # options of libFuzzer

READER is one of `tests/support/readers.py`, or "masks". Without a corpus, sound small files are what is spoiled. What
is found is written beside as crash-... or timeout-..., and belongs, made small, into tests/hostile. Python's code is
instrumented; the C of Pillow and pycocotools is not, so those are only driven.
"""

import io
import json
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
    include=["ntt_jax", "weight_port", "readers"]
):
    from readers import FORGIVING, READERS

    from ntt_jax.errors import InputError
    from ntt_jax.images.rle import decode_rle, segmentation_to_rle


def masks(path: Path) -> None:
    """The text of run lengths, of a size that its first two bytes say."""
    data = path.read_bytes()
    height, width = data[0] % 40 + 1, data[1] % 40 + 1
    counts = data[2:].decode("latin-1")
    rle = segmentation_to_rle({"size": [height, width], "counts": counts}, height, width, "x")
    assert decode_rle(rle).shape == (height, width)


def images() -> list[bytes]:
    """A small image of every format that this environment writes."""
    from PIL import Image

    made = []
    for kind in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF"):
        if kind == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        for mode in ("RGB", "P", "I;16"):
            buffer = io.BytesIO()
            try:
                Image.new(mode, (12, 8), 3).save(buffer, kind, compression="tiff_lzw" if mode == "P" else None)
            except (OSError, KeyError, ValueError, TypeError):  # not every format has every mode
                continue
            made.append(buffer.getvalue())
    return made


def texts() -> list[bytes]:
    """Small files of JSON, XML and lists that the readers take."""
    segmentations = (
        [[1, 1, 5, 1, 5, 5]],
        [[[1, 1], [5, 1], [5, 5]]],
        [[{"x": 1, "y": 1}, {"x": 5, "y": 1}, {"x": 5, "y": 5}]],
        {"size": [8, 12], "counts": [40, 8, 48]},
        {"size": [8, 12], "counts": "X18P2"},
        [{"size": [8, 12], "counts": "b'X18P2'"}],
    )
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 12}],
        "categories": [{"id": 1, "name": "dog", "supercategory": "none"}],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 4, 4],
                "area": 8.0,
                "iscrowd": 0,
                "segmentation": s,
            }
            for i, s in enumerate(segmentations, 1)
        ],
    }
    kinds = {"polygon": [[1, 1], [9, 1], [9, 7]], "rectangle": [[1, 1], [9, 7]], "circle": [[5, 4], [5, 6]]}
    shapes = [{"label": "dog", "points": p, "shape_type": k, "group_id": None} for k, p in kinds.items()]
    record = json.dumps({"image_id": 5, "boxes": [[0, 0, 1, 1]]}).encode()
    xml = (
        "<annotation><filename>000001.jpg</filename><size><width>12</width><height>8</height></size><object><name>dog"
        "</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
        "</object></annotation>"
    )
    result = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5, "segmentation": segmentations[4]}
    return [
        *(
            json.dumps(one).encode()
            for one in (coco, [result], {"format": "ntt-jax run", "identity": {}, "starts": []})
        ),
        json.dumps({"weight_map": {"a": "a.safetensors"}, "model": "dinov2", "version": 1}).encode(),
        json.dumps({"score_threshold": 0.1, "top_k": 3}).encode(),
        json.dumps({"a.jpg": [{"class": "dog", "box": [1, 1, 4, 4], "mask": "a.png", "points": [[1, 1]]}]}).encode(),
        b"%08x %s\n" % (zlib.crc32(record), record),
        xml.encode(),
        b"000001\n000002\n",
        json.dumps(
            {"version": "5", "imagePath": "a.png", "imageHeight": 8, "imageWidth": 12, "shapes": shapes}
        ).encode(),
        b"0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.9 0.1 0.9 0.9\n",
        b"names: [dog, cat]\n",
        b"names:\n  0: dog\n  1: 'cat'\n",
        b"dog\ncat\n",
        json.dumps(["0" * 64, "csv", "objects.csv"]).encode() + b"\n",
        json.dumps({**coco, "annotations": [{**coco["annotations"][0], "score": 0.5}], "skipped": []}).encode(),
    ]


def tensors() -> list[bytes]:
    """Small files of tensors: safetensors, a memory, a zip of torch's."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    bank = {"prototypes": ["F32", [1, 2], 8], "instance_means": ["F32", [1, 1, 2], 8], "valid": ["BOOL", [1, 1], 1]}
    entries, place = {}, 0
    for name, (code, shape, size) in bank.items():
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    info = {"format": "ntt-jax memory", "version": 1, "class_names": ["dog"], "category_ids": [1], "provenance": {}}
    entries["__metadata__"] = {"bank": json.dumps(info)}
    memory = json.dumps(entries).encode()
    pickled = (
        b"\x80\x02}q\0X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
        b"X\1\0\0\0000X\3\0\0\0cpuK\2tQK\0K\2\x85K\1\x85\x89ccollections\nOrderedDict\n)RtRs."
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("data/0", b"\0" * 8), ("version", b"3\n")):
            file.writestr(f"archive/{name}", data)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/b.jpg", b"ab" * 50)
    return [
        struct.pack("<Q", len(header)) + header + b"\0" * 8,
        struct.pack("<Q", len(memory)) + memory + struct.pack("<4f", 1, 0, 1, 0) + b"\1",
        archive.getvalue(),
        packed.getvalue(),
        pickled,
    ]


def main() -> None:
    """Fuzz the reader that the first argument names."""
    readers: dict[str, Callable[[Path], object]] = {**READERS, **FORGIVING, "masks": masks}
    if len(sys.argv) < 2 or sys.argv[1] not in readers:
        sys.exit(f"give one of: {', '.join(readers)}")
    read = readers[sys.argv.pop(1)]
    folder = Path(tempfile.mkdtemp())
    path = folder / "file.json"
    if not any(not argument.startswith("-") for argument in sys.argv[1:]):
        (folder / "corpus").mkdir()
        for number, data in enumerate((*images(), *texts(), *tensors(), b"ab11")):
            (folder / "corpus" / str(number)).write_bytes(data)
        sys.argv.append(str(folder / "corpus"))

    def one(data: bytes) -> None:
        path.write_bytes(data + b"\0" * max(0, 2 - len(data)))
        try:
            read(path)
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) <= 2000, ascii(str(error))

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
