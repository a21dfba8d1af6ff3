import json

import numpy as np
import pytest

from ntt_jax.datasets.coco import parse_coco
from ntt_jax.errors import InputError
from ntt_jax.images.rle import encode_masks
from ntt_jax.memory.aggregate import memory_from_instance_means
from ntt_jax.memory.analysis import leave_one_out_similarity
from ntt_jax.references import doctor
from ntt_jax.references.sampling import ClassReferences, Reference, ReferenceSet

NAMES = ("cat", "dog", "boat")
SIZE, GRID = 224, 16


def unit(vector):
    return vector / np.linalg.norm(vector)


def features(shots=5, spread=0.25, dim=64, seed=0):
    """Instance means `[3][shots][dim]` around one direction per class."""
    generator = np.random.default_rng(seed)
    centres = [unit(generator.normal(size=dim)) for _ in NAMES]
    return [
        [(5 * unit(centre + spread * unit(generator.normal(size=dim)))).astype(np.float32) for _ in range(shots)]
        for centre in centres
    ]


def examine(means, shapes=None):
    return doctor.examine(memory_from_instance_means(means, NAMES), NAMES, shapes)


def verdicts(diagnoses):
    return {(d.label, d.number): [f.code for f in d.findings] for d in diagnoses if d.findings}


def test_sound_references_are_good():
    for seed in range(10):
        diagnoses = examine(features(seed=seed))
        assert len(diagnoses) == 15 and verdicts(diagnoses) == {}
        assert all(d.verdict == "good" and d.margin > 0.3 for d in diagnoses)


@pytest.mark.parametrize("shots", [3, 5, 10])
def test_a_reference_of_another_class_is_flagged_alone(shots):
    for seed in range(5):
        means = features(shots, seed=seed)
        means[0][1] = features(shots, seed=seed + 100)[1][0] * 0.1 + means[1][0]  # a dog among the cats
        diagnoses = examine(means)
        assert verdicts(diagnoses) == {(0, 1): ["wrong class"]}
        bad = diagnoses[1]
        assert bad.verdict == "replace" and "looks like dog" in bad.findings[0].text
        assert bad.nearest == 1 and bad.margin < -0.3


def test_a_mask_beside_its_object_is_flagged_alone():
    """Its mean is that of some background, like no class."""
    generator = np.random.default_rng(7)
    means = features()
    means[2][3] = (5 * unit(generator.normal(size=64))).astype(np.float32)
    diagnoses = examine(means)
    assert set(verdicts(diagnoses)) == {(2, 3)}
    assert next(d for d in diagnoses if d.label == 2 and d.number == 3).verdict == "replace"


def test_an_unusual_view_nearest_to_its_class_is_only_to_be_checked():
    generator = np.random.default_rng(3)
    means = features(spread=0.1)
    means[0][0] = (5 * unit(unit(means[0][1]) + 1.5 * unit(generator.normal(size=64)))).astype(np.float32)
    diagnoses = examine(means)
    assert verdicts(diagnoses) == {(0, 0): ["far"]}
    assert diagnoses[0].verdict == "check" and diagnoses[0].margin > 0


def test_classes_that_are_alike_are_confusable_but_not_to_be_replaced():
    generator = np.random.default_rng(5)
    means = features(spread=1.0)
    means[1] = [(5 * unit(unit(means[0][0] + means[0][1]) + 1.0 * unit(generator.normal(size=64)))) for _ in range(5)]
    means[1] = [mean.astype(np.float32) for mean in means[1]]
    found = examine(means)
    codes = verdicts(found)
    assert codes and all(code == ["confusable"] for code in codes.values())
    assert {label for label, _ in codes} <= {0, 1} and all(d.verdict != "replace" for d in found)


def test_one_shot_has_no_own_similarity():
    diagnoses = examine(features(shots=1))
    assert all(d.own is None and d.margin is None and d.verdict == "good" for d in diagnoses)
    means = {k: [np.eye(8, dtype=np.float32)[k]] for k in range(5)}
    means[5] = [np.eye(8, dtype=np.float32)[0] * 3 + np.eye(8, dtype=np.float32)[1] * 0.2]
    memory = memory_from_instance_means(list(means.values()), list("abcdef"))
    found = doctor.examine(memory, "abcdef")
    assert verdicts(found) == {(0, 0): ["confusable"], (5, 0): ["confusable"]}


def test_one_class_has_no_nearest():
    memory = memory_from_instance_means(features()[:1], NAMES[:1])
    assert all(
        d.nearest is None and d.nearest_cosine is None and d.verdict == "good" for d in doctor.examine(memory, "a")
    )


