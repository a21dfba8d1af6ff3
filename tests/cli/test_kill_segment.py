"""`segment` under SIGKILL at random moments, between photos and while it writes: the files of one left alone."""

import random
import shutil
import time

import pytest
from cli_files import Starter, arguments, make_world

from ntt_jax.cli import main

KILLS = 3


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


def command(world, photos, out, **more):
    files = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory, "out": out}
    options = {"points_per_side": 4, "devices": 1, "compilation_cache": world.cache, "score_threshold": 0}
    return ["segment", str(photos), *arguments(files | options | {"format": "labelme,csv"} | more)]


def contents(folder):
    """What is written, but for what says when, and the marks of work."""
    skipped = ("run.json", "lock", "finished.records")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in skipped]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_killed_at_random_moments(world, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill seed {seed}")
    generator = random.Random(seed)
    photos, alone = tmp_path / "photos", tmp_path / "alone"
    photos.mkdir()
    for path in sorted(world.images.glob("scene2_*"))[:4]:
        shutil.copy(path, photos)
    with Starter(tmp_path) as start:
        assert start(command(world, photos, alone)).wait() == 0  # compiles
        shutil.rmtree(alone)
        before = time.monotonic()
        left = start(command(world, photos, alone))
        assert left.wait() == 0, left.text()
        seconds = time.monotonic() - before
        kills = runs = 0
        while kills < KILLS:
            runs += 1
            out = photos / f"run {runs}" if runs % 2 else tmp_path / f"run {runs}"  # inside the photos, and beside them
            while True:
                process = start(command(world, photos, out))
                deadline = time.monotonic() + generator.uniform(0, 1.1 * seconds)
                while process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.002)
                if process.poll() is None and kills < KILLS:
                    process.kill()
                    if process.poll() != 0:
                        kills += 1
                        continue
                assert process.wait() == 0, process.text()
                break
            assert contents(out).keys() == contents(alone).keys()
            found = {name: data for name, data in contents(out).items() if not name.startswith(("labelme/", "formats"))}
            assert found == {name: data for name, data in contents(alone).items() if name in found}
            shutil.rmtree(out)
    print(f"{kills} kills in {runs} runs")


def test_another_threshold_class_and_format_of_the_same_records(world, tmp_path, capsys):
    out, photo = tmp_path / "found", sorted(world.images.glob("scene2_*"))[0]
    assert main(command(world, photo, out, format=None)) == 0
    records = (out / "finished.records").read_bytes()
    file = tmp_path / "thresholds.json"
    file.write_text('{"thresholds": {"square": 1, "disc": 1, "bar": 1.0}}')
    assert main(command(world, photo, out, format="yolo,png", thresholds=file)) == 0
    assert "0 detections" in capsys.readouterr().out
    assert (out / "yolo" / "data.yaml").exists() and (out / "png" / "classes.txt").exists()
    assert main(command(world, photo, out, format="csv", thresholds="square=0,disc=0,bar=0")) == 0
    assert len((out / "objects.csv").read_text().splitlines()) > 1
    assert (out / "finished.records").read_bytes() == records
    for more, said in (
        ({"thresholds": "squaer=0.5"}, "did you mean square?"),
        ({"thresholds": "square"}, "there is no file"),
    ):
        assert main(command(world, photo, out, **more)) == 2
        error = capsys.readouterr().err
        assert said in error and error.splitlines()[-1].startswith("ntt-jax: error: ")
