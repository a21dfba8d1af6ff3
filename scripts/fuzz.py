"""Coverage-guided fuzzing of the readers: whatever the bytes, nothing but `InputError`, of one bounded, printable line.

    pip install "ntt-jax[fuzz]"
    nice -n 19 python scripts/fuzz.py READER [CORPUS_FOLDER] [-max_total_time=600 ...]     # options of libFuzzer

READER is one of those listed below. What is found is written beside as crash-..., and belongs, made small, into
tests/hostile. Python's code is instrumented; the C of Pillow and pycocotools is not, so those are only driven.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
    include=["ntt_jax", "weight_port"]
):
    from ntt_jax.datasets.coco import load_coco
    from ntt_jax.errors import InputError
    from ntt_jax.images.mask_files import read_mask
    from ntt_jax.images.reading import open_image_size, read_image
    from ntt_jax.images.rle import decode_rle, segmentation_to_rle
    from ntt_jax.memory.bank import load_memory
    from ntt_jax.references.prompted import load_prompted
    from ntt_jax.references.sampling import load_references
    from ntt_jax.runs.records import RecordFile
    from weight_port.port import inspect, read_converted


def masks(path: Path) -> None:
    """The text of run lengths, of a size that its first two bytes say."""
    data = path.read_bytes()
    height, width = data[0] % 40 + 1, data[1] % 40 + 1
    counts = data[2:].decode("latin-1")
    rle = segmentation_to_rle({"size": [height, width], "counts": counts}, height, width, "x")
    assert decode_rle(rle).shape == (height, width)


def coco(path: Path) -> None:
    """An annotation file with all its masks."""
    dataset = load_coco(path)
    for annotation in dataset.annotations.values():
        if annotation.segmentation is not None and dataset.images[annotation.image_id].height < 10_000:
            dataset.rle(annotation)


READERS: dict[str, Callable[[Path], object]] = {
    "image": lambda path: read_image(path, max_pixels=1_000_000),
    "mask": read_mask,
    "size": open_image_size,
    "coco": coco,
    "masks": masks,
    "prompted": load_prompted,
    "references": load_references,
    "memory": load_memory,
    "records": lambda path: RecordFile(path).close(),
    "weights": read_converted,
    "checkpoint": inspect,
}


def main() -> None:
    """Fuzz the reader that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"give one of: {', '.join(READERS)}")
    read = READERS[sys.argv.pop(1)]
    path = Path(tempfile.mkdtemp()) / "file"

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
