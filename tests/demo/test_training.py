import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from ntt_jax.config import HieraConfig
from ntt_jax.demo.scenes import base_classes, make_scene
from ntt_jax.demo.scenes.classes import OUTLINES, TEXTURES, base_palette
from ntt_jax.demo.training import augment, data, dinov2, masks, sam2
from ntt_jax.demo.training.loop import Schedule, builder, load_weights, save_weights, train
from ntt_jax.images.preprocess import encoder_input, mask_to_grid, normalise, reference_crop
from ntt_jax.images.resize import resize_images
from ntt_jax.models.dinov2 import DinoVisionTransformer

SCENES = 6  # one group


@pytest.fixture(scope="module")
def scenes():
    return [make_scene([11, i], base_classes(5), config=data.BASE_SCENES) for i in range(SCENES)]


@pytest.fixture(scope="module")
def arrays(scenes):
    ids = np.arange(100, 105)
    entries = [data.scene_arrays(scene, ids, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    return {name: np.stack([entry[name] for entry in entries]) for name in entries[0]}


def test_arrays_hold_the_scene(scenes, arrays):
    for i, scene in enumerate(scenes):
        count = min(len(scene.labels), data.MAX_OBJECTS)
        assert arrays["labels"][i, :count].tolist() == (100 + scene.labels[:count]).tolist()
        assert (arrays["labels"][i, count:] == -1).all()
        for k in range(count):
            part = np.mean(arrays["instances"][i] == k + 1)
            assert part == pytest.approx(scene.masks[k].mean(), rel=0.08)


def test_crops_are_those_of_the_method(scenes, arrays):
    """Up to Pillow's bicubic (a = -0.5) in place of torch's, rounding to uint8, and that they are kept smaller."""
    for i, scene in enumerate(scenes):
        usable = [k for k, mask in enumerate(scene.masks) if data.usable_reference(mask) and scene.labels[k] >= 0]
        kept = arrays["crop_labels"][i]
        assert (kept >= 0).sum() == min(len(usable), data.CROPS)
        made = {}
        for k in usable:
            rows, columns = np.nonzero(scene.masks[k])
            box = (columns.min(), rows.min(), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
            made[k] = reference_crop(scene.image, scene.masks[k], box, data.ENCODER_SIDE)
        for place in np.flatnonzero(kept >= 0):
            stored = jnp.asarray(arrays["crops"][i, place], jnp.float32)[None] / 255
            ours = np.asarray(dinov2.enlarge(normalise(stored)))[0]
            nearest = min(made, key=lambda k: np.abs(ours - made[k][0]).mean())
            assert scene.labels[nearest] + 100 == kept[place]
            crop, soft = made.pop(nearest)  # no object twice
            assert np.abs(ours - crop).mean() < 0.08
            assert np.abs(arrays["crop_grids"][i, place] - mask_to_grid(soft, data.GRID)).max() < 0.02


def test_scene_input_is_that_of_the_method(arrays):
    images = jnp.asarray(arrays["images"][:2])
    ours = dinov2.enlarge(normalise(images.astype(jnp.float32) / 255))
    # Normalising before the bicubic or after it is the same: its weights add up to 1.
    np.testing.assert_allclose(
        ours, encoder_input(images, data.ENCODER_SIDE), atol=1e-4
    )  # jax.image.resize places its taps in float32


def test_patch_cover_is_the_mean_over_the_mask(arrays):
    """METHOD stage 3 step 6, as the target pass computes it, of masks on the decoder's grid."""
    soft = masks.soft_targets(jnp.asarray(arrays["instances"][:1]))
    features = jax.random.normal(jax.random.key(0), (data.GRID, data.GRID, 5))
    cover = masks.patch_cover(soft)[0]
    np.testing.assert_allclose(cover.sum((0, 1)), soft[0].sum((0, 1)) * (data.GRID / soft.shape[1]) ** 2, rtol=1e-5)
    pooled = jnp.einsum("ijm,ijd->md", cover, features) / cover.sum((0, 1))[:, None]
    large = resize_images(features[None], (soft.shape[1], soft.shape[2]), "bilinear")[0]
    expected = jnp.einsum("pqm,pqd->md", soft[0], large) / soft[0].sum((0, 1))[:, None]
    present = np.asarray(soft[0].sum((0, 1)) > 0)
    np.testing.assert_allclose(pooled[present], expected[present], atol=1e-5)  # float32 sums of thousands of cells


def test_turns_move_all_maps_alike(arrays):
    images, instances = jnp.asarray(arrays["images"]), jnp.asarray(arrays["instances"])
    seen = set()
    for seed in range(6):
        turned, ids = augment.turn(jax.random.key(seed), images, instances)
        for i in range(SCENES):
            options = [np.rot90(f, k) for f in (arrays["instances"][i], arrays["instances"][i].T) for k in range(4)]
            place = [k for k, option in enumerate(options) if np.array_equal(option, ids[i])]
            flipped = arrays["images"][i] if place[0] < 4 else arrays["images"][i].swapaxes(0, 1)
            assert np.array_equal(np.rot90(flipped, place[0] % 4), turned[i])
            seen.add(place[0])
    assert len(seen) >= 7


def test_channel_permutations_are_named(arrays):
    images, choice = augment.permute_channels(jax.random.key(3), jnp.asarray(arrays["images"]))
    for i in range(SCENES):
        assert np.array_equal(images[i], arrays["images"][i][..., list(augment.PERMUTATIONS[int(choice[i])])])


def test_hues_turn_and_greys_stay(arrays):
    maps = augment.colour_maps(jax.random.key(0), 64)
    np.testing.assert_allclose(maps @ jnp.ones(3), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(maps), np.sign(np.linalg.det(maps)), atol=1e-5)  # none squeezed
    red = np.asarray(maps)[:, :, 0]
    assert (np.abs(red - red[0]).max(axis=1) > 0.05).sum() > 50
    same = augment.recolour(jnp.asarray(arrays["images"][:2]), jnp.stack([jnp.eye(3)] * 2))
    np.testing.assert_allclose(same, arrays["images"][:2], atol=1e-4)  # 0 to 255


def test_groups_are_made_as_novel_splits_are():
    """Two palettes of three classes; what a group of scenes shares is its classes."""
    seen = {}
    for index in (0, 5, 6):
        _, ids = data._base_scene(3, index)
        palettes = [base_palette(i) for i in ids]
        assert len(set(ids[:6])) == 6 and len(set(palettes[:3])) == len(set(palettes[3:6])) == 1
        seen[index] = ids.tolist()
    assert seen[0] == seen[5] != seen[6]


def test_points_lie_on_their_objects(arrays):
    instances = jnp.asarray(arrays["instances"])
    soft = masks.soft_targets(instances)
    np.testing.assert_allclose(soft.sum(-1), 1.0, atol=1e-6)
    points, owner = sam2.sample_points(jax.random.key(0), instances, soft, 400, 0.2)
    pixel = np.floor(np.asarray(points) + 0.5).astype(int)  # the prompt encoder adds the half pixel
    for i in range(SCENES):
        assert np.array_equal(arrays["instances"][i][pixel[i, :, 1], pixel[i, :, 0]], owner[i])
        present = np.unique(arrays["instances"][i])
        shares = np.array([np.mean(np.asarray(owner[i]) == k) for k in present])
        assert shares[0] == pytest.approx(0.2, abs=0.07)
        # Equal chances whatever an object's size.
        np.testing.assert_allclose(shares[1:], 0.8 / (len(present) - 1), atol=0.09)


def test_boxes_are_those_of_the_objects(arrays):
    instances = jnp.asarray(arrays["instances"])
    points, owner = sam2.sample_points(jax.random.key(0), instances, masks.soft_targets(instances), 64, 0.2)
    prompts, labels = sam2._some_boxes(jax.random.key(1), points, owner, instances)
    boxed = np.argwhere(np.asarray(labels)[..., 0] == 2)
    assert 10 < len(boxed) < 60
    for i, p in boxed:
        rows, columns = np.nonzero(arrays["instances"][i] == int(owner[i, p]))
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
        assert (np.abs(prompts[i, p] - corners) <= 0.05 * (corners[1] - corners[0]) + 1e-3).all()
        assert labels[i, p].tolist() == [2, 3]
    others = np.asarray(labels)[..., 0] == 1
    assert np.array_equal(np.asarray(prompts)[others][:, 0], np.asarray(points)[others])
    assert (np.asarray(labels)[others][:, 1] == -1).all()


def test_mask_prompts_are_poor_copies_of_their_objects(arrays):
    instances = jnp.asarray(arrays["instances"])
    soft = masks.soft_targets(instances)
    _, owner = sam2.sample_points(jax.random.key(0), instances, soft, 64, 0.2)
    target = jnp.take_along_axis(soft, owner[:, None, None, :], axis=3).transpose(0, 3, 1, 2)
    prompts, given = sam2._some_masks(jax.random.key(1), target, owner)
    assert 10 < given.sum() < 60 and not (np.asarray(given) & (np.asarray(owner) == 0)).any()
    ious = np.asarray(masks.true_ious(prompts[:, :, None], target))[..., 0][np.asarray(given)]
    assert 0.3 < ious.mean() < 0.9 and np.std(ious) > 0.1


def test_true_ious():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(3, 4, 8, 8)), rng.random((3, 8, 8))
    both = ((logits > 0) & (target > 0.5)[:, None]).sum((2, 3))
    either = ((logits > 0) | (target > 0.5)[:, None]).sum((2, 3))
    np.testing.assert_allclose(masks.true_ious(jnp.asarray(logits), jnp.asarray(target)), both / either, rtol=1e-6)


TINY_DINOV2 = dataclasses.replace(dinov2.SMALL_DINOV2, embed_dim=16, depth=1, num_heads=2)
TINY_SAM2 = dataclasses.replace(
    sam2.SMALL_SAM2,
    image_size=64,
    hiera=HieraConfig(8, 1, (1, 1, 2, 1), (3,), (8, 4, 8, 4), (4, 4)),
    d_model=16,
    decoder_mlp_dim=16,
    iou_head_hidden_dim=16,
)


def test_beyond_the_box():
    target = np.zeros((2, 8, 8), np.float32)
    target[0, 3, 4], target[0, 5, 2] = 0.2, 1.0
    expected = np.ones((8, 8))
    expected[2:7, 1:6] = 0  # rows 3 to 5, columns 2 to 4 and one cell around
    np.testing.assert_array_equal(masks.outside_box(jnp.asarray(target)), [expected, np.ones((8, 8))])


def test_extent_is_where_the_mask_begins_and_ends():
    target = np.zeros((8, 8), np.float32)
    target[2:5, 3:7] = 1
    logits = np.where(target, 9.0, -9.0)
    stray, thin, short = (logits.copy() for _ in range(3))
    stray[7, 0] = 9.0  # beyond the box
    thin[3, 4:6] = -9.0  # a hole in the middle of it: the same rows and columns
    short[2] = -9.0  # the first row is missing
    losses = sam2.extent_loss(jnp.asarray(np.stack([logits, stray, thin, short])), jnp.asarray(target))
    wrong = [0, 2, 0, 1]  # rows and columns, each 9 away from 0, of 2 x 8
    np.testing.assert_allclose(losses, np.array(wrong) * 9 / 16, atol=1e-3)


def test_class_numbers():
    classes = base_classes(40)
    table = dinov2.class_table(classes)
    np.testing.assert_allclose(table["numbers"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(table["numbers"].std(0), 1, atol=1e-3)
    kinds = [(c.outline, c.texture) for c in classes]
    assert [(OUTLINES[o], TEXTURES[t]) for o, t in table["pairs"]] == kinds


EPISODE = jax.jit(dinov2.episode_loss)


def episode(features, labels, source):
    """`episode_loss` where the k-th object of an image is its patch k + 1 and patch 0 is background."""
    groups, images, objects = labels.shape
    cover = np.broadcast_to(np.eye(objects + 1, dtype=np.float32), (groups, images, objects + 1, objects + 1)) * 1.01
    head = {"background": jnp.zeros(4).at[3].set(1), "outline": jnp.zeros((4, 12)), "texture": jnp.zeros((4, 12))}
    head["numbers"] = jnp.zeros((4, 13))
    classes = {"pairs": jnp.zeros((200, 2), jnp.int32), "numbers": jnp.zeros((200, 13))}
    arrays = (jnp.array(x) for x in (source, features, cover, labels))
    return EPISODE(jax.random.key(0), head, classes, *arrays)[1]


def test_episode_compares_with_other_scenes_of_the_group():
    labels = np.full((1, 8, 10), -1, np.int32)
    labels[0, :, :2] = [100, 101]
    features = np.zeros((1, 8, 11, 4), np.float32)
    features[..., 0, 3] = features[..., 1, 0] = features[..., 2, 1] = 1
    source = np.arange(8)[None]
    right = episode(features, labels, source)
    assert right["episode_accuracy"] == 1 and right["object_loss"] < 1e-3

    # Of no other scene, a class has no reference: it does not count, though it would be nearest to itself.
    labels[0, [0, 7], 2] = 102
    features[0, [0, 7], 3] = [[0.0, 0.2, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    source[0, 7] = 0  # the last image, a crop, is from the first scene
    assert episode(features, labels, source)["episode_accuracy"] == 1
    source[0, 7] = 7
    assert episode(features, labels, source)["episode_accuracy"] == pytest.approx(16 / 18)
    labels[0, [0, 7], 2] = -1
    # One image has its two objects exchanged: they and they alone are wrong.
    features[0, 0, [1, 2]] = features[0, 0, [2, 1]]
    metrics = episode(features, labels, source)
    assert metrics["episode_accuracy"] == pytest.approx(14 / 16) and metrics["object_loss"] > right["object_loss"]


def test_every_parameter_of_sam2_learns(arrays, monkeypatch):
    monkeypatch.setattr(sam2, "SMALL_SAM2", TINY_SAM2)
    model = sam2.new_model(0)
    parameters, buffers = sam2.initialise(model, 0)
    frozen, _ = sam2.initialise(model, 0, frozen_trunk=True)
    assert "trunk" not in frozen["model"]["image_encoder"] and "neck" in frozen["model"]["image_encoder"]
    loss = sam2.make_loss(builder(model), buffers, batch=2, points=3)
    device = {name: jnp.asarray(arrays[name][:, ::5, ::5]) for name in ("images", "instances")}
    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(parameters, device, jax.random.key(1), jnp.zeros(()))
    assert 0 <= metrics["chosen_iou"] <= metrics["best_iou"] <= 1
    # Label 0, a background point, is never given.
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        # Prompts of other kinds, and what is only added for prompts, are not trained.
        assert np.abs(leaf).max() > 0 or "point_embeddings" in name or "no_mem_embed" in name, name


@pytest.fixture
def compiled_once(tmp_path):
    """Later runs of a program find it compiled."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def start(tmp_path, arrays, monkeypatch, steps, name):
    monkeypatch.setattr(dinov2, "SMALL_DINOV2", TINY_DINOV2)
    model = dinov2.new_model(0)
    parameters, rest = dinov2.initialise(model, 0)
    names = ("images", "instances", "labels", "crops", "crop_grids", "crop_labels")
    device = {n: jnp.asarray(arrays[n]) for n in names}
    device["classes"] = jax.tree.map(jnp.asarray, dinov2.class_table(base_classes(110)))
    out = tmp_path / name
    trained = train(
        parameters,
        dinov2.make_loss(builder(model), rest, batch=1),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), device),
        lambda: device,
        Schedule(learning_rate=2e-3, steps=steps, warmup=4, steps_per_call=4, save_seconds=0.0),
        seed=5,
        out=out,
        checkpoints=out / "checkpoints",
        evaluate=lambda p: {"size": float(jnp.sum(jnp.abs(p["head"]["background"])))},
        export=lambda p: nnx.merge_state(p["model"], rest),
    )
    return model, parameters, trained, out


def test_training_learns_resumes_and_is_repeatable(tmp_path, arrays, monkeypatch, compiled_once):
    model, before, whole, out = start(tmp_path, arrays, monkeypatch, 16, "whole")
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.1
    assert (out / "curves.png").stat().st_size > 1000
    # Every parameter is moved, and further than weight decay alone would move it; no input has a masked token.
    after = jax.tree.leaves(whole)
    for (path, old), new in zip(jax.tree.leaves_with_path(before), after, strict=True):
        name = jax.tree_util.keystr(path)
        assert np.abs(np.asarray(new) - old).max() > 1e-3 or "mask_token" in name, name

    # Once more, killed after step 8 and started again: this shows both that it resumes and that it is repeatable.
    checkpoints = tmp_path / "half" / "checkpoints"
    real_append, calls = train.__globals__["_append"], []

    def killed(path, row):
        calls.append(row)
        if row["step"] > 8:
            raise KeyboardInterrupt
        real_append(path, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(train.__globals__, "_append", killed)
        start(tmp_path, arrays, monkeypatch, 16, "half")
    assert checkpoints.exists()
    _, _, resumed, half = start(tmp_path, arrays, monkeypatch, 16, "half")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)

    # The written weights are those of the average, rounded to float16.
    loaded = nnx.state(load_weights(half / "weights.npz", model), nnx.Param)
    for ours, saved in zip(jax.tree.leaves(whole["model"]), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(np.asarray(ours, np.float16).astype(np.float32), saved)


def test_weights_of_another_model_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dinov2, "SMALL_DINOV2", TINY_DINOV2)
    save_weights(tmp_path / "w.npz", dinov2.initialise(dinov2.new_model(0), 0)[0]["model"])
    monkeypatch.setattr(dinov2, "SMALL_DINOV2", dataclasses.replace(TINY_DINOV2, depth=2))
    model = dinov2.new_model(0)
    assert set(dinov2.initialise(model, 0, frozen_blocks=1)[0]["model"]["blocks"]) == {1}
    with pytest.raises(ValueError, match="other arrays"):
        load_weights(tmp_path / "w.npz", model)


def test_narrow_kernels_of_wide_weights():
    """`--dtype bfloat16`: what is trained stays float32; the model that the loss sees is made of rounded copies."""
    model = DinoVisionTransformer(TINY_DINOV2, rngs=nnx.Rngs(0))
    parameters, rest = dinov2.initialise(model, 0)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(parameters))
    narrow, wide = (builder(model, dtype)(parameters["model"], rest) for dtype in ("bfloat16", "float32"))
    assert narrow.blocks[0].attn.qkv.kernel.dtype == jnp.bfloat16
    images = jax.random.normal(jax.random.key(0), (1, 56, 56, 3))
    run = jax.jit(lambda model, images: model(images))
    exact = run(model, images)
    np.testing.assert_array_equal(run(wide, images), exact)
    difference = np.abs(np.asarray(run(narrow, images) - exact))
    assert 0 < difference.mean() < 0.02  # bfloat16 has 8 bits; features have unit variance
