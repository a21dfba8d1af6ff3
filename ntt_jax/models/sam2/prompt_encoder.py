"""Prompts to embeddings. Mirrors `sam2.modeling.sam.prompt_encoder` and `PositionEmbeddingRandom`."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ntt_jax.config import Sam2Config
from ntt_jax.errors import InputError
from ntt_jax.models.layers import Conv, LayerNorm, gelu
from ntt_jax.models.sam2.position_encoding import PositionEmbeddingRandom, embedding

NUM_POINT_EMBEDDINGS = 4  # labels: 0 background, 1 foreground, 2 and 3 the corners of a box
PADDING_LABEL = -1


class PromptEncoder(nnx.Module):
    """Points, boxes and masks to token and map embeddings."""

    def __init__(self, config: Sam2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        dim, channels = config.d_model, config.mask_in_chans
        self.image_size = config.image_size
        self.embedding_size = config.embedding_size
        self.dtype = dtype
        self.pe_layer = PositionEmbeddingRandom(dim // 2, rngs=rngs)
        self.point_embeddings = nnx.List(
            [embedding(1, dim, dtype=dtype, rngs=rngs) for _ in range(NUM_POINT_EMBEDDINGS)]
        )
        self.not_a_point_embed = embedding(1, dim, dtype=dtype, rngs=rngs)
        self.mask_downscaling = nnx.List(
            [
                Conv(1, channels // 4, 2, stride=2, dtype=dtype, rngs=rngs),
                LayerNorm(channels // 4, rngs=rngs),
                gelu,
                Conv(channels // 4, channels, 2, stride=2, dtype=dtype, rngs=rngs),
                LayerNorm(channels, rngs=rngs),
                gelu,
                Conv(channels, dim, 1, dtype=dtype, rngs=rngs),
            ]
        )
        self.no_mask_embed = embedding(1, dim, dtype=dtype, rngs=rngs)

    def get_dense_pe(self) -> Array:
        """Position encoding of the image embedding's grid: `[1, h, w, D]` float32."""
        size = self.embedding_size
        centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
        y, x = jnp.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(jnp.stack([x, y], axis=-1))[None]

    def embed_points(self, points: Array, labels: Array) -> Array:
        """Points `[P, N, 2]` in pixels (x, y), labels `[P, N]` -> `[P, N, D]`. The half pixel is added here.

        A label of -1 replaces the position by "not a point"; any label outside -1 ... 3 adds nothing to it.
        """
        position = self.pe_layer((points.astype(jnp.float32) + 0.5) / self.image_size)
        table = jnp.concatenate([e.embedding[...] for e in self.point_embeddings])  # [4, D]
        one_hot = labels[..., None] == jnp.arange(NUM_POINT_EMBEDDINGS).reshape(1, 1, -1)
        # A sum over four rows of which at most one counts: exact, and its gradient is no scatter.
        kind = jnp.sum(jnp.where(one_hot[..., None], table.astype(jnp.float32)[None, None], 0.0), axis=2)
        not_a_point = self.not_a_point_embed.embedding[...].astype(jnp.float32)[None]
        return jnp.where((labels == PADDING_LABEL)[..., None], not_a_point, position + kind).astype(self.dtype)

    def embed_masks(self, masks: Array) -> Array:
        """Mask logits `[P, 4h, 4w]` -> `[P, h, w, D]`."""
        x = masks[..., None].astype(self.dtype)
        for layer in self.mask_downscaling:
            x = layer(x)
        return x

    def __call__(
        self,
        points: Array | None = None,
        labels: Array | None = None,
        boxes: Array | None = None,
        masks: Array | None = None,
    ) -> tuple[Array, Array]:
        """Embed P prompts.

        Args:
          points: `[P, N, 2]` pixels of the model's input image, (x, y). A padding point joins them if no box is given.
          labels: `[P, N]`: 1 foreground, 0 background, -1 padding, 2 and 3 the corners of a box given as points.
          boxes: `[P, 4]` pixels, corners (x1, y1, x2, y2).
          masks: `[P, 4h, 4w]` logits of an earlier mask.

        Returns:
          Token embeddings `[P, N', D]` and map embeddings `[P, h, w, D]`, or `[1, 1, 1, D]` if no mask is given.

        Raises:
          InputError: nothing given, points without labels, or shapes that do not fit.
        """
        count = self._count(points, labels, boxes, masks)
        sparse = [jnp.zeros((count, 0, self.no_mask_embed.features), self.dtype)]
        if points is not None and labels is not None:
            if boxes is None:
                points = jnp.concatenate([points, jnp.zeros((count, 1, 2), points.dtype)], axis=1)
                labels = jnp.concatenate([labels, jnp.full((count, 1), PADDING_LABEL, labels.dtype)], axis=1)
            sparse.append(self.embed_points(points, labels))
        if boxes is not None:
            corners = jnp.broadcast_to(jnp.array([[2, 3]]), (count, 2))
            sparse.append(self.embed_points(boxes.reshape(count, 2, 2), corners))
        no_mask = self.no_mask_embed.embedding[...].reshape(1, 1, 1, -1)
        dense = no_mask if masks is None else self.embed_masks(masks)
        return jnp.concatenate(sparse, axis=1), dense

    def _count(self, points: Array | None, labels: Array | None, boxes: Array | None, masks: Array | None) -> int:
        """Number of prompts, after checking that all shapes agree on it."""
        given = [x for x in (points, labels, boxes, masks) if x is not None]
        if not given or (points is None) != (labels is None):
            raise InputError("SAM 2 prompts: give points together with labels, or boxes, or masks")
        count = given[0].shape[0] if given[0].ndim else 0
        number = labels.shape[-1] if labels is not None and labels.ndim == 2 else 0
        side = 4 * self.embedding_size
        for name, x, shape in (
            ("points", points, (count, number, 2)),
            ("labels", labels, (count, number)),
            ("boxes", boxes, (count, 4)),
            ("masks", masks, (count, side, side)),
        ):
            if x is not None and x.shape != shape:
                raise InputError(f"SAM 2 prompts: expected {name} {list(shape)}, found {list(x.shape)}")
        return count
