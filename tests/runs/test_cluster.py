"""`--ray` on a real cluster of two nodes on this machine: the bytes of one process, whatever dies."""

import os
import signal
import subprocess
import sys
import time

import pytest
from cli_files import arguments, make_world

from ntt_jax import runs
from ntt_jax.cli import main
from ntt_jax.errors import InputError

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def cluster():
    """Two nodes: one keeps the cluster and one worker, the other one more worker. All of it ends with the module."""
    from ray.cluster_utils import Cluster

    support = os.path.dirname(os.path.abspath(sys.modules["cli_files"].__file__ or ""))
    root = os.path.abspath(os.path.join(os.path.dirname(runs.__file__), "..", ".."))
    os.environ["PYTHONPATH"] = os.pathsep.join([root, support, os.environ.get("PYTHONPATH", "")])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        yield made
    finally:
        if ray.is_initialized():
            ray.shutdown()
        made.shutdown()


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
    """Processes of ours that run models."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if "ray::MapWorker" in " ".join(process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


def wait_for_records(out, process, count):
    path = out / "finished.records"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_a_memory_is_that_of_one_process(world, cluster, tmp_path):
    options = {"dinov2": world.dinov2, "annotations": world.train, "images": world.images}
    options |= {"references": world.references, "compilation_cache": world.cache}
    for name, ray_ in (("alone", None), ("together", cluster.address)):
        made = options | {"out": tmp_path / f"{name}.safetensors", "ray": ray_}
        assert main(["memory", *arguments(made)]) == 0
    assert (tmp_path / "alone.safetensors").read_bytes() == (tmp_path / "together.safetensors").read_bytes()


def test_workers_nodes_and_the_driver_die(world, cluster, alone, tmp_path):
    """A worker is killed, then its node goes and another comes; the driver is killed and started again."""
    out = tmp_path / "run"
    out.mkdir()
    first = start(world, out, cluster.address)
    try:
        wait_for_records(out, first, 2)
        first.kill()  # SIGKILL
        first.wait()
        kept = (out / "finished.records").read_bytes()
        second = start(world, out, cluster.address)
        try:
            wait_for_records(out, second, kept.count(b"\n") + 2)
            for pid in workers()[:1]:
                os.kill(pid, signal.SIGKILL)
            lost = next(node for node in cluster.worker_nodes)
            cluster.remove_node(lost, allow_graceful=False)
            cluster.add_node(num_cpus=1)
            text, _ = second.communicate(timeout=240)
            assert second.returncode == 0, text
        finally:
            second.kill()
    finally:
        first.kill()
    assert (out / "finished.records").read_bytes().startswith(kept)
    assert_same(out, alone)


def test_a_worker_that_cannot_load_the_models(world, cluster, tmp_path):
    files = {"sam2": world.dinov2, "dinov2": world.dinov2, "memory": world.memory}
    compute = runs.Compute(ray=cluster.address)
    with pytest.raises(InputError, match=r"--ray: a worker on .*tiny_dinov2") as caught:
        runs.evaluate(tmp_path, **files, annotations=world.val, images=world.images, compute=compute)
    assert "\n" not in str(caught.value)


def test_without_ray(world, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from ntt_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = world.evaluate(tmp_path / "run", devices=None, cores=1, ray="local")
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'ntt-jax[ray]'" in done.stderr.splitlines()[-1]
