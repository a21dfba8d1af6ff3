"""Which devices a pass works on: in processes of their own, because JAX counts them only once."""

import os
import subprocess
import sys

import jax
import pytest

from ntt_jax.compiled.devices import choose_devices
from ntt_jax.errors import InputError


def run(script: str, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a program that finds three cores."""
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    start = "import ntt_jax\nfrom ntt_jax.compiled import devices as d\nd.available_cores = lambda: 3\n"
    done = subprocess.run(
        [sys.executable, "-c", start + script],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr.strip()


CHOSEN = """
chosen, divide = d.choose_devices(None, None)
print(len(chosen), divide)
"""


def test_all_cores_divide_the_points():
    out, error = run(
        "print(ntt_jax.use_all_cores(), ntt_jax.use_all_cores())"
        + CHOSEN
        + "print(d.choose_devices(None, 'images')[1])"
    )
    assert out.split("\n") == ["3 3", "3 points", "images"] and not error


def test_one_line_once_where_it_could_be_quicker():
    out, error = run(2 * CHOSEN + "d.choose_devices(d.choose_devices(None, None)[0], None)")
    assert out.split("\n") == ["1 points"] * 2
    assert error.count("\n") == 0 and "all 3 cores" in error and "use_all_cores()" in error


def test_too_late():
    script = "import jax; jax.numpy.ones(1)\ntry: ntt_jax.use_all_cores()\nexcept ntt_jax.InputError as e: print(e)"
    assert "JAX has started already; call it first" in run(script + CHOSEN)[0]


def test_devices_that_are_set_are_left_as_they_are():
    out, error = run("print(ntt_jax.use_all_cores())" + CHOSEN, JAX_NUM_CPU_DEVICES="2")
    assert out.split("\n") == ["2", "2 points"] and not error
    out, error = run(CHOSEN, JAX_NUM_CPU_DEVICES="2")
    assert out == "1 points" and not error


def test_what_devices_divide():
    two = jax.local_devices()[:2]
    assert choose_devices(two, None) == (two, "points")
    assert choose_devices(two, "images") == (two, "images")
    for devices, divide, said in [([], None, "devices"), ("cpu", None, "devices"), (two, "pixels", "divide")]:
        with pytest.raises(InputError, match=f"{said}: expected"):
            choose_devices(devices, divide)
