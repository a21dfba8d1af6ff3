"""A small valid COCO document, and ways to spoil it."""

import copy
import json
import math
import random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ntt_jax.errors import InputError
from ntt_jax.images.rle import encode_masks

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)

_WEIRD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(2**31, 2**32, 2**63, 10**400, "", "1", "a\nb", "\ud800", "\0", "../x", "/etc/passwd", "C:\\x", "x" * 10_000),
    *([], {}, [[]], [[1, 2]], [1, 2, 3, 4], [[0, 0, 1e9, 0, 0, 1e9]], [[math.nan] * 6], [["1"] * 6], [[[1]] * 6]),
    *({"size": [8, 8], "counts": "0"}, {"size": [8, 8], "counts": [64]}, {"size": [2**40, 2**40], "counts": "o" * 99}),
    *(
        [1, 2, 3, 4, 5, 6],
        [[1, 1], [5, 1], [5, 5]],
        [[[1, 1], [5, 1], [5, 5]]],
        [{"x": 1, "y": 2}] * 3,
        [2400],
        [[5, 5]],
    ),
    *([{"counts": "0"}], {"counts": [2400]}, {"counts": "b'0'", "size": [40, 60]}, "[[1,1,5,1,5,5]]", "..\\a.jpg", 7.0),
    *("http://x/y/../a.jpg?d=..%2Fb.jpg", "a%2F..%2Fb", "~/a", "file:///etc/passwd", "\\\\server\\a.jpg", "7", "-1"),
    *({"size": [40, 60], "counts": [-1, 2401]}, {"size": [40, 60], "counts": [2**70]}, {"counts": "~~~"}),
]


def box_mask(height: int, width: int, x: int, y: int, w: int, h: int) -> np.ndarray:
    """A filled rectangle as a mask."""
    mask = np.zeros((height, width), np.bool_)
    mask[y : y + h, x : x + w] = True
    return mask


def document() -> dict[str, Any]:
    """Three images, three categories, six annotations in the three encodings, one of them a crowd, one without mask."""
    rle = encode_masks(box_mask(40, 60, 12, 3, 20, 30)[None])[0]
    return {
        "info": {"year": 2026},
        "images": [
            {"id": 7, "file_name": "b.jpg", "height": 100, "width": 200},
            {"id": 3, "file_name": "sub/a.jpg", "height": 40, "width": 60},
            {"id": 9, "file_name": "c.jpg", "height": 100, "width": 100},
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "bird"}, {"id": 11, "name": "traffic light"}],
        "annotations": [
            annotation(100, 7, 5, [20, 20, 50, 40], segmentation=[[20, 20, 70, 20, 70, 60, 20, 60]], area=2000.5),
            annotation(50, 3, 2, [12, 3, 20, 30], segmentation=dict(rle), area=600),
            annotation(
                51, 3, 5, [0, 0, 1, 40], segmentation={"size": [40, 60], "counts": [0, 40, 2360]}, iscrowd=1, area=40
            ),
            annotation(900100000000, 9, 2, [15, 15, 40, 40], segmentation=[[15, 15, 55, 15, 55, 55], [0] * 6]),
            annotation(0, 9, 11, [30, 30, 33, 34.5], segmentation=[[30, 30, 63, 30, 63, 64.5, 30, 64.5]], area=1100),
            annotation(101, 7, 2, [100, 20, 60, 60]),
        ],
    }


def annotation(annotation_id: Any, image_id: Any, category_id: Any, bbox: Any, **more: Any) -> dict[str, Any]:
    """One annotation entry."""
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, **more}


def spoil(content: Any, seed: int, value: Any) -> bytes:
    """The document as JSON bytes with one to three random faults in values or bytes."""
    rng = random.Random(seed)
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        holders = [holder for holder in _holders(content) if holder]
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        choice = rng.random()
        if choice < 0.15:
            del holder[key]
        elif choice < 0.25 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif choice < 0.35:
            other = rng.choice(holders)
            holder[key] = copy.deepcopy(rng.choice(list(other.values()) if isinstance(other, dict) else other))
        elif choice < 0.85:
            holder[key] = copy.deepcopy(rng.choice(_WEIRD))
        else:
            holder[key] = copy.deepcopy(value)
    data = bytearray(json.dumps(content).encode())
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.05:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def check_message(error: InputError, *parts: str) -> None:
    """An error for the user is one printable line that names what it is about."""
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 1000, text
    for part in parts:
        assert part in text, text


def _holders(content: Any) -> list[Any]:
    if not isinstance(content, (dict, list)):
        return []
    inner = content.values() if isinstance(content, dict) else content
    return [content, *(holder for value in inner for holder in _holders(value))]
