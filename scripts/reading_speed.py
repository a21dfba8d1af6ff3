"""How long honest files take to be read, as ratios to another checkout of this project: processor time.

    git worktree add ../before e9ad04b
    python scripts/reading_speed.py ../before [--rounds 5] [--convert]

Annotations of 5,000 images with 36,000 objects, 200 photos of 640 x 480, and with --convert a checkpoint of the size of
Hiera-L (0.9 GB, random) in Meta's format, which needs torch. Both checkouts
read the same files with this interpreter, in turn, and the best of several rounds counts. Processor time, since other
work on the machine spoils the clock more.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parents[1]
FIND = """
import importlib
def of(name, *modules):  # modules have moved since
    for module in modules:
        try:
            return getattr(importlib.import_module('ntt_jax.' + module), name)
        except ModuleNotFoundError:
            continue
load_coco = of('load_coco', 'datasets.coco', 'coco')
read_image, open_image_size = (of(name, 'images.reading', 'images') for name in ('read_image', 'open_image_size'))
"""
READ = {
    "nothing (the imports)": "",
    "annotations of 5,000 images": "load_coco(sys.argv[1] + '/a.json')",
    "200 photos": "for i in range(200): read_image(f'{sys.argv[1]}/{i}.jpg')",
    "sizes of 200 photos": "for i in range(200): open_image_size(f'{sys.argv[1]}/{i}.jpg')",
}
CONVERT = "from weight_port.__main__ import main; assert not main(['convert', sys.argv[1] + '/l.pt', sys.argv[2]])"


def make_files(folder: Path, convert: bool) -> None:
    """The files that are read."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(5000)]
    annotations = []
    for number in range(36_000):
        x, y = rng.uniform(0, 500), rng.uniform(0, 350)
        points = np.round(rng.uniform(0, 120, (25, 2)) + np.array([x, y]), 2)
        low, size = points.min(0), np.ptp(points, axis=0)
        annotations.append(
            {"id": number + 1, "image_id": number % 5000, "category_id": number % 80 + 1, "iscrowd": 0}
            | {"segmentation": [points.ravel().tolist()], "area": float(size.prod()), "bbox": [*low, *size]}
        )
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    for number in range(200):
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    if convert:
        sys.path[:0] = [str(HERE), str(HERE / "tests" / "support")]
        import torch
        from weight_checkpoints import state_dict

        from ntt_jax.config import SAM2_CONFIGS

        tensors = state_dict(SAM2_CONFIGS["sam2.1_hiera_large"])
        torch.save({"model": {name: torch.from_numpy(array) for name, array in tensors.items()}}, folder / "l.pt")


def seconds(checkout: Path, code: str, *arguments: str) -> float:
    """Processor time of a process that runs `code` with the packages of `checkout`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", f"import sys\n{FIND if code != CONVERT else ''}{code}", *arguments],
        check=True,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one line for each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--convert", action="store_true", help="also a checkpoint of Hiera-L's size")
    arguments = parser.parse_args()
    print("| read | before | now | ratio |\n|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), arguments.convert)
        given: dict[str, tuple[str, tuple[str, ...]]] = {name: (code, (folder,)) for name, code in READ.items()}
        if arguments.convert:
            given["convert of Hiera-L"] = (CONVERT, (folder, f"{folder}/out.safetensors"))
        for name, (code, more) in given.items():
            best = {arguments.other.resolve(): float("inf"), HERE: float("inf")}
            for _ in range(arguments.rounds):
                for checkout in best:
                    Path(folder, "out.safetensors").unlink(missing_ok=True)
                    best[checkout] = min(best[checkout], seconds(checkout, code, *more))
            before, now = best.values()
            print(f"| {name} | {before:.2f} s | {now:.2f} s | {now / before:.2f} |", flush=True)


if __name__ == "__main__":
    main()
