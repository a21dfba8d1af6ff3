"""SAM 2, image path. Mirrors `sam2.modeling.sam2_base.SAM2Base` without its video memory.

2.0 and 2.1 share this path. All four masks come back as they are: no choice between the single mask and the other
three, no stability rule, no gating by the object score, and `encode_image` does not add `no_mem_embed`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int

from ntt_jax.config import Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.model_config import MAX_SIDE
from ntt_jax.models.sam2.hieradet import check_config as check_hiera
from ntt_jax.models.sam2.hieradet import stage_starts
from ntt_jax.models.sam2.image_encoder import ImageEncoder
from ntt_jax.models.sam2.mask_decoder import MaskDecoder
from ntt_jax.models.sam2.prompt_encoder import PromptEncoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """What the mask decoder needs of a batch of images (sizes for 1024 pixels and `d_model` 256).

    embedding: `[B, 64, 64, 256]`. high_res: `[B, 256, 256, 32]` and `[B, 128, 128, 64]`.
    `features[i]` takes one image (no batch axis left), `features[i:j]` several, as with an array.
    """

    embedding: Array
    high_res: tuple[Array, Array]

    def __getitem__(self, index: int | slice | Array) -> "ImageFeatures":
        return jax.tree.map(lambda x: x[index], self)


class Sam2(nnx.Module):
    """Segment Anything 2 on single images."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        """Random weights. `dtype` is that of kernels and products: float32 or bfloat16.

        Raises `InputError` for a configuration whose sizes do not fit together.
        """
        check_config(config)
        self.config = config
        self.image_encoder = ImageEncoder(config, dtype=dtype, rngs=rngs)
        self.sam_prompt_encoder = PromptEncoder(config, dtype=dtype, rngs=rngs)
        self.sam_mask_decoder = MaskDecoder(config, dtype=dtype, rngs=rngs)
        # Stands for "no memory of earlier frames". Meta's image predictor adds it to the image embedding, the method
        # does not. It starts at 0, which adds nothing, and stays so where a checkpoint has none.
        self.no_mem_embed = nnx.Param(jnp.zeros((1, 1, config.d_model), jnp.float32))

    def __repr__(self) -> str:
        side, mask = self.config.image_size, self.config.mask_size
        return f"Sam2({self.config.name}: images of {side} x {side} pixels, masks of {mask} x {mask})"

    def forward_image(self, images: Array) -> dict[str, Array]:
        """`encode_image` with all intermediates by name (`ImageEncoder.forward_features`), and "high_res0/1"."""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise InputError(f"SAM 2: expected images [B, {size}, {size}, 3], found {list(images.shape)}")
        dtype = self.image_encoder.trunk.patch_embed.proj.kernel[...].dtype
        features = self.image_encoder.forward_features(images.astype(dtype))
        decoder = self.sam_mask_decoder
        return features | {
            "high_res0": decoder.conv_s0(features["fpn0"]),
            "high_res1": decoder.conv_s1(features["fpn1"]),
        }

    def encode_image(self, images: Array) -> ImageFeatures:
        """Encode images once for any number of prompts (METHOD stage 3, step 3).

        Args:
          images: `[B, S, S, 3]` float, S = `config.image_size` pixels, ImageNet-normalised RGB.

        Returns:
          `ImageFeatures`: embedding `[B, S/16, S/16, D]`, high_res `[B, S/4, S/4, D/8]` and `[B, S/8, S/8, D/4]`.

        Raises:
          InputError: the shape does not fit.
        """
        features = self.forward_image(images)
        return ImageFeatures(features["fpn2"], (features["high_res0"], features["high_res1"]))

    def forward_sam_heads(
        self,
        features: ImageFeatures,
        points: Array | None = None,
        labels: Array | None = None,
        boxes: Array | None = None,
        masks: Array | None = None,
    ) -> dict[str, Array]:
        """`decode` with all intermediates by name: those of `MaskDecoder` and the prompts, "sparse" and "dense"."""
        one = self.one_image(features)
        sparse, dense = self.sam_prompt_encoder(points, labels, boxes, masks)
        position = self.sam_prompt_encoder.get_dense_pe()
        outputs = self.sam_mask_decoder(one.embedding, position, sparse, dense, one.high_res)
        return outputs | {"sparse": sparse, "dense": dense}

    def decode(
        self,
        features: ImageFeatures,
        points: Float[Array, "P N 2"] | None = None,
        labels: Int[Array, "P N"] | None = None,
        boxes: Float[Array, "P 4"] | None = None,
        masks: Float[Array, "P m m"] | None = None,
    ) -> tuple[Float32[Array, "P 4 m m"], Float32[Array, "P 4"]]:
        """Masks of P prompts on one image (METHOD stage 3, steps 4 and 5).

        Args:
          features: of one image: `encode_image(...)[i]`, or with a batch axis of 1.
          points: `[P, N, 2]` pixels of the model's input, (x, y); 0.5 is added to them here, as in Meta's code.
          labels: `[P, N]`: 1 foreground, 0 background, -1 padding (for prompts with fewer points).
          boxes: `[P, 4]` pixels (x1, y1, x2, y2).
          masks: `[P, S/4, S/4]` logits of an earlier mask.
          Any of points with labels, boxes and masks may be left out, but not all.

        Returns:
          logits `[P, 4, S/4, S/4]` (mask where > 0; the first is the single-mask token) and predicted_ious `[P, 4]`
          in [0, 1], both float32.

        Raises:
          InputError: shapes that do not fit, or no prompt.
        """
        outputs = self.forward_sam_heads(features, points, labels, boxes, masks)
        return outputs["logits"], outputs["predicted_ious"]

    def one_image(self, features: ImageFeatures) -> ImageFeatures:
        """The same features with a batch axis of 1."""
        return one_image(self.config, features)


class PromptDecoder(NamedTuple):
    """The part of a `Sam2` that works on prompts, without the large image encoder; `grid.decode_grid` needs no more."""

    config: Sam2Config
    sam_prompt_encoder: PromptEncoder
    sam_mask_decoder: MaskDecoder
    no_mem_embed: Any = None  # the parameter of `Sam2`, where prompts are boxes or masks


def one_image(config: Sam2Config, features: ImageFeatures) -> ImageFeatures:
    """The features of one image with a batch axis of 1. Raises `InputError` for those of several."""
    size, dim = config.embedding_size, config.d_model
    shape = features.embedding.shape
    if shape == (size, size, dim):
        return jax.tree.map(lambda x: x[None], features)
    if shape != (1, size, size, dim):
        raise InputError(
            f"SAM 2 decode: expected the features of one image, embedding [1, {size}, {size}, {dim}], "
            f"found {list(shape)}; take one with features[i]"
        )
    return features


MAX_GLOBAL = 128
"""Side of the largest map whose places all attend to each other; 64 in the published models."""


def check_config(config: Sam2Config) -> None:
    """Raise `InputError` if the sizes of `config` do not fit together."""
    check_hiera(config.hiera)
    stride = 4 * 2**config.hiera.q_pool // 2
    if len(config.hiera.stages) != 4 or config.hiera.q_pool != 3 or config.backbone_stride != stride:
        raise InputError(
            f"configuration: the mask decoder needs 4 stages, q_pool 3 and backbone_stride 16, found "
            f"{len(config.hiera.stages)} stages, q_pool {config.hiera.q_pool}, stride {config.backbone_stride}"
        )
    multiple = math.lcm(32, 4 * config.hiera.window_spec[0])
    if not 32 <= config.image_size <= MAX_SIDE or config.image_size % multiple:
        raise InputError(
            f"configuration.image_size: expected a multiple of {multiple} up to {MAX_SIDE}, found {config.image_size}"
        )
    for stage, start in enumerate(stage_starts(config.hiera)):
        side, end = config.image_size // (4 * 2**stage), start + config.hiera.stages[stage]
        if side > MAX_GLOBAL and any(start <= block < end for block in config.hiera.global_att_blocks):
            raise InputError(
                f"configuration.hiera.global_att_blocks: stage {stage} has {side} x {side} places at this image_size, "
                f"too many to attend to all of them; expected at most {MAX_GLOBAL} x {MAX_GLOBAL}"
            )
    if config.d_model < 16 or config.d_model % 16 or config.mask_in_chans < 4 or config.mask_in_chans % 4:
        raise InputError(
            f"configuration: expected d_model a multiple of 16 and mask_in_chans a multiple of 4, found "
            f"{config.d_model} and {config.mask_in_chans}"
        )
