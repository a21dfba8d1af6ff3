"""SIGKILL at random moments: nothing is lost, nothing is done twice, and the bytes are those of a run left alone."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cli_files import World, make_world, run, start

CHAINS, KILLS_PER_CHAIN = 2, 10


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


def lines(path):
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def kill_until_done(world: World, out, generator: random.Random) -> int:
    """Start, kill, start again, with the kills spread over the whole run; at last let it end. Returns the kills."""
    records = out / "finished.records"
    kills = 0
    while kills < KILLS_PER_CHAIN:
        process = start(world.evaluate(out))
        before = len(lines(records))
        # Every third is killed at any moment of the start, the others as soon as one more image is finished or a
        # little later: while the next one is computed, written or synced.
        if kills % 3 == 2:
            time.sleep(generator.uniform(0, 4))
        else:
            while process.poll() is None and len(lines(records)) == before:
                time.sleep(0.002)
            time.sleep(generator.uniform(0, 0.05))
        finished = process.poll() is not None
        process.kill()
        _, stderr = process.communicate()
        if finished:
            assert process.returncode == 0, stderr
            return kills
        kills += 1
        # What was whole before is still there, byte for byte; at most the end of the file is torn.
        whole = [line for line in lines(records) if line.endswith(b"\n")]
        ids = [json.loads(line[9:])["image_id"] for line in whole]
        assert len(ids) == len(set(ids)) and len(whole) >= before - 1
        assert not list(out.glob("*.part")) and not (out / "metrics.json").exists()
    run(world.evaluate(out))
    return kills


def test_killed_at_random_moments(world, tmp_path):
    reference = tmp_path / "left alone"
    run(world.evaluate(reference))
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill seed {seed}")
    folders = [tmp_path / f"killed {chain}" for chain in range(CHAINS)]
    with ThreadPoolExecutor(CHAINS) as pool:
        jobs = [pool.submit(kill_until_done, world, out, random.Random(seed + i)) for i, out in enumerate(folders)]
        kills = sum(job.result() for job in jobs)
    print(f"{kills} kills")
    expected = sorted(json.loads(line[9:])["image_id"] for line in lines(reference / "finished.records"))
    for out in folders:
        for name in ("results.json", "metrics.json"):
            assert (out / name).read_bytes() == (reference / name).read_bytes()
        assert sorted(json.loads(line[9:])["image_id"] for line in lines(out / "finished.records")) == expected
        assert not list(out.glob(".ntt-*"))
    assert len(expected) == 20
    # A process can be quick enough to end between two looks at its records; most must have been killed.
    assert kills >= CHAINS * KILLS_PER_CHAIN // 2
