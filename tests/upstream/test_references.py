"""Import of upstream's reference pickle: what it means, and that nothing in it is run."""

import json
import os
import pathlib
import pickle
import pickletools
import random
from typing import Any

import pytest
from coco_files import check_message, document
from hypothesis import given, settings
from hypothesis import strategies as st

from ntt_jax.datasets.coco import parse_coco
from ntt_jax.errors import InputError
from ntt_jax.references.sampling import Reference, check_references
from ntt_jax.upstream import references as upstream_references
from ntt_jax.upstream.references import import_upstream_references, parse_upstream_references

DATASET = parse_coco(json.dumps(document()).encode(), "folder/x.json")
CONTENT = {
    11: [{"img_id": 9, "ann_ids": [0]}],
    2: [{"img_id": 3, "ann_ids": [50]}, {"img_id": 9, "ann_ids": [900100000000]}],
}


def refused(data: bytes, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_upstream_references(data, "mem.pkl", DATASET)
    check_message(caught.value, "mem.pkl", *parts)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mem.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    references = import_upstream_references(path, DATASET)
    assert [(c.category_id, c.name, c.references) for c in references.classes] == [
        (2, "bird", (Reference(3, 50), Reference(9, 900100000000))),
        (11, "traffic light", (Reference(9, 0),)),
    ]
    assert references.shots == 2 and references.seed is None
    check_references(references, DATASET)


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, target: pathlib.Path):
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_not_run(protocol: int, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "made"
    refused(pickle.dumps(CONTENT | {5: Runs(target)}, protocol), "refused", "GLOBAL")
    assert not target.exists()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL"),
        (b"(S'true'\nios\nsystem\n.", "STRING"),
        (b"(ios\nsystem\n.", "INST"),
        (b"Pid\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "LONG_BINPUT"),
        (b"]p99999999999\n.", "PUT"),
        (pickle.dumps({2**64: []}), "LONG1"),
        (pickle.dumps(((), ())), "TUPLE"),
        (pickle.dumps({5: [b"bytes"]}), "BINBYTES"),
        (pickle.dumps(1.5), "BINFLOAT"),
    ],
)
def test_refuses_what_is_not_plain_data(data: bytes, part: str) -> None:
    refused(data, "refused", part)


@pytest.mark.parametrize(
    "data", [b".", b"}}", b"\x80\x04", b"}u.", b"g5\n.", b"I" + b"1" * 5000 + b"\n.", b"\x80\x09."]
)
def test_refuses_what_is_no_pickle(data: bytes) -> None:
    refused(data, "not a readable pickle")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([], "a list of 0"),
        ({}, "an object of 0"),
        ({6: []}, "category 6: folder/x.json has no such category"),
        ({"2": []}, "category '2'"),
        ({None: []}, "category null"),
        ({2: {}}, "a list of references"),
        ({2: []}, "a list of references"),
        ({2: [5]}, "reference 0"),
        ({2: [{"img_id": 3}]}, '"ann_ids"'),
        ({2: [{"img_id": "3", "ann_ids": [50]}]}, "integer ids"),
        ({2: [{"img_id": 3, "ann_ids": [True]}]}, "integer ids"),
        ({2: [{"img_id": 3, "ann_ids": [50, 51]}]}, "one annotation id, found [50, 51]"),
        ({2: [{"img_id": 3, "ann_ids": []}]}, "one annotation id"),
        ({2: [{"img_id": 3, "ann_ids": [50]}] * 2}, "occurs twice"),
    ],
)
def test_refuses_other_contents(content: Any, part: str) -> None:
    refused(pickle.dumps(content), part)


def test_refuses_structures_that_hold_themselves() -> None:
    entries: list[Any] = []
    entries.append(entries)
    refused(pickle.dumps({2: entries}), "reference 0")


def test_refuses_lists_repeated_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_references, "MAX_REFERENCES", 3)
    entries = [{"img_id": 3, "ann_ids": [i]} for i in (50, 51)]
    refused(pickle.dumps({2: entries, 5: entries}), "more than 3 references")


def spoil_bytes(data: bytes, rng: random.Random, insert: bytes) -> bytes:
    """One to three places overwritten by an opcode, a random byte or `insert`."""
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(spoilt))
        opcode = ord(rng.choice(pickletools.opcodes).code)
        spoilt[place : place + rng.randint(0, 2)] = rng.choice([bytes([opcode]), bytes([rng.randrange(256)]), insert])
        spoilt = spoilt or bytearray(b".")
    return bytes(spoilt)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), st.binary(max_size=4))
def test_spoiled_pickles_only_raise_input_errors(seed: int, insert: bytes) -> None:
    for i in range(seed, seed + 10):
        try:
            data = spoil_bytes(pickle.dumps(CONTENT, i % 6), random.Random(i), insert)
            parse_upstream_references(data, "mem.pkl", DATASET)
        except InputError as error:
            check_message(error, "mem.pkl")
