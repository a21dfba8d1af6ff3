"""Training of the small DINOv2: patch features whose mask average tells classes, also classes never seen.

The objective is the method's own metric, in episodes. A group of scenes has the same eight classes, two palettes of
three and two others, as a novel split has two palettes of three. Prototypes of its classes are means of mask-averaged
features over crops from other scenes, made as the method crops references, and at less weight over objects in other
scenes; every object, and at half weight every patch, is to be nearest to its own class's prototype by a cosine softmax.
Thousands of classes pass by, each in few scenes and, recoloured, never in the same colours twice, so that none can be
learnt by heart.

Beside that, linear read-outs of what a class is made of, and novel classes are other combinations of: the families of
its outline and texture and their numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ntt_jax.config import DinoV2Config
from ntt_jax.demo.scenes.classes import NOVEL_CLASSES_PER_SPLIT, NOVEL_SPLITS, OUTLINES, TEXTURES, ObjectClass
from ntt_jax.demo.training.augment import colour_maps, normalised, recolour, turn
from ntt_jax.demo.training.data import CROPS, ENCODER_SIDE, GRID, GROUP, GROUP_CLASSES, MAX_OBJECTS
from ntt_jax.demo.training.loop import Build
from ntt_jax.demo.training.masks import patch_cover, soft_targets
from ntt_jax.images.preprocess import normalise
from ntt_jax.models.dinov2 import DinoVisionTransformer

SMALL_DINOV2 = DinoV2Config(
    name="dinov2_ntt_small", embed_dim=128, depth=8, num_heads=4, image_size=224, input_size=ENCODER_SIDE
)

_TEMPERATURE = 0.1
# Of a group's six scenes, and of their eighteen crops, in one step.
_SCENES, _CROPS = 4, 8
_TOKENS = 48
# Weight of an object in a scene as a reference; a crop's is 1.
_SCENE_REFERENCE = 0.3


def new_model(seed: int) -> DinoVisionTransformer:
    """A model to train, with random weights."""
    return DinoVisionTransformer(SMALL_DINOV2, rngs=nnx.Rngs(seed))


def initialise(model: DinoVisionTransformer, seed: int, frozen_blocks: int = 0) -> tuple[dict[str, Any], nnx.State]:
    """The model's arrays, split: `{"model": parameters, "head": training-only}`, and what is not trained: nothing, or
    the first `frozen_blocks` blocks and all before them."""

    def trained(path: tuple[Any, ...], value: Any) -> bool:
        late = path[1] >= frozen_blocks if path[0] == "blocks" else path[0] == "norm"
        return isinstance(value, nnx.Param) and (late or not frozen_blocks)

    parameters, rest = nnx.state(model, trained, ...)
    dim = model.config.embed_dim
    head = {
        "background": 0.1 * jax.random.normal(jax.random.key(seed + 1), (dim,)),
        "outline": jnp.zeros((dim, len(OUTLINES))),
        "texture": jnp.zeros((dim, len(TEXTURES))),
        "numbers": jnp.zeros((dim, _NUMBERS)),
    }
    return {"model": parameters, "head": head}, rest


_HARMONICS = 8
_NUMBERS = _HARMONICS + 5


def class_table(classes: Sequence[ObjectClass]) -> dict[str, np.ndarray]:
    """What the read-outs are to find. "pairs": outline and texture of each class as indices of their families,
    `[K, 2]` int32. "numbers": amplitudes of its outline's harmonics, stretch, frequency, contrast, core and hole, each
    of zero mean and unit deviation over the classes, `[K, 13]` float32."""
    pairs = np.array([(OUTLINES.index(c.outline), TEXTURES.index(c.texture)) for c in classes], np.int32)
    waves = np.abs(np.fft.rfft(np.stack([c.profile / c.profile.mean() for c in classes]), axis=1))
    others = [(abs(np.log(c.stretch)), c.frequency, c.contrast, c.core, c.hole) for c in classes]
    numbers = np.concatenate([waves[:, 1 : 1 + _HARMONICS], np.array(others)], axis=1)
    numbers = (numbers - numbers.mean(axis=0)) / (numbers.std(axis=0) + 1e-6)
    return {"pairs": pairs, "numbers": numbers.astype(np.float32)}


def make_loss(build: Build, rest: nnx.State, batch: int) -> Callable[..., Any]:
    """The loss of `ntt_jax.demo.training.loop` on `batch` groups, each four scenes and eight crops. Data: the arrays of
    `training_arrays` and, under "classes", `class_table`. build: makes the model of its arrays."""

    def loss(parameters: Any, data: dict[str, Any], key: Array, progress: Array) -> tuple[Array, dict[str, Array]]:
        del progress
        model, head = build(parameters["model"], rest), parameters["head"]
        keys = jax.random.split(key, 9)
        group = jax.random.randint(keys[0], (batch, 1), 0, len(data["images"]) // GROUP)

        def draw(key: Array, size: int, count: int) -> Array:  # different ones of each group's members
            order = jax.vmap(lambda one: jax.random.permutation(one, size))(jax.random.split(key, batch))
            return order[:, :count]

        scene_of, crop_of = draw(keys[1], GROUP, _SCENES), draw(keys[8], GROUP * CROPS, _CROPS)
        rows = (GROUP * group + scene_of).reshape(-1)
        crop_rows = (GROUP * group + crop_of // CROPS).reshape(-1)
        place = (crop_of % CROPS).reshape(-1)
        scenes, instances = turn(keys[2], data["images"][rows], data["instances"][rows])
        crops, crop_masks = turn(keys[3], data["crops"][crop_rows, place], data["crop_grids"][crop_rows, place])
        # Colours belong to a class: a group changes as one.
        maps = colour_maps(keys[4], batch)
        scenes = normalised(keys[5], recolour(scenes, jnp.repeat(maps, _SCENES, axis=0)), 0.08)
        crops = normalised(keys[6], recolour(crops, jnp.repeat(maps, _CROPS, axis=0)), 0.08)
        features = model(jnp.concatenate([enlarge(scenes), enlarge(crops)]))  # [G (S + C), 24, 24, D]

        cover = patch_cover(soft_targets(instances))  # [G S, 24, 24, M + 1]
        crop_cover = jnp.stack([1 - crop_masks, crop_masks], axis=-1)
        crop_cover = jnp.pad(crop_cover, ((0, 0), (0, 0), (0, 0), (0, MAX_OBJECTS - 1)))
        labels = data["labels"][rows].astype(jnp.int32)
        crop_labels = data["crop_labels"][crop_rows, place].astype(jnp.int32)[:, None]
        crop_labels = jnp.pad(crop_labels, ((0, 0), (0, MAX_OBJECTS - 1)), constant_values=-1)

        def grouped(ours: Array, theirs: Array) -> Array:  # -> [G, S + C, ...]
            parts = [x.reshape(batch, -1, *x.shape[1:]) for x in (ours, theirs)]
            return jnp.concatenate(parts, axis=1)

        count = batch * _SCENES
        return episode_loss(
            keys[7],
            head,
            data["classes"],
            jnp.concatenate([scene_of, crop_of // CROPS], axis=1),
            grouped(features[:count], features[count:]).reshape(batch, _SCENES + _CROPS, GRID * GRID, -1),
            grouped(cover, crop_cover).reshape(batch, _SCENES + _CROPS, GRID * GRID, -1),
            grouped(labels, crop_labels),
        )

    return loss


def enlarge(images: Array) -> Array:
    """To the encoder's side as METHOD does it, torch's bicubic without antialiasing: `[B, S, S, 3]` ->
    `[B, 336, 336, 3]`."""
    shape = (images.shape[0], ENCODER_SIDE, ENCODER_SIDE, 3)
    return jax.image.resize(images, shape, "bicubic-pytorch", antialias=False)


def episode_loss(
    key: Array, head: Any, classes: dict[str, Array], source: Array, features: Array, cover: Array, labels: Array
) -> tuple[Array, dict[str, Array]]:
    """Loss and metrics of G groups of B images with N patches each, the first `_SCENES` of them scenes.

    classes: `class_table`. source: `[G, B]`, which scene an image is or comes from: one is no reference of the other.
    features: `[G, B, N, D]`. cover: `[G, B, N, M + 1]`, part of each patch that background and
    each object cover. labels: `[G, B, M]`, classes of the objects, -1 for none.
    """
    groups, images = labels.shape[:2]
    area = jnp.sum(cover, axis=2)  # [G, B, M + 1]
    pooled = jnp.einsum("gbnm,gbnd->gbmd", cover, features) / jnp.maximum(area, 1e-3)[..., None]
    present = (labels >= 0) & (area[..., 1:] > 1.0)
    labels = jnp.where(present, labels, -1)

    # The group's classes, -1 among them for objects that are none.
    known_classes = jax.vmap(lambda some: jnp.unique(some, size=GROUP_CLASSES + 1, fill_value=-1))(labels)  # [G, K]
    member = (labels[..., None] == known_classes[:, None, None]) & present[..., None]  # [G, B, M, K]
    is_scene = (jnp.arange(images) < _SCENES)[None, :, None]
    worth = jnp.where(is_scene, _SCENE_REFERENCE, 1.0)[..., None] * member
    sums = jnp.einsum("gbmk,gbmd->gbkd", worth, pooled[:, :, 1:])
    elsewhere = (source[:, :, None] != source[:, None, :]).astype(jnp.float32)  # [G, B, B]
    others = jnp.einsum("gbc,gckd->gbkd", elsewhere, sums)  # [G, B, K, D]
    counts = jnp.sum(worth, axis=2)
    known = jnp.einsum("gbc,gck->gbk", elsewhere, counts) > 0.1  # [G, B, K]
    whole, whole_known = jnp.sum(sums, axis=1), jnp.any(counts > 0, axis=1)  # [G, K, D], [G, K]

    def losses(vectors: Array, kind: Array, background: Array, share: Array) -> tuple[Array, Array]:
        """Mean cross-entropy of `[G, B, Q, D]` and how many are right; kind `[G, B, Q, K]`, which class each has, or
        background `[G, B, Q]`; share: weights `[G, B, Q]`."""
        unit = _unit(vectors)
        near = jnp.einsum("gbqd,gbkd->gbqk", unit, _unit(others))
        far = jnp.einsum("gbqd,hkd->gbqhk", unit, _unit(whole))  # classes of the other groups
        foreign = ~jnp.eye(groups, dtype=bool)[:, :, None] & whole_known[None]
        far = jnp.where(foreign[:, None, None], far, -jnp.inf).reshape(*near.shape[:3], -1)
        empty = jnp.einsum("gbqd,d->gbq", unit, _unit(head["background"]))[..., None]
        logits = jnp.concatenate([jnp.where(known[:, :, None], near, -jnp.inf), empty, far], axis=-1) / _TEMPERATURE
        wanted = jnp.concatenate([kind & known[:, :, None], background[..., None]], axis=-1)
        wanted = jnp.pad(wanted, ((0, 0), (0, 0), (0, 0), (0, far.shape[-1])))
        weight = share * jnp.any(wanted, axis=-1)
        own = jnp.sum(jnp.where(wanted, logits, 0.0), axis=-1)
        entropy = jax.nn.logsumexp(logits, axis=-1) - own
        total = jnp.maximum(jnp.sum(weight), 1e-6)
        right = own >= jnp.max(logits, axis=-1)
        return jnp.sum(entropy * weight) / total, jnp.sum(right * weight) / total

    # Scenes teach what background is; around a crop's object there may be others.
    everywhere = jnp.ones((groups, images, 1), bool)
    object_loss, accuracy = losses(pooled[:, :, 1:], member, jnp.zeros_like(present), present.astype(jnp.float32))
    empty_loss, _ = losses(
        pooled[:, :, :1], jnp.zeros_like(member[:, :, :1]), everywhere, is_scene * jnp.ones((groups, images, 1))
    )

    # A patch counts for the object that covers most of it, if that is more than 60 %. Few are enough: drawn anew.
    drawn = jax.random.randint(key, (groups, images, _TOKENS), 0, features.shape[2])[..., None]
    tokens, parts = (jnp.take_along_axis(x, drawn, axis=2) for x in (features, cover))
    owner = jnp.argmax(parts, axis=-1)  # [G, B, T]
    clear = (jnp.max(parts, axis=-1) > 0.6) & ((owner > 0) | is_scene)
    kinds = jnp.pad(member, ((0, 0), (0, 0), (1, 0), (0, 0)))
    kinds = jnp.take_along_axis(kinds, owner[..., None], axis=2)
    # As much weight to all background patches together as to all others.
    empty = owner == 0
    share = clear * jnp.where(
        empty, 0.5 / jnp.maximum(1, jnp.sum(clear & empty)), 0.5 / jnp.maximum(1, jnp.sum(clear & ~empty))
    )
    token_loss, _ = losses(tokens, kinds, empty, share)

    # Read-outs, where it shows what the object is.
    index = jnp.maximum(labels, 0)  # [G, B, M]
    family_loss, family_right = jnp.zeros(()), []
    for column, name in enumerate(("outline", "texture")):
        scores = jax.nn.log_softmax(pooled[:, :, 1:] @ head[name])
        own = jnp.take_along_axis(scores, classes["pairs"][index][..., column, None], axis=-1)[..., 0]
        family_loss += -jnp.mean(own, where=present)
        family_right.append(jnp.mean(own >= jnp.max(scores, axis=-1), where=present))
    off = pooled[:, :, 1:] @ head["numbers"] - classes["numbers"][index]
    number_loss = jnp.mean(off**2, where=present[..., None])
    metrics = {
        "object_loss": object_loss,
        "token_loss": token_loss,
        "family_loss": family_loss,
        "number_loss": number_loss,
        "episode_accuracy": accuracy,
        "outline_accuracy": family_right[0],
        "texture_accuracy": family_right[1],
    }
    return object_loss + 0.2 * empty_loss + 0.5 * token_loss + 0.3 * (family_loss + number_loss), metrics


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def make_evaluation(build: Build, rest: nnx.State, arrays: dict[str, np.ndarray]) -> Callable[..., Any]:
    """Nearest-prototype accuracy on objects of the novel splits with true masks, at 1 and 5 shots, mean over splits and
    twenty draws of references (crops of the second half of the scenes; objects of the first half), and the mean
    best similarity of objects and of distractors."""
    half = len(arrays["images"]) // 2
    reference_labels = arrays["crop_labels"][half:].reshape(-1)
    crops = [arrays[name][half:].reshape(-1, *arrays[name].shape[2:]) for name in ("crops", "crop_grids")]

    @jax.jit
    def scene_features(parameters: Any, images: Array, instances: Array) -> Array:
        features = build(parameters, rest)(enlarge(normalise(images.astype(jnp.float32) / 255)))
        cover = patch_cover(soft_targets(instances))
        return jnp.einsum("bhwm,bhwc->bmc", cover, features)[:, 1:] / (jnp.sum(cover, axis=(1, 2))[:, 1:, None] + 1e-6)

    @jax.jit
    def crop_features(parameters: Any, crops: Array, grids: Array) -> Array:
        features = build(parameters, rest)(enlarge(normalise(crops.astype(jnp.float32) / 255)))
        return jnp.einsum("bhw,bhwc->bc", grids, features) / (jnp.sum(grids, axis=(1, 2))[:, None] + 1e-6)

    def in_chunks(function: Callable[..., Array], parameters: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [np.asarray(function(parameters, first[i : i + 32], second[i : i + 32])) for i in range(0, len(first), 32)]
        )

    def evaluate(parameters: Any) -> dict[str, float]:
        model = parameters["model"]
        objects = in_chunks(scene_features, model, arrays["images"][:half], arrays["instances"][:half])
        references = in_chunks(crop_features, model, *crops)
        labels = arrays["labels"][:half]
        sizes = np.stack([(arrays["instances"][:half] == k + 1).sum(axis=(1, 2)) for k in range(MAX_OBJECTS)], axis=1)
        split_of = np.arange(half)[:, None] % NOVEL_SPLITS + np.zeros_like(labels)
        rng, metrics = np.random.default_rng(0), {}
        for shots in (1, 5):
            right, known, strange = [], [], []
            for split in range(NOVEL_SPLITS):
                wanted = np.arange(NOVEL_CLASSES_PER_SPLIT) + split * NOVEL_CLASSES_PER_SPLIT
                here = (split_of == split) & (sizes > 0)
                vectors = objects[here] / np.linalg.norm(objects[here], axis=-1, keepdims=True)
                for _ in range(20):
                    drawn = [rng.permutation(np.flatnonzero(reference_labels == c))[:shots] for c in wanted]
                    prototypes = np.stack([references[d].mean(axis=0) for d in drawn])
                    prototypes /= np.linalg.norm(prototypes, axis=-1, keepdims=True)
                    similarity = vectors @ prototypes.T
                    real = labels[here] >= 0
                    right.append(np.mean(wanted[similarity.argmax(axis=1)][real] == labels[here][real]))
                    known.append(similarity.max(axis=1)[real].mean())
                    strange.append(similarity.max(axis=1)[~real].mean())
            metrics[f"novel_accuracy_{shots}"] = float(np.mean(right))
            metrics[f"object_similarity_{shots}"] = float(np.mean(known))
            metrics[f"distractor_similarity_{shots}"] = float(np.mean(strange))
        return metrics

    return evaluate
