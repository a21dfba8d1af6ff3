"""`ntt_jax.config`: names of arithmetic, and the constants of the method."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntt_jax.config import DTYPES, DetectConfig, arithmetic
from ntt_jax.errors import InputError


@pytest.mark.parametrize("name", DTYPES)
def test_every_name_is_a_type_of_kernels_and_a_precision_of_products_that_jax_knows(name):
    kernels, precision = arithmetic(name)
    product = jax.jit(lambda x: x @ x).trace
    with jax.default_matmul_precision(precision):
        (equation,) = product(jnp.ones((2, 2), kernels)).jaxpr.eqns[-1:]
    wanted = {"float32": "HIGHEST", "bfloat16": "HIGHEST", "tensorfloat32": "HIGH"}[name]
    assert str(jnp.dtype(kernels)) == ("bfloat16" if name == "bfloat16" else "float32")
    assert wanted in str(equation.params["precision"])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("points_per_side", 4.5, "points_per_side: expected a whole number from 1 to 256, found 4.5"),
        ("points_per_side", True, "found True"),
        ("pred_iou_threshold", float("nan"), "pred_iou_threshold: expected a number from 0 to 1, found nan"),
        ("nms_iou_threshold", "0.5", "nms_iou_threshold: expected a number from 0 to 1, found '0.5'"),
        ("max_candidates", 0, "max_candidates: expected a whole number from 1"),
        ("max_detections", 801, "max_detections: expected at most max_candidates, 800, found 801"),
        ("classes_per_mask", 0, "classes_per_mask: expected a whole number from 1 to 65536 or -1, found 0"),
        ("negative_sigma", 0, "negative_sigma: expected a number above 0, found 0"),
        ("negative_sigma", float("inf"), "found inf"),
    ],
)
def test_a_configuration_checks_itself(name, value, said):
    with pytest.raises(InputError) as caught:
        DetectConfig(**{name: value})
    assert said in str(caught.value)
    with pytest.raises(InputError, match=name):
        dataclasses.replace(DetectConfig(), **{name: value})


def test_numbers_of_numpy_are_numbers():
    config = DetectConfig(points_per_side=np.int64(8), nms_iou_threshold=1, negative_sigma=np.float64(0.5))
    assert config == DetectConfig(points_per_side=8, nms_iou_threshold=1.0, negative_sigma=0.5)
    assert [type(value) for value in dataclasses.astuple(config)[:7]] == [int, float, float, int, int, int, float]


def test_equal_configurations_share_a_program():
    """They are static arguments: hashable, and compared by value."""
    traced = []

    @functools.partial(jax.jit, static_argnames="config")
    def run(x, config):
        traced.append(config)
        return x * config.max_detections

    run(1.0, DetectConfig(max_detections=3))
    run(2.0, DetectConfig(max_detections=np.int32(3)))
    run(2.0, DetectConfig(max_detections=4))
    assert len(traced) == 2


def test_a_method_file_is_a_configuration(tmp_path):
    path = tmp_path / "method.json"
    config = DetectConfig(nms_iou_threshold=1, iou_power=0.5, class_thresholds=(0.25, 0.5), points_per_side=16)
    path.write_text(json.dumps(config.changes()))
    assert DetectConfig.from_file(path) == config
    assert sorted(config.changes()) == ["class_thresholds", "iou_power", "nms_iou_threshold", "points_per_side"]
    assert DetectConfig().changes() == {}
    for text, said in (
        ('{"iou": 1}', "unknown constant 'iou'"),
        ("[]", "JSON object"),
        ('{"iou_power": -1}', "iou_power"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"method\.json: .*" + said):
            DetectConfig.from_file(path)
