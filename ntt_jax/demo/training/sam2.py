"""Training of the small SAM 2: a point or a box on a made object -> three masks and their predicted IoUs.

Losses, and why each is there:
- binary cross-entropy on soft targets and dice, the best of the three masks and (later) their mean. Plain, they
  get stuck in predicting background; for the first 40 % foreground and background weigh the same;
- for the first 60 %, a pixel embedding on the image features: pixels of one object close, of two objects apart;
- in the cross-entropy, cells beyond the object's box weigh more (a single stray cell there is a wrong box), and so do
  those of any object, on both sides of where two touch;
- cross-entropy of where the mask begins and ends (`extent_loss`), for the boxes;
- predicted IoU of all four masks against the true one (L1). Points on the background have a true IoU of 0;
- the object score: is there an object under the prompt?
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ntt_jax.config import HieraConfig, Sam2Config
from ntt_jax.demo.training.augment import normalised, permute_channels, turn
from ntt_jax.demo.training.data import MAX_OBJECTS, SCENE_SIDE
from ntt_jax.demo.training.loop import Build
from ntt_jax.demo.training.masks import outside_box, soft_targets, true_ious
from ntt_jax.images.preprocess import normalise
from ntt_jax.models.sam2.sam2_base import ImageFeatures, Sam2

SMALL_SAM2 = Sam2Config(
    name="sam2_ntt_small",
    hiera=HieraConfig(
        embed_dim=28,
        num_heads=1,
        stages=(2, 3, 4, 1),
        global_att_blocks=(6, 8),
        window_spec=(8, 4, 8, 4),
        window_pos_embed_bkg_spatial_size=(4, 4),
    ),
    image_size=SCENE_SIDE,
    d_model=96,
    decoder_mlp_dim=1024,
)

_EMBEDDING_DIM = 32
_EMBEDDING_ENDS = 0.6
_EMBEDDING_PIXELS = 96
# Added to a cell's weight of 1.
_OUTSIDE_BOX = 4.0
_ANY_OBJECT = 1.0
_EXTENT = 1.0


def new_model(seed: int) -> Sam2:
    """A model to train, with random weights."""
    return Sam2(SMALL_SAM2, rngs=nnx.Rngs(seed))


def initialise(model: Sam2, seed: int, frozen_trunk: bool = False) -> tuple[dict[str, Any], nnx.State]:
    """The model's arrays, split: `{"model": parameters, "head": training-only}`, and what is not trained: fixed
    buffers, and the image encoder's trunk if `frozen_trunk`."""

    def trained(path: tuple[Any, ...], value: Any) -> bool:
        return isinstance(value, nnx.Param) and not (frozen_trunk and "trunk" in path)

    parameters, buffers = nnx.state(model, trained, ...)
    d = SMALL_SAM2.d_model
    width = d + d // 4 + d // 8
    head = 0.02 * jax.random.normal(jax.random.key(seed + 1), (width, _EMBEDDING_DIM))
    return {"model": parameters, "head": head}, buffers


def make_loss(build: Build, buffers: nnx.State, batch: int, points: int, start: float = 0.0) -> Callable[..., Any]:
    """The loss of `ntt_jax.demo.training.loop` on `batch` scenes with `points` prompts each.

    build: makes the model of its arrays. start: where in the course of the losses, from 0 to 1, the run begins: 0 for
    new weights, 0.6 to train on.
    """

    def loss(parameters: Any, data: dict[str, Array], key: Array, progress: Array) -> tuple[Array, dict[str, Array]]:
        progress = start + (1 - start) * progress
        model = build(parameters["model"], buffers)
        keys = jax.random.split(key, 8)
        rows = jax.random.randint(keys[0], (batch,), 0, data["images"].shape[0])
        images, instances = turn(keys[1], data["images"][rows], data["instances"][rows])
        images, _ = permute_channels(keys[2], images)
        images = normalised(keys[3], images, 0.15)
        soft = soft_targets(instances)  # [B, m, m, M + 1], m = S / 4
        features = model.encode_image(images)

        where, owner = sample_points(keys[4], instances, soft, points, 0.2)
        target = jnp.take_along_axis(soft, owner[:, None, None, :], axis=3).transpose(0, 3, 1, 2)  # [B, P, m, m]
        prompts, labels = _some_boxes(keys[5], where, owner, instances)
        masks, given = _some_masks(keys[6], target, owner)
        logits, ious, scores = _decode(model, features, prompts, labels, masks, given)
        total, metrics = _prompt_losses(logits, ious, scores, target, 1 - soft[..., 0], owner, progress)
        if start < _EMBEDDING_ENDS:
            pull = _embedding_loss(keys[7], parameters["head"], features, instances, soft)
            total = total + jnp.maximum(0.0, 1 - progress / _EMBEDDING_ENDS) * pull
            metrics |= {"embedding_loss": pull}
        return total, metrics

    return loss


