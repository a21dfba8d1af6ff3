"""Settings, crops and measured masks of the generator of everything. That it equals Meta's: test_metas_generator.py."""

import cli_files
import numpy as np
import pytest
import sam2_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import ntt_jax
from ntt_jax.cli import main
from ntt_jax.errors import InputError
from ntt_jax.everything.found import FoundMasks
from ntt_jax.everything.generator import box_nms, measure_mask
from ntt_jax.everything.settings import Crop, MaskSettings, crops_of
from ntt_jax.images.resize import resize_host
from ntt_jax.images.rle import decode_rle


@pytest.fixture(scope="module")
def found():
    model = sam2_weights.recipe_model(cli_files.SAM2, 3)
    image = cli_files.scene(np.random.default_rng(4), 90)[0]
    loose = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1}
    return ntt_jax.generate_masks(model, image, points_per_side=3, **loose)


def test_masks_boxes_and_areas_belong_together(found):
    assert isinstance(found, FoundMasks) and len(found) == 27
    assert (np.diff(found.predicted_ious) <= 0).all()
    for mask, box, area in zip(found.masks, found.boxes, found.areas, strict=True):
        y, x = np.nonzero(mask)
        assert area == mask.sum() and tuple(box) == ((x.min(), y.min(), x.max(), y.max()) if area else (0, 0, 0, 0))
    entries = found.to_coco(7)
    assert len(entries) == len(found) and {entry["category_id"] for entry in entries} == {1}
    as_sam = found.to_sam()
    assert [one["bbox"] for one in as_sam] == [entry["bbox"] for entry in entries]
    assert [one["area"] for one in as_sam] == found.areas.tolist()


def test_supervision_takes_them(found):
    pytest.importorskip("supervision")
    assert len(found.to_supervision()) == len(found)


@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_mask_is_measured_as_if_all_of_it_had_been_made(seed, offset):
    generator = np.random.default_rng(seed)
    height, width = (int(v) for v in generator.integers(1, 60, 2))
    left, top = int(generator.integers(width)), int(generator.integers(height))
    right, bottom = (int(generator.integers(low + 1, high + 1)) for low, high in ((left, width), (top, height)))
    logits = (generator.normal(-2, 3, (16, 16)) - 20 * (generator.random((16, 16)) < 0.5)).astype(np.float32)
    one = measure_mask(logits, crop=Crop(left, top, right, bottom, 1), height=height, width=width, offset=offset)
    full = resize_host(logits, (bottom - top, right - left), "bilinear")
    expected = np.zeros((height, width), np.bool_)
    expected[top:bottom, left:right] = full > 0
    clear = np.ones_like(expected)
    clear[top:bottom, left:right] = np.abs(full) > 1e-4
    np.testing.assert_array_equal((decode_rle(one.rle) == expected) | ~clear, True)
    if (np.abs(np.abs(full) - offset) > 1e-4).all():
        assert one.stability == pytest.approx((full > offset).sum() / max(1, (full > -offset).sum()))


def test_layers_of_crops_cover_the_image():
    crops = crops_of(300, 401, MaskSettings(crop_n_layers=2))
    assert [crop.layer for crop in crops] == [0] + [1] * 4 + [2] * 16
    for layer in (1, 2):
        seen = np.zeros((300, 401), np.int32)
        for crop in crops:
            if crop.layer == layer:
                seen[crop.top : crop.bottom, crop.left : crop.right] += 1
        assert seen.min() == 1 and seen.max() == 4


def test_nms_keeps_the_best_and_those_at_the_threshold():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 9], [50, 50, 50, 50], [50, 50, 50, 50]])
    assert box_nms(boxes, np.array([0.5, 0.4, 0.9, 0.1, 0.1]), 0.5).tolist() == [2, 3, 4]
    assert box_nms(boxes[:2], np.array([0.9, 0.4]), 0.5).tolist() == [0, 1]
    assert box_nms(boxes[:2], np.array([0.4, 0.9]), 0.49).tolist() == [1]


@pytest.mark.parametrize(
    "bad",
    [
        {"points_per_side": 0},
        {"pred_iou_thresh": 2},
        {"crop_n_layers": 2, "points_per_side": 3, "crop_n_points_downscale_factor": 2},
    ],
)
def test_settings_check_themselves(bad):
    with pytest.raises(InputError):
        MaskSettings(**bad)


def test_what_is_no_setting_image_or_model_is_said(found):
    model = sam2_weights.recipe_model(cli_files.SAM2, 3)
    for image, changes, said in (
        (np.zeros((4, 4), np.uint8), {}, "uint8"),
        (np.zeros((4, 4, 3), np.uint8), {"points": 3}, "unknown setting 'points'"),
    ):
        with pytest.raises(InputError, match=said):
            ntt_jax.generate_masks(model, image, **changes)
    with pytest.raises(InputError, match="expected a Sam2"):
        ntt_jax.generate_masks("sam2", np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--everything --memory a.png", "--memory does not go with --everything"),
        ("--everything --tiles 2", "--tiles does not go with --everything"),
        ("--crop-n-layers 1 --memory a.png", "--crop-n-layers is for --everything"),
        ("--everything --crop-n-layers 9", "--crop-n-layers"),
    ],
)
def test_options_that_cannot_work_are_one_line_and_status_2(line, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    assert main(["segment", "a.png", "--out", "out", "--sam2", "a.png", "--dinov2", "a.png", *line.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error, error


def test_an_empty_mask_lies_in_the_corner_of_its_crop():
    """As with Meta's generator, also where logits come near 0 elsewhere."""
    logits = np.full((8, 8), -4.0, np.float32)
    logits[5:7, 4:6] = -0.2
    measured = measure_mask(logits, crop=Crop(10, 20, 42, 44, 1), height=60, width=80, offset=1.0)
    assert measured.box == (10, 20, 10, 20) and measured.stability == 0 and not decode_rle(measured.rle).any()
