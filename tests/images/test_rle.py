"""Run-length encodings against pycocotools and against the plain definition."""

import warnings
from typing import Any

import numpy as np
import pytest
from coco_files import box_mask, check_message
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from ntt_jax.errors import InputError
from ntt_jax.images.rle import decode_rle, encode_masks, rle_areas, rle_boxes, sample_rle, segmentation_to_rle

mask_api: Any = mask


def random_masks(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Masks of every density, blocky and scattered, with empty and full ones among them."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n, height, width)) < rng.random((n, 1, 1))
    masks[::3] = np.repeat(masks[::3, ::2, :], 2, axis=1)[:, :height]
    masks[0], masks[-1] = False, True
    return masks


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (37, 64), (200, 300)])
def test_encoding_equals_pycocotools(shape: tuple[int, int]) -> None:
    masks = random_masks(8, *shape, seed=1)
    rles = encode_masks(masks)
    theirs = mask_api.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    assert [rle["counts"] for rle in rles] == [rle["counts"].decode() for rle in theirs]
    assert all(rle["size"] == list(shape) for rle in rles)
    for one, rle in zip(masks, rles, strict=True):
        np.testing.assert_array_equal(decode_rle(rle), one)
        assert decode_rle(rle).flags.c_contiguous and decode_rle(rle).dtype == np.bool_
    np.testing.assert_array_equal(rle_areas(rles), masks.sum((1, 2)))


def test_decoding_equals_pycocotools() -> None:
    for seed in range(50):
        for rle in encode_masks(random_masks(3, 40, 31, seed)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' decode under numpy 2
                theirs = mask_api.decode(rle)
            np.testing.assert_array_equal(decode_rle(rle), theirs.astype(np.bool_))


def test_list_rle_equals_compressed() -> None:
    for one in random_masks(6, 30, 20, seed=3):
        flat = one.T.reshape(-1)
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        runs = [0, *runs] if flat[0] else runs
        rle = segmentation_to_rle({"size": [30, 20], "counts": runs}, 30, 20, "here")
        assert rle == encode_masks(one[None])[0]


def test_any_number_of_masks() -> None:
    # 256 is where pycocotools' own area fails under numpy 2.
    masks = np.ones((300, 4, 5), np.bool_)
    assert rle_areas(encode_masks(masks)).tolist() == [20] * 300
    assert rle_boxes(encode_masks(masks)).tolist() == [[0, 0, 5, 4]] * 300
    assert encode_masks(np.zeros((0, 4, 5), np.bool_)) == []
    assert rle_areas([]).shape == (0,) and rle_boxes([]).shape == (0, 4)


def test_boxes() -> None:
    rles = encode_masks(np.stack([box_mask(50, 60, 3, 7, 11, 13), box_mask(50, 60, 0, 0, 60, 50)]))
    assert rle_boxes(rles).tolist() == [[3, 7, 11, 13], [0, 0, 60, 50]]


def test_polygons_are_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        polygons = [rng.uniform(-20, 120, 2 * n).tolist() for n in (3, 7)]
        theirs = mask_api.merge(mask_api.frPyObjects(polygons, 80, 100))
        assert segmentation_to_rle(polygons, 80, 100, "here")["counts"] == theirs["counts"].decode()


def test_one_polygon_of_two_points_is_no_box() -> None:
    # pycocotools would read four numbers as x, y, width, height.
    with pytest.raises(InputError, match="three points"):
        segmentation_to_rle([[1, 2, 3, 4]], 10, 10, "here")


def test_long_polygons_up_to_the_limit() -> None:
    rle = segmentation_to_rle([[-1e6 + 20, -10, 10, -10, 10, 20], [0, 0, 999_980, 9, 9, 9]], 50, 60, "here")
    assert rle["size"] == [50, 60]
    with pytest.raises(InputError, match="over the limit"):
        segmentation_to_rle([[-1e6, -10, 10, -10, 10, 20], [0, 0, 1e6, 9, 9, 9]], 50, 60, "here")


@pytest.mark.parametrize("masks", [np.zeros((2, 3, 4), np.uint8), np.zeros((3, 4), np.bool_)])
def test_encoding_refuses_other_arrays(masks: np.ndarray) -> None:
    with pytest.raises(InputError, match="bool \\[n, H, W\\]"):
        encode_masks(masks)


def test_decoding_refuses_unsound_text() -> None:
    for counts in ("", "0", "P", "\x7f", "d"):
        with pytest.raises(InputError):
            decode_rle({"size": [10, 10], "counts": counts})


compressed_text = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    st.one_of(
        st.fixed_dictionaries({"size": st.just([5, 4]), "counts": compressed_text}),
        st.fixed_dictionaries({"size": st.just([5, 4]), "counts": st.lists(st.integers(-2, 21), max_size=6)}),
        st.lists(st.lists(st.floats(-100, 100) | st.integers(-5, 10), max_size=8), max_size=3),
    )
)
def test_unsound_segmentations_only_raise_input_errors(segmentation: Any) -> None:
    try:
        mask = decode_rle(segmentation_to_rle(segmentation, 5, 4, "here"))
        assert mask.shape == (5, 4)
    except InputError as error:
        check_message(error, "here")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), st.integers(0, 63))
def test_spoiled_text_is_refused_or_sound(seed: int, code: int) -> None:
    """One character changed: either the runs no longer fill the image, or the text is that of another mask."""
    rng = np.random.default_rng(seed)
    counts = list(encode_masks(random_masks(3, 12, 9, seed)[1:2])[0]["counts"])
    counts[rng.integers(len(counts))] = chr(48 + code)
    try:
        rle = segmentation_to_rle({"size": [12, 9], "counts": "".join(counts)}, 12, 9, "here")
    except InputError:
        return
    assert rle_areas([rle])[0] == decode_rle(rle).sum()


def test_sample_rle():
    masks = np.random.default_rng(5).random((3, 60, 80)) > 0.5
    for full, rle in zip(masks, encode_masks(masks), strict=True):
        assert sample_rle(rle, 60, 80) == rle
        np.testing.assert_array_equal(decode_rle(sample_rle(rle, 30, 40)), full[1::2, 1::2])
        np.testing.assert_array_equal(decode_rle(sample_rle(rle, 20, 16)), full[1::3, 2::5])
        np.testing.assert_array_equal(decode_rle(sample_rle(rle, 120, 80)), np.repeat(full, 2, axis=0))
    with pytest.raises(InputError):
        sample_rle({"size": [60, 80], "counts": "11"}, 30, 40)
