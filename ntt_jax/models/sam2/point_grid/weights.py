"""`GridWeights`: what the module `grid` needs of a mask decoder's parameters, whatever the image and the points.

The notation is that of `grid`. A product of two projections that follow each other is made here, once: what a token
adds to the image passes through its values, d numbers for each head, so `[d, C] x [C, o]` matrices are multiplied for
the heads instead of `[K, C] x [C, o]` for every point.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from ntt_jax.models.platform import on_cpu
from ntt_jax.models.sam2.mask_decoder import MaskDecoder


class GridWeights:
    """Views of the parameters of a `MaskDecoder` of depth 2, and products of them; float32.

    To be made inside a jitted function, outside its loops. Rows are `[I, C]` or, of both layers, `[2 I, C]`: what the
    values of an image-to-token attention become in the image tokens. `*_rows`: these rows in a projection that follows.
    """

    def __init__(self, decoder: MaskDecoder):
        self.decoder = decoder
        self.layer0, self.layer1 = decoder.transformer.layers
        self.final = decoder.transformer.final_attn_token_to_image
        self.heads = self.final.num_heads
        self.dtype = self.final.q_proj.kernel.dtype
        self.up: Any = decoder.output_upscaling
        scale, bias = (lambda norm: norm.scale[...][None]), (lambda norm: norm.bias[...][None])
        # Per-channel vectors as rows [1, C].
        self.g1, self.b1 = scale(self.layer0.norm4), bias(self.layer0.norm4)
        self.g2, self.b2 = scale(self.layer1.norm4), bias(self.layer1.norm4)
        self.epsilon = self.layer0.norm4.epsilon
        t2i, i2t = self.layer1.cross_attn_token_to_image, self.layer1.cross_attn_image_to_token
        self.d = centre(self.b1 + bias_of(i2t.out_proj))
        self.up_kernel = self._up_kernel()  # [C, 4 C / 4]

        self.out0 = centre(kernel_of(self.layer0.cross_attn_image_to_token.out_proj))
        self.out1 = centre(kernel_of(i2t.out_proj))
        self.gram0 = _product(self.out0, self.out0.T)
        rows = self.out0 * self.g1  # in layer 1
        self.key1_rows = _product(rows, kernel_of(t2i.k_proj))
        self.value1_rows = _product(rows, kernel_of(t2i.v_proj))
        self.value1_b1 = _product(self.b1, kernel_of(t2i.v_proj)) + bias_of(t2i.v_proj)
        self.query1_rows = _product(rows, kernel_of(i2t.q_proj))
        self.out0_1 = centre(rows)
        rows = jnp.concatenate([self.out0_1, self.out1])  # after it
        self.gram = _product(rows, rows.T)
        self.d_rows = _product(rows, self.d.T)
        rows, d = rows * self.g2, self.d * self.g2
        self.key2_rows, self.key2_d = (_product(x, kernel_of(self.final.k_proj)) for x in (rows, d))
        self.value2_rows, self.value2_d = (_product(x, kernel_of(self.final.v_proj)) for x in (rows, d))
        self.value2_b2 = _product(self.b2, kernel_of(self.final.v_proj)) + bias_of(self.final.v_proj)
        self.upscaled_rows, self.upscaled_d, self.upscaled_b2 = (
            _product(x, self.up_kernel) for x in (rows, d, self.b2)
        )

    def _up_kernel(self) -> Array:
        """The first transposed convolution, its columns (row, column, channel).

        Centred over the channels of each sub-pixel: the layer norm that follows then has nothing to subtract.
        """
        kernel = self.up[0].kernel[...].astype(jnp.float32).transpose(2, 0, 1, 3)
        return centre(kernel).reshape(kernel.shape[0], -1)

    def dot(self, spec: str, *operands: Array) -> Array:
        """Product of operands rounded to the compute dtype, accumulated and returned in float32."""
        return jnp.einsum(spec, *self._operands(*operands), preferred_element_type=jnp.float32)

    def dot_upscaled(self, spec: str, *operands: Array) -> Array:
        """`dot` for the pixels of the upscaling, stored in the compute dtype as the next product takes them.

        They are the largest arrays here, and writing them in float32 takes a GPU longer than the product. For a CPU,
        `_operands` has float32 already.
        """
        operands = self._operands(*operands)
        return jnp.einsum(spec, *operands, preferred_element_type=operands[0].dtype).astype(jnp.float32)

    def _operands(self, *operands: Array) -> tuple[Array, ...]:
        """Operands of a product, rounded to the compute dtype."""
        operands = tuple(x.astype(self.dtype) for x in operands)
        if on_cpu():  # which has no product of bfloat16 into float32
            operands = tuple(x.astype(jnp.float32) for x in operands)
        return operands


def centre(x: Array) -> Array:
    """x minus its mean over the last axis."""
    return x - jnp.mean(x, axis=-1, keepdims=True)


def kernel_of(linear: Any) -> Array:
    """[in, out] in float32."""
    return linear.kernel[...].astype(jnp.float32)


def bias_of(linear: Any) -> Array:
    """[1, out] in float32."""
    return linear.bias[...].astype(jnp.float32)[None]


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")
