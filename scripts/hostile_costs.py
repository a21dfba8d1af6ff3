"""What files made to be expensive cost: seconds and peak memory of each, read by a process of its own, as a table.

    python scripts/hostile_costs.py [NAME ...]        # docs/hostile_files.md holds what it printed

Each recipe is made in a temporary folder, at full size, and read as a user's file would be. Reading ends in one line
("refused") or in a result. POSIX only: the peak is the process's and its helpers' (`resource`).
"""

import base64
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

READ = {
    "image": "from ntt_jax.images.reading import read_image as read",
    "json": "from ntt_jax.datasets import load_dataset as read",
    "memory": "from ntt_jax.memory.bank import load_memory as read",
    "folder": (
        "from ntt_jax.references.folder import find_references\n"
        "def read(path):\n"
        "    return find_references(path.rpartition('/')[0])"
    ),
    "masks": (
        "from ntt_jax.datasets import load_dataset\n"
        "def read(path):\n"
        "    data = load_dataset(path)\n"
        "    return [data.rle(a) for a in data.annotations.values()]"
    ),
    "class": (
        "from ntt_jax.datasets import load_dataset\n"
        "from ntt_jax.datasets.dataset import select_classes\n"
        "def read(path):\n"
        "    return select_classes(load_dataset(path), 'klass 7')"
    ),
}
CHILD = """
import sys
from ntt_jax.errors import InputError
{imports}
try:
    read(sys.argv[1])
    print("read")
except InputError as error:
    assert str(error).isprintable() and len(str(error)) <= 1000
    print("refused")
"""


def sparse(start: bytes, size: int) -> Callable[[Path], None]:
    """A file that claims `size` bytes and takes none."""

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(size)

    return write


def whole(make: Callable[[], bytes]) -> Callable[[Path], None]:
    """A file of these bytes, made when it is needed."""

    def write(path: Path) -> None:
        path.write_bytes(make())

    return write


def png(width: int, height: int, colour: int, more: bytes = b"") -> bytes:
    """A PNG of zeros; `more` chunks stand before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" * (width * {0: 1, 2: 3, 3: 1, 6: 4}[colour] + 1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    palette = chunk(b"PLTE", b"\1\2\3" * 256) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def coco(segmentation: object, side: int, names: int = 1) -> bytes:
    """An annotation file of one annotation."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": side, "width": side}],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, names + 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, side, side], "segmentation": segmentation}
        ],
    }
    return json.dumps(content).encode()


def triangles(count: int, side: int = 14000) -> list[list[int]]:
    """Small triangles all over an image."""
    places = ((i * 7919 % (side - 4), i * 104729 % (side - 4)) for i in range(count))
    return [[x, y, x + 2, y, x, y + 2] for x, y in places]


def beside_a_photo(make: Callable[[int], str], name: str, **more: str) -> Callable[[Path], None]:
    """A file of annotations of a large photo; the path is that of the file, its folder is what is read."""

    def write(path: Path) -> None:
        path.with_name("a.png").write_bytes(png(SIDE, SIDE, 0))
        for stem, text in more.items():
            path.with_name(f"{stem}.txt").write_text(text)
        path.with_name(name).write_text(make(SIDE))
        path.touch()

    return write


def labelme(
    count: int, kind: str = "polygon", group: int | None = None, mask: str | None = None
) -> Callable[[int], str]:
    """A LabelMe file of `count` shapes."""
    points = [[0, 0]] if mask else [[1, 1], [90, 1], [90, 90]]
    shape = {"label": "x", "points": points, "shape_type": kind, "group_id": group, "mask": mask}
    return lambda side: json.dumps(
        {"imagePath": "a.png", "imageHeight": side, "imageWidth": side, "shapes": [shape] * count}
    )


