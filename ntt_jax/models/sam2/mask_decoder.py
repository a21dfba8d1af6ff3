"""Two-way transformer and mask decoder. Mirrors `sam2.modeling.sam.transformer` and `sam2.modeling.sam.mask_decoder`.

The image side carries a batch axis of 1 for as long as it is the same for all prompts (until the first image-to-token
attention, unless mask prompts differ), so what depends on the image alone is computed once.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ntt_jax.config import Sam2Config
from ntt_jax.models.layers import Conv, ConvTranspose2x2, LayerNorm, gelu
from ntt_jax.models.sam2.position_encoding import embedding
from ntt_jax.models.sam2.sam2_utils import MLP
from ntt_jax.models.sam2.transformer import TwoWayTransformer


class MaskDecoder(nnx.Module):
    """Prompt and image embeddings to masks, their predicted IoUs and an object score."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        dim = config.d_model
        self.num_mask_tokens = config.num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(config, dtype=dtype, rngs=rngs)
        self.iou_token = embedding(1, dim, dtype=dtype, rngs=rngs)
        self.mask_tokens = embedding(self.num_mask_tokens, dim, dtype=dtype, rngs=rngs)
        self.obj_score_token = embedding(1, dim, dtype=dtype, rngs=rngs)
        self.output_upscaling = nnx.List(
            [
                ConvTranspose2x2(dim, dim // 4, dtype=dtype, rngs=rngs),
                LayerNorm(dim // 4, rngs=rngs),
                gelu,
                ConvTranspose2x2(dim // 4, dim // 8, dtype=dtype, rngs=rngs),
                gelu,
            ]
        )
        self.conv_s0 = Conv(dim, dim // 8, 1, dtype=dtype, rngs=rngs)
        self.conv_s1 = Conv(dim, dim // 4, 1, dtype=dtype, rngs=rngs)
        self.output_hypernetworks_mlps = nnx.List(
            [MLP(dim, dim, dim // 8, 3, dtype=dtype, rngs=rngs) for _ in range(self.num_mask_tokens)]
        )
        # Two small heads whose outputs meet thresholds: float32 whatever `dtype` is.
        self.iou_prediction_head = MLP(
            dim, config.iou_head_hidden_dim, self.num_mask_tokens, config.iou_head_depth, rngs=rngs
        )
        self.pred_obj_score_head = MLP(dim, dim, 1, 3, rngs=rngs)

    def output_tokens(self, sparse: Array) -> Array:
        """Prompt tokens `[P, N, D]` -> `[P, 2 + 4 + N, D]`: object score, IoU, masks, then the prompt."""
        own = jnp.concatenate([e.embedding[...] for e in (self.obj_score_token, self.iou_token, self.mask_tokens)])
        return jnp.concatenate([jnp.broadcast_to(own, (sparse.shape[0], *own.shape)), sparse], axis=1)

    def __call__(
        self, image_embedding: Array, image_pe: Array, sparse: Array, dense: Array, high_res: tuple[Array, Array]
    ) -> dict[str, Array]:
        """Decode P prompts of one image. Mirrors `MaskDecoder.predict_masks` and keeps what it computes on the way.

        Args:
          image_embedding: `[1, h, w, D]`. image_pe: `[1, h, w, D]`.
          sparse: `[P, N, D]`. dense: `[P, h, w, D]` or `[1, 1, 1, D]`.
          high_res: `[1, 4h, 4w, D/8]` and `[1, 2h, 2w, D/4]`, `conv_s0` and `conv_s1` applied.

        Returns:
          "logits" `[P, 4, 4h, 4w]`, "predicted_ious" `[P, 4]` and "object_score_logits" `[P, 1]`, all float32;
          "mask_tokens" `[P, 4, D]`, "iou_token" `[P, D]`, "upscaled_half" `[P, 2h, 2w, D/4]` (after the first
          activation), "upscaled_embedding" `[P, 4h, 4w, D/8]`, "hypernetworks" `[P, 4, D/8]`, and of each layer of the
          transformer "layer0_norm1", "layer0_norm2", "layer0_queries", "layer0_image_to_token", "layer0_keys", ...
        """
        _, h, w, d = image_embedding.shape
        p, masks = sparse.shape[0], self.num_mask_tokens
        image = (image_embedding + dense.astype(image_embedding.dtype)).reshape(-1, h * w, d)
        position = image_pe.astype(image_embedding.dtype).reshape(1, h * w, d)
        queries, keys, features = self.transformer(image, position, self.output_tokens(sparse))
        mask_tokens = queries[:, 2 : 2 + masks]  # [P, 4, D]

        deconv1, norm, activation1, deconv2, activation2 = self.output_upscaling
        high_res0, high_res1 = high_res
        half = activation1(norm(deconv1(keys.reshape(p, h, w, d)) + high_res1))  # [P, 2h, 2w, D/4]
        upscaled = activation2(deconv2(half) + high_res0)  # [P, 4h, 4w, D/8]
        hypernetworks = jnp.stack(
            [mlp(mask_tokens[:, index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)], axis=1
        )  # [P, 4, D/8]
        logits = jnp.einsum("pmc,pijc->pmij", hypernetworks, upscaled, preferred_element_type=jnp.float32)
        heads = queries.astype(jnp.float32)
        return features | {
            "logits": logits,
            "predicted_ious": jax.nn.sigmoid(self.iou_prediction_head(heads[:, 1])),
            "object_score_logits": self.pred_obj_score_head(heads[:, 0]),
            "mask_tokens": mask_tokens,
            "iou_token": queries[:, 1],
            "upscaled_half": half,
            "upscaled_embedding": upscaled,
            "hypernetworks": hypernetworks,
        }
