"""2,000 images in one process: memory does not grow and the speed stays. Run with -m large -s to see the numbers."""

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cli_files import CLASSES, make_world, start
from PIL import Image

IMAGES, QUARTER = 2000, 500


def resident(pid):
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def finished(records):
    """Records in the file so far."""
    return records.read_bytes().count(b"\n") if records.exists() else 0


@pytest.mark.large
def test_memory_and_speed_stay(tmp_path_factory, tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    world = make_world(tmp_path_factory.getbasetemp())
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    entries = []
    for index in range(IMAGES):
        height, width = generator.integers(40, 160, 2).tolist()
        picture = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        name = f"{index:04}.png"
        Image.fromarray(picture).resize((width, height)).save(tmp_path / "images" / name)
        entries.append({"id": index + 1, "file_name": name, "height": height, "width": width})
    annotations = tmp_path / "annotations.json"
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    annotations.write_text(json.dumps({"images": entries, "annotations": [], "categories": categories}))

    out = tmp_path / "run"
    process = start(world.evaluate(out, annotations=annotations, images=tmp_path / "images"))
    marks = []  # when an end of a quarter was seen: time, images, memory; the first when the compiling is over
    for until in (20, *(QUARTER * n - 10 for n in range(1, 5))):  # a little before the end, which the process outlives
        while (count := finished(out / "finished.records")) < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        marks.append((time.monotonic(), count, resident(process.pid)))
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    speeds = []
    for (then, done, _), (now, count, memory) in pairwise(marks):
        speeds.append((count - done) / (now - then))
        print(f"{count} images: {memory:.0f} MiB, {speeds[-1]:.1f} images/s")
    memories = [memory for _, _, memory in marks[1:]]
    assert memories[-1] < 1.05 * memories[0] + 10, "memory has grown"
    assert min(speeds) > 0.7 * max(speeds), "the speed has changed"
