"""SIGKILL at random moments: nothing is lost, nothing is done twice, and the bytes are those of one process that was
left alone, on any number of devices."""

import json
import random
import time

import pytest
from cli_files import Starter, arguments, make_world

KILLS = 20


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    with Starter(tmp_path_factory.mktemp("starts")) as starter:
        yield starter


def run(world, out):
    """Arguments of `ntt-jax run`: sampling, memory and evaluation."""
    evaluate = world.evaluate(out, memory=None)[1:]
    return ["run", *evaluate, *arguments({"reference_annotations": world.train, "classes": "all", "shots": 2})]


@pytest.fixture(scope="module")
def reference(world, start, tmp_path_factory):
    """A `run` left alone; the memory it made, evaluated again; how long that takes when nothing is compiled."""
    whole, out = tmp_path_factory.mktemp("left alone"), tmp_path_factory.mktemp("again")
    first = start(run(world, whole))
    assert first.wait() == 0, first.text()
    before = time.monotonic()
    second = start(world.evaluate(out, memory=whole / "memory.safetensors"))
    assert second.wait() == 0, second.text()
    seconds = time.monotonic() - before
    assert_same(out, whole)
    return whole, seconds


@pytest.fixture
def generator():
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill seed {seed}")
    return random.Random(seed)


def finished(out):
    """Ids of the images in all record files of a run, and how many bytes of each file are whole."""
    ids, whole = [], {}
    for path in out.glob("finished*.records"):
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        ids += [json.loads(line[9:])["image_id"] for line in lines]
        whole[path] = b"".join(lines)
    return sorted(ids), whole


def assert_same(out, reference, names=("results.json", "metrics.json")):
    for name in names:
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    assert finished(out)[0] == finished(reference)[0]
    assert not list(out.glob(".*.tmp"))


def assert_nothing_lost(out, before):
    """What was whole before a kill is there still, and nothing is there twice."""
    ids, whole = finished(out)
    assert len(ids) == len(set(ids)) and not (out / "metrics.json").exists()
    for path, content in before[1].items():
        assert whole[path].startswith(content)


def test_killed_at_random_moments(world, start, reference, generator, tmp_path):
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        out = tmp_path / f"run {runs}"
        while True:
            before = finished(out)
            process = start(world.evaluate(out, memory=reference[0] / "memory.safetensors"))
            # At any moment of a run's life, from its start to a little beyond its end.
            deadline = time.monotonic() + generator.uniform(0, 1.1 * reference[1])
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            if process.poll() is None and kills < KILLS:
                process.kill()
                if process.poll() != 0:  # it was not just done
                    kills += 1
                    assert_nothing_lost(out, before)
                    continue
            assert process.wait() == 0, process.text()
            break
        assert_same(out, reference[0])
    print(f"{kills} kills in {runs} runs")


@pytest.mark.large
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_do_what_one_does(world, start, reference, tmp_path, devices):
    """20 images: 4 in the last step of 8 devices."""
    memory = reference[0] / "memory.safetensors"
    process = start(world.evaluate(tmp_path, memory=memory, devices=None), devices=devices)
    assert process.wait() == 0, process.text()
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert starts[0]["devices"] == devices  # all of them, by default
    assert_same(tmp_path, reference[0])
