"""Training of the small DINOv2: patch features whose mask average tells classes, also classes never seen.

A dense contrastive objective: cosine softmax over one learnt proxy per base class and one for the background, on
mask-averaged features (what the method's memory and matching use) and, at half weight, on single patches. Batches mix
whole scenes, as targets are, with crops, as references are. Every order of an object's colour channels counts as a
class of its own, which makes six classes of one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ntt_jax.config import DinoV2Config
from ntt_jax.dinov2 import DinoVisionTransformer
from ntt_jax.scenes.classes import BASE_CLASS_COUNT, NOVEL_CLASSES_PER_SPLIT, NOVEL_SPLITS
from ntt_jax.training.augment import PERMUTATIONS, normalise, normalised, permute_channels, turn
from ntt_jax.training.data import CROP_SIDE, GRID, MAX_OBJECTS, SCENE_SIDE

SMALL_DINOV2 = DinoV2Config(
    name="dinov2_ntt_small", embed_dim=128, depth=6, num_heads=4, image_size=CROP_SIDE, input_size=CROP_SIDE
)

_TEMPERATURE = 0.1
_BACKGROUND = BASE_CLASS_COUNT * len(PERMUTATIONS)


def initialise(seed: int) -> tuple[nnx.GraphDef, dict[str, Any], nnx.State]:
    """A new model, split: its graph, `{"model": parameters, "head": proxies}`, and what is not trained (nothing)."""
    graph, parameters, rest = nnx.split(DinoVisionTransformer(SMALL_DINOV2, rngs=nnx.Rngs(seed)), nnx.Param, ...)
    # Only directions count. Short vectors turn fast: of unit deviation, thousands of steps go into turning them.
    proxies = 0.03 * jax.random.normal(jax.random.key(seed + 1), (_BACKGROUND + 1, SMALL_DINOV2.embed_dim))
    return graph, {"model": parameters, "head": proxies}, rest


def make_loss(graph: nnx.GraphDef, rest: nnx.State, batch: int) -> Callable[..., Any]:
    """The loss of `ntt_jax.training.loop` on `batch` scenes and as many crops."""

    def loss(parameters: Any, data: dict[str, Array], key: Array, progress: Array) -> tuple[Array, dict[str, Array]]:
        del progress
        model = nnx.merge(graph, parameters["model"], rest)
        keys = jax.random.split(key, 9)
        rows, crop_rows = jax.random.randint(keys[0], (2, batch), 0, data["images"].shape[0])
        scenes, instances = turn(keys[1], data["images"][rows], data["instances"][rows])
        crops, crop_masks = turn(keys[2], data["crops"][crop_rows], data["crop_grids"][crop_rows])
        scenes, scene_order = permute_channels(keys[3], scenes)
        crops, crop_order = permute_channels(keys[4], crops)
        scenes, crops = normalised(keys[5], scenes, 0.08), normalised(keys[6], crops, 0.08)
        features = model(jnp.concatenate([scene_input(scenes), crops]))  # [2B, 16, 16, C]

        cover = patch_cover(instances)  # [B, 16, 16, M + 1]
        crop_cover = jnp.stack([1 - crop_masks, crop_masks], axis=-1)  # [B, 16, 16, 2]
        scene_labels = _class_of(data["labels"][rows], scene_order[:, None])
        crop_labels = _class_of(data["crop_labels"][crop_rows], crop_order)[:, None]
        # Background of crops may hold other objects: only scenes teach what background is.
        scene_part = _part_loss(keys[7], features[:batch], cover, scene_labels, parameters["head"], True)
        crop_part = _part_loss(keys[8], features[batch:], crop_cover, crop_labels, parameters["head"], False)
        pooled, accuracy, tokens = (0.5 * (a + b) for a, b in zip(scene_part, crop_part, strict=True))
        return pooled + 0.5 * tokens, {"pooled_loss": pooled, "token_loss": tokens, "base_accuracy": accuracy}

    return loss


def scene_input(images: Array) -> Array:
    """What METHOD stage 3 step 2 makes of SAM's image: `[B, 256, 256, 3]` -> `[B, 224, 224, 3]`."""
    shape = (images.shape[0], CROP_SIDE, CROP_SIDE, 3)
    return jax.image.resize(images, shape, "bicubic-pytorch", antialias=False)


def patch_cover(instances: Array) -> Array:
    """Part of every patch that each object covers: `[B, 256, 256]` -> `[B, 16, 16, M + 1]`, 0 is background."""
    b, cell = instances.shape[0], SCENE_SIDE // GRID
    blocks = instances.reshape(b, GRID, cell, GRID, cell)
    ids = jnp.arange(MAX_OBJECTS + 1, dtype=instances.dtype)
    return jnp.stack([jnp.mean(blocks == i, axis=(2, 4), dtype=jnp.float32) for i in ids], axis=-1)


