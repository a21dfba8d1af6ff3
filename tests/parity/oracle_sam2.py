"""Meta's own SAM 2 modules in any of our configurations, filled with the recipe's weights. Needs torch and `sam2`."""

import numpy as np
import torch
from recipe import recipe
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import TwoWayTransformer

from ntt_jax.config import Sam2Config


class ImagePath(torch.nn.Module):
    """What `SAM2Base` builds for the image path, under the same names, with the numbers of the published yaml files.

    `seed` is the recipe's; None leaves the weights as they are made.
    """

    def __init__(self, config: Sam2Config, seed: int | None = 0):
        super().__init__()
        hiera, dim, size = config.hiera, config.d_model, config.embedding_size
        trunk = Hiera(
            embed_dim=hiera.embed_dim,
            num_heads=hiera.num_heads,
            stages=hiera.stages,
            global_att_blocks=hiera.global_att_blocks,
            window_spec=hiera.window_spec,
            window_pos_embed_bkg_spatial_size=hiera.window_pos_embed_bkg_spatial_size,
        )
        neck = FpnNeck(
            position_encoding=PositionEmbeddingSine(dim),
            d_model=dim,
            backbone_channel_list=list(hiera.stage_dims[::-1]),
            fpn_top_down_levels=list(config.fpn_top_down_levels),
            fpn_interp_model="nearest",
        )
        self.no_mem_embed = torch.nn.Parameter(torch.zeros(1, 1, dim))
        self.image_encoder = ImageEncoder(trunk, neck, scalp=1)
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=dim,
            image_embedding_size=(size, size),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_in_chans,
        )
        self.sam_mask_decoder = MaskDecoder(
            num_multimask_outputs=config.num_multimask_outputs,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=dim,
                mlp_dim=config.decoder_mlp_dim,
                num_heads=config.decoder_num_heads,
                attention_downsample_rate=config.attention_downsample_rate,
            ),
            transformer_dim=dim,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_hidden_dim,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
        )
        self.eval()
        if seed is not None:
            for name, tensor in self.state_dict().items():
                tensor.copy_(torch.from_numpy(recipe(name, tensor.shape, seed)))

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images `[B, H, W, 3]` -> every block and level, channels-last, under the names of `Sam2.forward_image`."""
        outputs: dict[str, np.ndarray] = {}
        trunk = self.image_encoder.trunk
        hooks = [
            block.register_forward_hook(lambda _m, _i, y, name=f"block{index}": outputs.update({name: y.numpy()}))
            for index, block in enumerate(trunk.blocks)
        ]
        hooks.append(trunk.blocks[0].register_forward_pre_hook(lambda _m, x: outputs.update(patch_embed=x[0].numpy())))
        maps = trunk(to_torch(images))
        for hook in hooks:
            hook.remove()
        levels = self.image_encoder.neck(maps)[0]
        outputs |= {f"stage{index}": to_numpy(x) for index, x in enumerate(maps)}
        outputs |= {f"fpn{index}": to_numpy(x) for index, x in enumerate(levels)}
        outputs["high_res0"] = to_numpy(self.sam_mask_decoder.conv_s0(levels[0]))
        outputs["high_res1"] = to_numpy(self.sam_mask_decoder.conv_s1(levels[1]))
        return outputs

    @torch.no_grad()
    def decode(self, embedding, high_res, points=None, labels=None, boxes=None, masks=None) -> dict[str, np.ndarray]:
        """One image's features (channels-last, batch axis of 1) and prompts -> `Sam2.forward_sam_heads`'s names."""
        sparse, dense = self.sam_prompt_encoder(
            None if points is None else (torch.from_numpy(points), torch.from_numpy(labels)),
            None if boxes is None else torch.from_numpy(boxes),
            None if masks is None else torch.from_numpy(masks)[:, None],
        )
        outputs = {"sparse": sparse.numpy(), "dense": to_numpy(dense)}
        decoder = self.sam_mask_decoder

        def keep_layer(name):
            def hook(_module, _inputs, result):
                outputs.update({f"{name}_queries": result[0].numpy(), f"{name}_keys": result[1].numpy()})

            return hook

        hooks = [
            layer.register_forward_hook(keep_layer(f"layer{index}"))
            for index, layer in enumerate(decoder.transformer.layers)
        ]
        # The last activation's output is the upscaled embedding: GELU objects of the Sequential are called one by one.
        hooks.append(
            decoder.output_upscaling[4].register_forward_hook(
                lambda _m, _i, y: outputs.update(upscaled_embedding=to_numpy(y))
            )
        )
        logits, ious, tokens, score = decoder.predict_masks(
            image_embeddings=to_torch(embedding),
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=True,
            high_res_features=[to_torch(x) for x in high_res],
        )
        for hook in hooks:
            hook.remove()
        return outputs | {
            "logits": logits.numpy(),
            "predicted_ious": ious.numpy(),
            "mask_tokens": tokens.numpy(),
            "object_score_logits": score.numpy(),
        }


def to_torch(x) -> torch.Tensor:
    """Channels-last array -> contiguous channels-first tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """Channels-first tensor -> channels-last array."""
    return np.moveaxis(x.numpy(), 1, -1)