def passes(side: int, count: int) -> bytes:
    """A progressive JPEG whose last pass stands there again and again, behind an end that is none."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 9).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + b"\xff\xfe\0\4\xff\xd9" + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def named(name: str, ids: int = 1, images: int = 1) -> bytes:
    """An annotation file of images with text for ids, all of the same name."""
    content = json.loads(coco(None, 8))
    content["images"] = [{"id": f"photo {i % ids}" if ids > 1 else i, "file_name": name} for i in range(images)]
    return json.dumps(content).encode()


SIDE = 14142
JPEG2000 = b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">8IH", 8, 8, 0, 0, 8, 8, 0, 0, 1) + b"\7\1\1"
GIF = b"GIF89a\x08\0\x08\0\x80\0\0" + b"\0" * 6
RECIPES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "JPEG of 100 MB of fill bytes": ("image", whole(lambda: b"\xff\xd8" + b"\xff" * 100_000_000)),
    "JPEG of 20 M markers": ("image", whole(lambda: b"\xff\xd8" + b"\xff\xe1\0\2" * 20_000_000)),
    "JPEG of 100 MB of comments": ("image", whole(lambda: b"\xff\xd8" + (b"\xff\xfe\xff\xff" + b"a" * 65533) * 1500)),
    "JPEG, 2,000 passes over 9,000 x 9,000 pixels": ("image", whole(lambda: passes(9000, 2000))),
    "JPEG 2000 of 20 M markers": ("image", whole(lambda: JPEG2000 + b"\xff\x55\0\2" * 20_000_000)),
    "PNG of 3 M comments behind its pixels": (
        "image",
        whole(lambda: png(8, 8, 0)[:-12] + b"\0\0\0\3tEXta\0b\0\0\0\0" * 3_000_000),
    ),
    "PNG of 5 M empty chunks": ("image", whole(lambda: png(8, 8, 0, b"\0\0\0\0abCd\0\0\0\0" * 5_000_000))),
    "PNG, 4 GB, sparse": ("image", sparse(b"\x89PNG\r\n\x1a\n", 4 * 2**30)),
    "GIF of 4 M comments": ("image", whole(lambda: GIF + b"!\xfe\1a\0" * 4_000_000)),
    "GIF of one comment in 20 M pieces": ("image", whole(lambda: GIF + b"!\xff" + b"\1a" * 20_000_000 + b"\0;")),
    "GIF, 600 MB, sparse": ("image", sparse(GIF, 600_000_000)),
    "plain PPM of 30 M comments": ("image", whole(lambda: b"P3 1400 1400 255\n" + b"#\n" * 30_000_000)),
    "PPM with a comment of 50 MB": ("image", whole(lambda: b"P6\n#" + b"a" * 50_000_000)),
    "200 M pixels, grey PNG": ("image", whole(lambda: png(14142, 14142, 0))),
    "200 M pixels, palette PNG": ("image", whole(lambda: png(14142, 14142, 3))),
    "200 M pixels, RGB PNG": ("image", whole(lambda: png(14142, 14142, 2))),
    "200 M pixels, RGBA PNG": ("image", whole(lambda: png(14142, 14142, 6))),
    "JSON of 33 M empty lists": ("json", whole(lambda: b"[" + b"[]," * 33_000_000 + b"0]")),
    "JSON of 100 M brackets": ("json", whole(lambda: b"[" * 100_000_000)),
    "JSON of one object of 8 M keys": (
        "json",
        whole(lambda: b"{" + b",".join(b'"%d":1' % i for i in range(8_000_000)) + b"}"),
    ),
    "JSON of 33 M numbers of two characters": ("json", whole(lambda: b"[" + b"-6," * 33_000_000 + b"0]")),
    "JSON of 16 M numbers of five characters": (
        "json",
        whole(lambda: b"[" + b",".join(b"%d" % (10_000 + i % 90_000) for i in range(16_500_000)) + b"]"),
    ),
    "JSON of integers of 4,300 digits, 100 MB": (
        "json",
        whole(lambda: b"[" + b",".join([b"9" * 4300] * 23_000) + b"]"),
    ),
    "JSON, 1.9 GB, sparse": ("json", sparse(b'{"images":[', 1_900_000_000)),
    "run lengths: 100 MB for 1 x 1": (
        "masks",
        whole(lambda: coco({"size": [1, 1], "counts": "0" * 100_000_000 + "1"}, 1)),
    ),
    "run lengths: 16 M for 10,000 x 10,000": (
        "masks",
        whole(lambda: coco({"size": [10_000, 10_000], "counts": "11" + "0" * 15_999_998}, 10_000)),
    ),
    "80,000 triangles in one annotation": ("masks", whole(lambda: coco(triangles(80_000), 14000))),
    "200,000 triangles in one annotation": ("masks", whole(lambda: coco(triangles(200_000), 14000))),
    "LabelMe: 20,000 polygons in a photo of 200 M pixels": ("folder", beside_a_photo(labelme(20_000), "a.json")),
    "LabelMe: 120 pictures of masks in such a photo": (
        "folder",
        beside_a_photo(labelme(120, "mask", mask=base64.b64encode(png(8, 8, 0)).decode()), "a.json"),
    ),
    "YOLO: 10,000 polygons in such a photo": (
        "folder",
        beside_a_photo(lambda side: "0 .1 .1 .2 .1 .2 .2\n" * 10_000, "a.txt", classes="x\n"),
    ),
    "100,000 images whose ids are text": ("json", whole(lambda: named("a.jpg", 100_000, 100_000))),
    "1,000 names of 2,000 folders each": ("json", whole(lambda: named("/" + "a/" * 2000 + "a.jpg", 1, 1000))),
    "one name of 50,000 folders": ("json", whole(lambda: named("/" + "a/" * 50_000 + "a.jpg"))),
    "a mistyped class among a million": ("class", whole(lambda: coco([[0, 0, 1, 0, 0, 1]], 9, 1_000_000))),
    "memory file, 1 GB, sparse": ("memory", sparse(struct.pack("<Q", 100), 2**30)),
}


def measure(name: str, folder: Path) -> str:
    """One line of the table."""
    kind, make = RECIPES[name]
    (folder / "input").mkdir()
    path = folder / "input" / "file"
    make(path)
    read, write = os.pipe()
    started = time.monotonic()
    if (child := os.fork()) == 0:  # a process of its own, so that the peak of its children is this recipe's alone
        result = subprocess.run(
            [sys.executable, "-c", CHILD.format(imports=READ[kind]), str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // (1024 if sys.platform != "darwin" else 2**20)
        outcome = result.stdout.strip() or f"status {result.returncode}"
        os.write(write, json.dumps([outcome, peak, len(result.stderr.splitlines())]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    seconds = time.monotonic() - started
    outcome, peak, lines = json.loads(os.read(read, 4096))
    os.close(read)
    os.close(write)
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    shutil.rmtree(path.parent)
    if lines:
        outcome += f", {lines} lines on stderr"
    return f"| {name} | {size / 1e6:,.1f} MB | {outcome} | {seconds:.1f} s | {peak:,} MB |"


def main() -> None:
    """Measure the recipes named, or all."""
    print("| recipe | file | outcome | seconds | peak memory |\n|---|--:|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or RECIPES:
            print(measure(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