def _class_of(labels: Array, order: Array) -> Array:
    labels = labels.astype(jnp.int32)
    return jnp.where(labels < 0, -1, labels * len(PERMUTATIONS) + order)


def _part_loss(
    key: Array, features: Array, cover: Array, labels: Array, proxies: Array, with_background: bool
) -> tuple[Array, Array, Array]:
    """features `[B, 16, 16, C]`, cover `[B, 16, 16, M + 1]`, labels `[B, M]` -> pooled loss, accuracy, token loss."""
    b = features.shape[0]
    classes = jnp.concatenate([jnp.full((b, 1), _BACKGROUND if with_background else -1), labels], axis=1)  # [B, M + 1]
    flat, weight = features.reshape(b, GRID * GRID, -1), cover.reshape(b, GRID * GRID, -1)
    area = jnp.sum(weight, axis=1)  # [B, M + 1]
    pooled = jnp.einsum("bnm,bnc->bmc", weight, flat) / jnp.maximum(area, 1e-3)[..., None]
    valid = (classes >= 0) & (area > 1.0)
    pooled_loss, right = _cosine_softmax(pooled, classes, valid, proxies)
    # A patch counts for the object that covers most of it, if that is more than 60 %.
    owner = jnp.argmax(weight, axis=-1)  # [B, N]
    token_classes = jnp.take_along_axis(classes, owner, axis=1)
    clear = (jnp.max(weight, axis=-1) > 0.6) & (token_classes >= 0)
    # As much weight to all background patches together as to all others.
    empty = owner == 0
    share = clear * jnp.where(
        empty, 1 / jnp.maximum(1, jnp.sum(clear & empty)), 1 / jnp.maximum(1, jnp.sum(clear & ~empty))
    )
    # A quarter of the patches, drawn anew each step, is enough and keeps the table of all proxies small.
    drawn = jax.random.randint(key, (b, GRID * GRID // 4), 0, GRID * GRID)
    token_loss, _ = _cosine_softmax(
        jnp.take_along_axis(flat, drawn[..., None], axis=1),
        jnp.take_along_axis(token_classes, drawn, axis=1),
        jnp.take_along_axis(share, drawn, axis=1),
        proxies,
    )
    return pooled_loss, right, token_loss


def _cosine_softmax(vectors: Array, classes: Array, weight: Array, proxies: Array) -> tuple[Array, Array]:
    unit = vectors / jnp.sqrt(jnp.sum(vectors * vectors, axis=-1, keepdims=True) + 1e-6)
    proxies = proxies / jnp.sqrt(jnp.sum(proxies * proxies, axis=-1, keepdims=True) + 1e-6)
    logits = jnp.einsum("bnc,kc->bnk", unit, proxies) / _TEMPERATURE
    wanted = jnp.maximum(classes, 0)
    entropy = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
    total = jnp.maximum(jnp.sum(weight), 1e-6)
    right = jnp.sum((jnp.argmax(logits, axis=-1) == wanted) * weight) / total
    return jnp.sum(entropy * weight) / total, right


def make_evaluation(graph: nnx.GraphDef, rest: nnx.State, arrays: dict[str, np.ndarray]) -> Callable[..., Any]:
    """Nearest-prototype accuracy on objects of the novel splits with true masks, at 1 and 5 shots, mean over splits and
    twenty draws of references (crops of the second half of the scenes; objects of the first half), and the mean
    best similarity of objects and of distractors."""
    half = len(arrays["images"]) // 2

    @jax.jit
    def scene_features(parameters: Any, images: Array, instances: Array) -> Array:
        model = nnx.merge(graph, parameters, rest)
        features = model(scene_input(normalise(images.astype(jnp.float32) / 255)))
        cover = patch_cover(instances)
        return jnp.einsum("bhwm,bhwc->bmc", cover, features)[:, 1:] / (jnp.sum(cover, axis=(1, 2))[:, 1:, None] + 1e-6)

    @jax.jit
    def crop_features(parameters: Any, crops: Array, grids: Array) -> Array:
        features = nnx.merge(graph, parameters, rest)(normalise(crops.astype(jnp.float32) / 255))
        return jnp.einsum("bhw,bhwc->bc", grids, features) / (jnp.sum(grids, axis=(1, 2))[:, None] + 1e-6)

    def in_chunks(function: Callable[..., Array], parameters: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [np.asarray(function(parameters, first[i : i + 32], second[i : i + 32])) for i in range(0, len(first), 32)]
        )

    def evaluate(parameters: Any) -> dict[str, float]:
        model = parameters["model"]
        objects = in_chunks(scene_features, model, arrays["images"][:half], arrays["instances"][:half])
        references = in_chunks(crop_features, model, arrays["crops"][half:], arrays["crop_grids"][half:])
        labels, reference_labels = arrays["labels"][:half], arrays["crop_labels"][half:]
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