def test_own_similarity_is_leave_one_out_similarity_of_the_means():
    means = features()
    means[1] = means[1][:2]
    means[2] = means[2][:1]
    memory = memory_from_instance_means(means, NAMES)
    own = doctor.own_similarity(memory)
    masks = np.asarray(memory.valid, np.float32)[:, :, None]
    expected, defined = leave_one_out_similarity(memory.instance_means[:, :, None, :], masks)
    assert defined.tolist() == [True, True, False] and np.isnan(own[2]).all()
    np.testing.assert_allclose(np.nanmean((1 + own[:2]) / 2, axis=1), expected[:2], rtol=0, atol=1e-6)
    assert np.isnan(own[1, 2:]).all()


def dataset(masks, boxes=None, size=(200, 300), category=1):
    """A file with one image per mask."""
    rles = encode_masks(np.asarray(masks))
    annotations = []
    for i, (mask, rle) in enumerate(zip(masks, rles, strict=True)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        box = [int(v) for v in (box if boxes is None or boxes[i] is None else boxes[i])]
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": category, "bbox": box, "segmentation": rle})
    images = [{"id": i + 1, "file_name": f"{i}.png", "height": size[0], "width": size[1]} for i in range(len(masks))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    return parse_coco(json.dumps(content).encode(), "file.json")


def rectangle(top, left, high, wide, size=(200, 300)):
    mask = np.zeros(size, bool)
    mask[top : top + high, left : left + wide] = True
    return mask


def findings(data, number):
    shape = doctor.measure(data, data.annotations[number], input_size=SIZE, grid=GRID)
    return shape, [f.code for f in examine_one(shape).findings]


def examine_one(shape):
    memory = memory_from_instance_means([[np.ones(4, np.float32)]], ["cat"])
    return doctor.examine(memory, ["cat"], [[shape]])[0]


def test_shapes():
    rows, columns = np.mgrid[:200, :300]
    thin = (abs(rows - columns) < 2) & (
        ((rows >= 50) & (rows < 90)) | (abs(rows - 148) < 2)
    )  # a wide box's thin diagonal
    masks = [
        rectangle(40, 60, 100, 120),
        thin,
        rectangle(0, 100, 90, 90),
        rectangle(95, 145, 9, 9),
        rectangle(40, 60, 100, 80),
    ]
    data = dataset(masks, boxes=[None, None, None, None, (160, 60, 100, 80)])
    good, codes = findings(data, 1)
    assert codes == [] and good.box_agreement == 1.0 and good.border == 40
    assert good.share == pytest.approx((100 * 120) / 144**2, abs=0.05)  # in a crop 1.2 times as wide as the box
    assert good.enlargement == pytest.approx(SIZE / 144)
    lines, codes = findings(data, 2)
    assert codes == ["small"] and lines.share < 0.05 and lines.patches > 0
    edge, codes = findings(data, 3)
    assert codes == ["border"] and edge.border == 0 and examine_one(edge).verdict == "check"
    assert "touches the border" in examine_one(edge).findings[0].text
    tiny, codes = findings(data, 4)
    assert codes == ["blurred"] and tiny.enlargement > 20
    shifted, codes = findings(data, 5)
    assert "box" in codes and shifted.box_agreement < 0.2 and examine_one(shifted).verdict == "replace"


def test_replacements_are_sound_and_new():
    masks = [rectangle(40, 60, 100, 120), rectangle(0, 100, 90, 90), rectangle(40, 60, 60, 60)]
    masks += [rectangle(40, 60, 80, 80), rectangle(40, 60, 20, 20)]
    data = dataset(masks)
    references = ReferenceSet((ClassReferences(1, "cat", (Reference(1, 1),)),), 1)
    shape = doctor.measure(data, data.annotations[1], input_size=SIZE, grid=GRID)
    ill = doctor.Diagnosis(0, 0, None, None, None, shape, (doctor.Finding("far", doctor.SEVERE, ""),))
    found = doctor.suggest_replacements(data, references, [ill], input_size=SIZE, grid=GRID)
    assert found == {(0, 0): Reference(4, 4)}  # the largest that `sample` would take, and not the one that is there
    well = doctor.Diagnosis(0, 0, None, None, None, shape)
    assert doctor.suggest_replacements(data, references, [well], input_size=SIZE, grid=GRID) == {}


def test_as_many_shapes_as_references():
    with pytest.raises(InputError, match="found \\[1, 5, 5\\]"):
        examine(features(), [[None], [None] * 5, [None] * 5])


def test_json():
    assert json.loads(json.dumps([d.to_json() for d in examine(features())]))[0]["verdict"] == "good"