def sample_points(key: Array, instances: Array, soft: Array, count: int, empty: float) -> tuple[Array, Array]:
    """Random prompts: objects with equal chances whatever their size, and background with chance `empty`.

    Returns points `[B, count, 2]` in the convention of METHOD stage 3 (half a pixel before the pixel's centre, which
    the prompt encoder adds), and the object under each, `[B, count]`, 0 for background.
    """
    b, side, _ = instances.shape
    area = jnp.sum(soft, axis=(1, 2))  # [B, M + 1]
    present = (area[:, 1:] > 0.5).astype(jnp.float32)
    share = jnp.concatenate(
        [jnp.full((b, 1), empty), (1 - empty) * present / jnp.maximum(1.0, jnp.sum(present, axis=1, keepdims=True))], 1
    )
    weight = share / jnp.maximum(area, 0.5)
    pixels = jnp.take_along_axis(weight, instances.reshape(b, -1).astype(jnp.int32), axis=1)
    cumulative = jnp.cumsum(pixels, axis=1)
    choice, shift = jax.random.split(key)
    draws = jax.random.uniform(choice, (b, count)) * cumulative[:, -1:]
    # Counted, not searched: one pass over the pixels instead of a loop.
    index = jnp.sum(cumulative[:, None, :] < draws[:, :, None], axis=2, dtype=jnp.int32)
    index = jnp.minimum(index, side**2 - 1)
    owner = jnp.take_along_axis(instances.reshape(b, -1), index, axis=1).astype(jnp.int32)
    corner = jnp.stack([index % side, index // side], axis=-1).astype(jnp.float32)
    return corner + jax.random.uniform(shift, corner.shape) - 0.5, owner


def _decode(
    model: Sam2,
    features: ImageFeatures,
    points: Array,
    labels: Array,
    masks: Array | None = None,
    given: Array | None = None,
) -> tuple[Array, Array, Array]:
    """All prompts of all images: logits `[B, P, 4, m, m]`, predicted IoUs `[B, P, 4]`, object scores `[B, P]`.

    points `[B, P, N, 2]`, labels `[B, P, N]` stand for all kinds of prompts at once, as in `embed_points`: a point and
    its padding (1, -1) or the corners of a box (2, 3). masks: `[B, P, m, m]` logits, for the prompts where `given`.
    """
    encoder, decoder = model.sam_prompt_encoder, model.sam_mask_decoder
    no_mask = encoder.no_mask_embed.embedding[...].reshape(1, 1, 1, -1)

    def one(features: ImageFeatures, points: Array, labels: Array, masks: Array | None, given: Array | None):
        image = jax.tree.map(lambda x: x[None], features)
        dense = no_mask
        if masks is not None and given is not None:
            dense = jnp.where(given[:, None, None, None], encoder.embed_masks(masks), no_mask)
        sparse = encoder.embed_points(points, labels)
        outputs = decoder(image.embedding, encoder.get_dense_pe(), sparse, dense, image.high_res)
        return outputs["logits"], outputs["predicted_ious"], outputs["object_score_logits"][:, 0]

    return jax.vmap(one)(features, points, labels, masks, given)


def _single_points(points: Array) -> tuple[Array, Array]:
    """`[B, P, 2]` -> prompts of one foreground point and one padding point each."""
    labels = jnp.broadcast_to(jnp.array([1, -1]), (*points.shape[:2], 2))
    return jnp.stack([points, jnp.zeros_like(points)], axis=2), labels


def _some_boxes(key: Array, points: Array, owner: Array, instances: Array) -> tuple[Array, Array]:
    """Prompts from points `[B, P, 2]`; every eighth on an object becomes its box, corners moved by up to 5 %."""
    side, ids = instances.shape[1], jnp.arange(MAX_OBJECTS + 1, dtype=instances.dtype)
    within = instances[..., None] == ids.reshape(1, 1, 1, -1)  # [B, S, S, M + 1]

    def ends(hit: Array) -> tuple[Array, Array]:  # [B, S, M + 1]
        return jnp.argmax(hit, axis=1), side - jnp.argmax(hit[:, ::-1], axis=1)

    (x1, x2), (y1, y2) = ends(jnp.any(within, axis=1)), ends(jnp.any(within, axis=2))
    corners = jnp.stack([x1, y1, x2, y2], axis=-1).astype(jnp.float32)  # [B, M + 1, 4]
    corners = jnp.take_along_axis(corners, owner[..., None], axis=1).reshape(*owner.shape, 2, 2)
    which, move = jax.random.split(key)
    moved = jax.random.uniform(move, corners.shape, minval=-0.05, maxval=0.05)
    corners = corners + moved * (corners[:, :, 1:] - corners[:, :, :1])
    prompts, labels = _single_points(points)
    boxed = (jax.random.uniform(which, owner.shape) < 0.125) & (owner > 0)
    prompts = jnp.where(boxed[..., None, None], jnp.clip(corners, 0, side), prompts)
    return prompts, jnp.where(boxed[..., None], jnp.array([2, 3]).reshape(1, 1, 2), labels)


def _some_masks(key: Array, target: Array, owner: Array) -> tuple[Array, Array]:
    """Mask prompts `[B, P, m, m]` and where there is one, `[B, P]`: for every eighth prompt on an object.

    They are the object's mask as a poor earlier answer might be: shifted by up to three cells, half of them cut off
    along a line through the image's middle, and noisy.
    """
    which, shift, cut, noise = jax.random.split(key, 4)
    b, p, side, _ = target.shape
    steps = jax.random.randint(shift, (b, p, 2), -3, 4)
    moved = jax.vmap(jax.vmap(lambda mask, step: jnp.roll(mask, step, (0, 1))))(target, steps)
    line = jnp.linspace(-1, 1, side)
    direction = jax.random.normal(cut, (b, p, 2, 1, 1))
    beyond = direction[:, :, 0] * line[None, None, :, None] + direction[:, :, 1] * line[None, None, None, :] > 0
    wanted = (moved > 0.5) & ~(beyond & (direction[:, :, 0] > 0))
    logits = jnp.where(wanted, 6.0, -6.0) + 2 * jax.random.normal(noise, target.shape)
    return logits, (jax.random.uniform(which, owner.shape) < 0.125) & (owner > 0)


def _prompt_losses(
    logits: Array, ious: Array, scores: Array, target: Array, objects: Array, owner: Array, progress: Array
) -> tuple[Array, dict[str, Array]]:
    """Total loss and metrics. target `[B, P, m, m]`, objects `[B, m, m]`: part of every cell that the prompt's
    object and that all objects cover."""
    real = (owner > 0).astype(jnp.float32)  # [B, P]
    count = jnp.maximum(1.0, jnp.sum(real))
    wanted = target[:, :, None]
    entropy = jax.nn.softplus(logits) - logits * wanted
    covered = jnp.clip(jnp.mean(wanted, axis=(3, 4), keepdims=True), 1e-3, 1 - 1e-3)
    even = 0.5 * (wanted / covered + (1 - wanted) / (1 - covered))
    balance = jnp.maximum(0.0, 1 - progress / 0.4)
    extra = _OUTSIDE_BOX * outside_box(target) + _ANY_OBJECT * objects[:, None]  # [B, P, m, m]
    cross_entropy = jnp.mean(entropy * (1 + balance * (even - 1) + extra[:, :, None]), axis=(3, 4))  # [B, P, 4]
    probability = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probability * wanted, axis=(3, 4))
    dice = 1 - (2 * overlap + 1) / (jnp.sum(probability, axis=(3, 4)) + jnp.sum(wanted, axis=(3, 4)) + 1)
    each = 4 * cross_entropy + dice + _EXTENT * extent_loss(logits, target)

    def over_objects(x: Array) -> Array:
        return jnp.sum(x * real) / count

    best, mean = jnp.min(each[..., 1:], axis=-1), jnp.mean(each[..., 1:], axis=-1)
    late = jnp.clip((progress - 0.55) / 0.1, 0, 1)
    masks = over_objects((1 - 0.6 * late) * best + (0.05 + 0.65 * late) * mean + 0.1 * each[..., 0])

    true = true_ious(logits, target) * real[..., None]
    iou_loss = jnp.mean(jnp.abs(ious - true))
    object_loss = jnp.mean(jax.nn.softplus(scores) - scores * real)
    chosen = jnp.take_along_axis(true[..., 1:], jnp.argmax(ious[..., 1:], axis=-1)[..., None], axis=-1)[..., 0]
    metrics = {
        "mask_loss": over_objects(best),
        "iou_loss": iou_loss,
        "best_iou": over_objects(jnp.max(true[..., 1:], axis=-1)),
        "chosen_iou": over_objects(chosen),
    }
    return masks + iou_loss + 0.1 * object_loss, metrics


def extent_loss(logits: Array, target: Array) -> Array:
    """Where does the mask begin and end? `[..., 4, h, w]` and `[..., h, w]` -> `[..., 4]`.

    Cross-entropy of each row's and each column's largest logit: one stray cell, or one missing at the tip of an object,
    moves a box, and weighs little among all cells.
    """
    total = jnp.zeros(logits.shape[:-2])
    for axis in (-1, -2):
        largest, wanted = jnp.max(logits, axis=axis), jnp.max(target, axis=axis)[..., None, :]
        total += 0.5 * jnp.mean(jax.nn.softplus(largest) - largest * wanted, axis=-1)
    return total


def _embedding_loss(key: Array, head: Array, features: ImageFeatures, instances: Array, soft: Array) -> Array:
    side = instances.shape[1]
    points, owner = sample_points(key, instances, soft, _EMBEDDING_PIXELS, 0.25)
    pixel = jnp.clip(jnp.floor(points + 0.5).astype(jnp.int32), 0, side - 1)  # (x, y)

    def gather(level: Array) -> Array:  # [B, s, s, C] -> [B, N, C]
        at = pixel * level.shape[1] // side
        return jax.vmap(lambda one, index: one[index[:, 1], index[:, 0]])(level, at)

    levels = [gather(level) for level in (*features.high_res, features.embedding)]
    vectors = jnp.concatenate(levels, axis=-1) @ head  # [B, N, 32]
    norms = jnp.sum(vectors * vectors, axis=-1)
    products = jnp.einsum("bnc,bmc->bnm", vectors, vectors)
    distance = jnp.maximum(norms[:, :, None] + norms[:, None, :] - 2 * products, 0.0)
    same = owner[:, :, None] == owner[:, None, :]
    # Logistic in the distance, even odds at 1; both kinds of pairs weigh the same.
    together = jnp.mean(jax.nn.softplus(distance - 1), where=same)
    apart = jnp.sum(jax.nn.softplus(1 - distance), where=~same) / jnp.maximum(1, jnp.sum(~same))
    return together + apart


def make_evaluation(build: Build, buffers: nnx.State, arrays: dict[str, np.ndarray]) -> Callable[..., Any]:
    """Quality on scenes of classes not trained on: mean IoU of the best of three masks and of the chosen one (16 points
    on objects per scene), IoU of the chosen one's box, predicted IoU on the background, and how far the prediction is
    off."""
    images, instances = jnp.asarray(arrays["images"]), jnp.asarray(arrays["instances"])

    @jax.jit
    def measure(parameters: Any, images: Array, instances: Array) -> dict[str, Array]:
        model = build(parameters, buffers)
        soft = soft_targets(instances)
        points, owner = sample_points(jax.random.key(0), instances, soft, 16, 0.25)
        target = jnp.take_along_axis(soft, owner[:, None, None, :], axis=3).transpose(0, 3, 1, 2)
        features = model.encode_image(normalise(images.astype(jnp.float32) / 255))
        logits, ious, _ = _decode(model, features, *_single_points(points))
        ious, true = ious[..., 1:], true_ious(logits, target)[..., 1:] * (owner > 0)[..., None]
        best = jnp.argmax(ious, axis=-1)[..., None]
        chosen = jnp.take_along_axis(true, best, axis=-1)[..., 0]
        mask = jnp.take_along_axis(logits[:, :, 1:] > 0, best[..., None, None], axis=2)[:, :, 0]
        box, wanted = outside_box(mask) == 0, outside_box(target > 0.5) == 0
        box_iou = jnp.sum(box & wanted, axis=(2, 3)) / jnp.maximum(1, jnp.sum(box | wanted, axis=(2, 3)))
        real = owner > 0
        return {
            "novel_best_iou": jnp.mean(jnp.max(true, axis=-1), where=real),
            "novel_chosen_iou": jnp.mean(chosen, where=real),
            "novel_box_iou": jnp.mean(box_iou, where=real),
            "novel_above_75": jnp.mean(chosen > 0.75, where=real),
            "novel_above_90": jnp.mean(chosen > 0.9, where=real),
            "background_above_40": jnp.mean(jnp.max(ious, axis=-1) > 0.4, where=~real),
            "iou_error": jnp.mean(jnp.abs(ious - true)),
        }

    def evaluate(parameters: Any) -> dict[str, float]:
        chunks = [
            measure(parameters["model"], images[i : i + 16], instances[i : i + 16])
            for i in range(0, len(images) - 15, 16)
        ]
        return {name: float(np.mean([chunk[name] for chunk in chunks])) for name in chunks[0]}

    return evaluate
