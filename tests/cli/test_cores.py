"""How the command line divides a CPU: in processes of their own, because JAX divides it only once."""

import os
import subprocess
import sys

import pytest

START = """
import argparse
from ntt_jax.cli import options
from ntt_jax.compiled.devices import core_devices
args = argparse.Namespace(compilation_cache="off", devices={devices}, cores={cores})
devices = options.start_jax(args)
cores = core_devices()
print(len(devices), None if cores is None else len(cores))
"""


def started(devices: int | None, cores: int | None, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, "-c", START.format(devices=devices, cores=cores)],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_every_core_shares_the_points():
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert started(None, None) == (f"1 {available}" if available > 1 else "1 None")


@pytest.mark.parametrize(("cores", "wanted"), [(1, "1 None"), (3, "1 3")])
def test_as_many_cores_as_asked_for(cores, wanted):
    assert started(None, cores) == wanted


@pytest.mark.parametrize(
    "environment", [{"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, {"JAX_NUM_CPU_DEVICES": "4"}]
)
def test_devices_set_by_the_user_divide_the_images(environment):
    assert started(None, None, **environment) == "4 None"
