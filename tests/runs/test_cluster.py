"""`--ray` on a real cluster of two nodes on this machine: the bytes of one process, whatever dies."""

import builtins
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cli_files
import cluster_work
import jax
import numpy as np
import pytest
from cli_files import arguments, make_world, write_scenes
from image_server import ImageServer

from ntt_jax import runs
from ntt_jax.cli import main
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.images.remote import location
from ntt_jax.memory.bank import load_memory, save_memory
from ntt_jax.runs import cluster as cluster_module
from ntt_jax.runs import cluster_head, cluster_pool
from ntt_jax.runs.cluster import map_groups
from ntt_jax.runs.cluster_head import Head
from ntt_jax.runs.segment_job import segment

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

POISON = "poison.png"
PRINT = builtins.print
STORE = 100 * 2**20


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", autouse=True)
def compiled_once(world):
    """What one process has compiled, workers among them, the others find."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    world.cache.mkdir(mode=0o700, exist_ok=True)
    for name, value in zip(names, (str(world.cache), 0.1), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes: one keeps the cluster and one worker, the other one more worker. All of it ends with the module."""
    from ray.cluster_utils import Cluster

    support = Path(cli_files.__file__).resolve().parent
    root = Path(runs.__file__).resolve().parents[2]
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(root), str(support), str(support / "poison"), os.environ.get("PYTHONPATH", "")]
    )
    # No worker is started before one is asked for: starting one takes seconds of a core.
    os.environ |= {"RAY_enable_worker_prestart": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.add_node(num_cpus=1, object_store_memory=STORE)
        yield made
    finally:
        if ray.is_initialized():
            ray.shutdown()
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone")
    assert main(world.evaluate(out, devices=None, cores=1, batch_size=2)) == 0
    return out


def start(world, out, address):
    command = world.evaluate(out, devices=None, cores=1, batch_size=2, ray=address)
    line = [sys.executable, "-m", "ntt_jax.cli", *command]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_same(out, alone):
    for name in ("results.json", "metrics.json"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()


def workers():
    """Processes that run models, of this cluster: somebody else may have one on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ray::GroupWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def wait_for_records(out, running, count):
    path, deadline = out / "finished.records", time.monotonic() + 240
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert running() and time.monotonic() < deadline
        time.sleep(0.05)


def records(out):
    lines = (out / "finished.records").read_bytes().splitlines()
    return {record["image_id"]: record for record in (json.loads(line.split(b" ", 1)[1]) for line in lines)}


@pytest.fixture(scope="module")
def elsewhere(world):
    """The images on a web server."""
    pytest.importorskip("aiohttp")
    with ImageServer(world.images) as server:
        yield server.url


def test_a_memory_is_that_of_one_process(world, cluster, elsewhere, tmp_path):
    options = {"dinov2": world.dinov2, "annotations": world.train}
    options |= {"references": world.references, "compilation_cache": world.cache}
    for name, ray_, images in (("alone", None, world.images), ("together", cluster.address, elsewhere)):
        made = options | {"out": tmp_path / f"{name}.safetensors", "ray": ray_, "images": images}
        assert main(["memory", *arguments(made)]) == 0
    assert (tmp_path / "alone.safetensors").read_bytes() == (tmp_path / "together.safetensors").read_bytes()


def test_photos_are_segmented_as_by_one_process(world, cluster, elsewhere, tmp_path):
    photos = sorted(world.images.glob("scene2_00[0-3].png"))
    there = [location(elsewhere) / photo.name for photo in photos]
    files = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory}
    for name, address, given in (("alone", None, photos), ("together", cluster.address, there)):
        compute, config = runs.Compute(ray=address), DetectConfig(points_per_side=4)
        found = segment(tmp_path / name, given, **files, score_threshold=0.0, config=config, compute=compute)
        assert len(found["images"]) == 4 and found["annotations"]
    for file in ("detections.json", f"overlays/{photos[0].name}"):
        made = [(tmp_path / name / file).read_bytes() for name in ("alone", "together")]
        assert made[0] == made[1]


def test_boxes_rules_and_negatives_are_those_of_one_process(world, cluster, tmp_path):
    """What a worker is sent beside models and images. Every option by itself: scripts/ray_options.py."""
    given = {"devices": None, "cores": 1, "batch_size": 2, "proposals_mode": "join"}
    given |= {name: tmp_path / f"{name}.json" for name in ("proposals", "method")} | {
        "memory": tmp_path / "n.safetensors"
    }
    bank = load_memory(world.memory)
    # The other class of each as its hard negative.
    negatives = np.roll(np.asarray(bank.memory.prototypes), 1, axis=0)[:, None]
    save_memory(
        given["memory"], dataclasses.replace(bank, memory=dataclasses.replace(bank.memory, negatives=negatives))
    )
    rules = {"merge": "diffusion", "iou_power": 0.5, "class_thresholds": [0.0, 0.1, 0.2]}
    given["method"].write_text(json.dumps(rules))
    objects = json.loads(world.val.read_text())["annotations"]
    boxes = [{"image_id": one["image_id"], "bbox": one["bbox"], "score": 1} for one in objects]
    given["proposals"].write_text(json.dumps(boxes))
    # A process of its own: this one has eight devices, whose sums of matrices differ in the last bit.
    line = [sys.executable, "-m", "ntt_jax.cli", *world.evaluate(tmp_path / "alone", **given)]
    subprocess.run(line, check=True, capture_output=True)
    assert main(world.evaluate(tmp_path / "together", **given, ray=cluster.address)) == 0
    assert_same(tmp_path / "together", tmp_path / "alone")
    assert json.loads((tmp_path / "together" / "metrics.json").read_text())["detections"]


def test_workers_nodes_and_the_driver_die(world, cluster, elsewhere, alone, tmp_path):
    """A worker is killed, then its node goes and another comes; the driver is killed and started again, now with the
    images elsewhere."""
    out = tmp_path / "run"
    out.mkdir()
    first = start(world, out, cluster.address)
    try:
        wait_for_records(out, lambda: first.poll() is None, 2)
        first.kill()  # SIGKILL
        first.communicate()
        kept = (out / "finished.records").read_bytes()
    finally:
        first.kill()

    def go_on():
        files = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory}
        files |= {"annotations": world.val, "images": location(elsewhere)}
        compute = runs.Compute(batch_size=2, ray=cluster.address)
        done.append(runs.evaluate(out, **files, config=DetectConfig(points_per_side=4), compute=compute))

    done: list[dict] = []
    second = threading.Thread(target=go_on)  # a node can be added by the main thread alone
    second.start()
    try:
        wait_for_records(out, second.is_alive, kept.count(b"\n") + 2)
        for pid in workers()[:1]:
            os.kill(pid, signal.SIGKILL)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    finally:
        second.join()
    assert done
    assert (out / "finished.records").read_bytes().startswith(kept)
    assert_same(out, alone)


def test_an_image_that_kills_its_reader(world, cluster, tmp_path):
    """It is named and counted; the others of its group are as with any image that cannot be read."""
    annotations = write_scenes(tmp_path, 4, 7)
    content = json.loads(annotations.read_text())
    (tmp_path / "images" / content["images"][1]["file_name"]).rename(tmp_path / "images" / POISON)
    content["images"][1]["file_name"] = POISON
    annotations.write_text(json.dumps(content))
    files = {"sam2": world.sam2, "dinov2": world.dinov2, "memory": world.memory}
    files |= {"annotations": annotations, "images": tmp_path / "images", "config": DetectConfig(points_per_side=4)}
    compute = runs.Compute(batch_size=2, ray=cluster.address)
    out, plain = tmp_path / "out", tmp_path / "plain"
    read_here = []
    sys.addaudithook(
        lambda event, given: event == "open" and str(given[0]).endswith(POISON) and read_here.append(given)
    )
    metrics = runs.evaluate(out, **files, compute=compute)
    assert [entry["file_name"] for entry in metrics["skipped"]] == [POISON]
    assert "a process that reads it ends with SIGSEGV" in metrics["skipped"][0]["reason"]
    # The same command again does not read it in its own process to see whether it can be read by now.
    assert runs.evaluate(out, **files, compute=compute)["skipped"] == metrics["skipped"]
    assert not read_here

    (tmp_path / "images" / POISON).rename(tmp_path / "kept.png")
    runs.evaluate(plain, **files, compute=runs.Compute(batch_size=2))
    poisoned = content["images"][1]["id"]
    found, expected = records(out), records(plain)
    assert {id for id in found if id != poisoned} == {id for id in expected if id != poisoned}
    assert all(found[id] == expected[id] for id in found if id != poisoned)


def test_work_that_no_worker_survives(cluster, monkeypatch):
    """It is given up after a bounded number of deaths; all else is done."""
    monkeypatch.setattr(cluster_pool, "MAX_DEATHS", 2)
    groups = [[0, 1], [2], [-3], [4]]
    records = [record for some in map_groups(cluster_work.Numbers(), groups, compute(cluster)) for record in some]
    assert sorted(record["number"] for record in records) == [-3, 0, 1, 2, 4]
    (skipped,) = (record for record in records if "skipped" in record)
    assert skipped["number"] == -3 and "2 workers ended" in skipped["skipped"]
    assert builtins.print is PRINT  # Ray tells of a death through a `print` of its own, which the program must not get


def test_a_worker_that_hangs_and_a_node_that_joins_late(cluster, monkeypatch):
    """The one is ended, and its groups done again; the other is used."""
    monkeypatch.setattr(cluster_pool, "MAX_SILENT", 5)
    monkeypatch.setattr(cluster_pool, "_ASK_EVERY", 1)
    work, numbers = cluster_work.Numbers(seconds=0.05), [[number] for number in range(2000)]
    results, late, nodes, hung = map_groups(work, numbers, compute(cluster)), None, set(), 0
    try:
        for records in results:
            if late is None:
                hung = workers()[0]
                os.kill(hung, signal.SIGSTOP)
                late = cluster.add_node(num_cpus=1, object_store_memory=STORE)
            nodes |= {record["node"] for record in records}
            if late.node_id in nodes and hung not in workers():
                break
    finally:
        results.close()
        if hung in workers():
            os.kill(hung, signal.SIGKILL)
        if late is not None:
            cluster.remove_node(late)
    assert late.node_id in nodes and hung not in workers()


def test_a_head_that_does_not_answer(cluster, monkeypatch):
    """The workers go on for a while, in case it comes back; then one line."""
    monkeypatch.setattr(cluster_head, "NO_ANSWER", 0.5)
    monkeypatch.setitem(cluster_module._process, "lost", False)
    results = map_groups(cluster_work.Numbers(seconds=0.05), [[number] for number in range(2000)], compute(cluster))
    next(results)
    done = 0
    with silent_server() as at:
        monkeypatch.setattr(cluster_head, "_AGAIN_WITHIN", 0.2)
        monkeypatch.setattr(Head, "_at", property(lambda head: at), raising=False)
        with pytest.raises(InputError, match="the head of the cluster has not answered") as caught:
            for records in results:
                done += len(records)
    assert done and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="start the program again"):
        next(map_groups(cluster_work.Numbers(), [[1]], compute(cluster)))
    ray.shutdown()  # of a head that is there after all


def test_workers_that_die_as_they_begin(cluster, monkeypatch):
    monkeypatch.setattr(cluster_pool, "MAX_FAILED_STARTS", 2)
    with pytest.raises(InputError, match="workers in a row ended while they loaded the models") as caught:
        list(map_groups(cluster_work.Numbers(ends=True), [[1], [2]], compute(cluster)))
    assert "\n" not in str(caught.value)


def test_a_worker_that_cannot_load_the_models(world, cluster, tmp_path):
    files = {"sam2": world.dinov2, "dinov2": world.dinov2, "memory": world.memory}
    with pytest.raises(InputError, match=r"--ray: a worker on .*tiny_dinov2") as caught:
        runs.evaluate(tmp_path, **files, annotations=world.val, images=world.images, compute=compute(cluster))
    assert "\n" not in str(caught.value)


def test_more_cores_than_any_machine_has(cluster):
    asked = runs.Compute(ray=cluster.address, devices=tuple(jax.local_devices()[:2]), divide="points")
    with pytest.raises(
        InputError, match="a worker needs 2 cores and no machine of the cluster has more than 1; --cores"
    ):
        next(map_groups(cluster_work.Numbers(), [[1]], asked))


def compute(cluster):
    return runs.Compute(ray=cluster.address)


def test_no_cluster_at_the_address(world, tmp_path, capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        started = time.monotonic()
        assert main(world.evaluate(tmp_path, devices=None, cores=1, ray=address)) == 2
        assert time.monotonic() - started < 30  # Ray itself asks for minutes
    assert f"no cluster at '{address}'" in capsys.readouterr().err.splitlines()[-1]


@contextlib.contextmanager
def silent_server(answer=b""):
    """Accepts connections, and sends one thing or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(answer)
                    kept.append(connection)

        kept, thread = [], threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


@pytest.mark.parametrize(
    ("answer", "said"), [(b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is not Ray")]
)
def test_what_listens_is_not_ray(monkeypatch, answer, said):
    """Ray itself would ask for minutes."""
    monkeypatch.setattr(cluster_module, "REACHED_WITHIN", 0.3)
    with silent_server(answer) as (host, port), pytest.raises(InputError, match=said) as caught:
        list(map_groups(cluster_work.Numbers(), [[1]], runs.Compute(ray=f"{host}:{port}")))
    assert f"no cluster at '{host}:{port}'" in str(caught.value) and "\n" not in str(caught.value)


def test_without_ray(world, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from ntt_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = world.evaluate(tmp_path / "run", devices=None, cores=1, ray="local")
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'ntt-jax[ray]'" in done.stderr.splitlines()[-1]
