"""The target pass written plainly on Meta's PyTorch modules: what `benchmark.py` measures against.

METHOD stage 3 as published: features upsampled to the mask grid, every candidate decoded and upscaled, masks compared
at full size. Settings are the fastest known for torch: no attention rollout, points in chunks, one product per class.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "parity")]

from oracle_dinov2 import build_meta, fill  # noqa: E402
from oracle_sam2 import ImagePath  # noqa: E402

from ntt_jax.config import DetectConfig, DinoV2Config, Sam2Config  # noqa: E402
from ntt_jax.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, resize_for_sam  # noqa: E402
from ntt_jax.images.rle import encode_masks  # noqa: E402


class TorchPass:
    """SAM 2 and DINOv2 of Meta's packages with the recipe's weights, and the steps between image and detections."""

    def __init__(self, sam2: Sam2Config, dinov2: DinoV2Config, config: DetectConfig, device: str, chunk: int = 64):
        self.config, self.device, self.chunk = config, device, chunk
        self.size, self.input_size, self.grid = sam2.image_size, dinov2.input_size, dinov2.grid
        self.sam2 = ImagePath(sam2)
        self.dinov2 = fill(build_meta(dinov2))
        # Before anything moves: the same tensors for the other engine.
        self.state_dicts = self.sam2.state_dict(), self.dinov2.state_dict()
        self.sam2.to(device)
        self.dinov2.to(device)
        self.dtype = torch.float32
        self._compiled: tuple[Any, ...] = ()
        self.use_compiled(False)
        line = torch.linspace(0, self.size - 1, config.points_per_side, dtype=torch.float64) + 0.5
        x, y = torch.meshgrid(line, line, indexing="ij")
        self.points = torch.stack([x, y], -1).reshape(-1, 1, 2).float().to(device)

    def use_compiled(self, yes: bool) -> None:
        """Whether everything with fixed shapes runs through `torch.compile`; compiled once, when first called."""
        if yes and not self._compiled:
            eager = self._encode_image, self._encode_patches, self._decode_chunk
            self._compiled = tuple(torch.compile(function) for function in eager)
        self.encode_image, self.encode_patches, self.decode_chunk = (
            self._compiled if yes else (self._encode_image, self._encode_patches, self._decode_chunk)
        )

    def autocast(self) -> Any:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def prepare(self, images: list[np.ndarray]) -> torch.Tensor:
        """Images `[H, W, 3]` uint8 -> `[B, 3, S, S]` in [0, 1] on the device."""
        resized = torch.from_numpy(np.stack([resize_for_sam(image, self.size) for image in images])).to(self.device)
        return resized.permute(0, 3, 1, 2).float() / 255

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor(IMAGENET_MEAN, device=x.device).reshape(1, 3, 1, 1)
        return (x - mean) / torch.tensor(IMAGENET_STD, device=x.device).reshape(1, 3, 1, 1)

    def _encode_image(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        encoder, decoder = self.sam2.image_encoder, self.sam2.sam_mask_decoder
        levels = encoder.neck(encoder.trunk(self._normalise(x)))[0]
        return levels[2], [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])]

    def _encode_patches(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, size=[self.input_size, self.input_size], mode="bicubic", align_corners=False)
        dinov2: Any = self.dinov2
        return dinov2.forward_features(self._normalise(x))["x_norm_patchtokens"]

    def _decode_chunk(self, embedding, high_res, points) -> tuple[torch.Tensor, torch.Tensor]:
        prompt: Any = self.sam2.sam_prompt_encoder
        labels = torch.ones(points.shape[:2], dtype=torch.int32, device=points.device)
        sparse, dense = prompt((points, labels), None, None)
        masks, ious, _, _ = self.sam2.sam_mask_decoder(
            embedding, prompt.get_dense_pe(), sparse, dense, True, True, high_res
        )
        best = ious.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        return masks[rows, best].float(), ious[rows, best].float()

    def decode(self, features: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """features: of one image."""
        embedding, high_res = features
        parts = [self.decode_chunk(embedding, high_res, points) for points in self.points.split(self.chunk)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def after(self, patches, logits, ious, prototypes, height: int, width: int) -> dict[str, torch.Tensor]:
        """Steps 5 to 10 for one image, in float32. patches `[1, g*g, C]`, prototypes `[K, C]`."""
        with torch.autocast(self.device, enabled=False):
            return self._after(patches, logits, ious, prototypes, height, width)

    def _after(self, patches, logits, ious, prototypes, height: int, width: int) -> dict[str, torch.Tensor]:
        config = self.config
        keep = ious > config.pred_iou_threshold
        logits, ious = logits[keep], ious[keep]
        side = logits.shape[-1]
        grid = patches.float().reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        dense = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)[0]
        masks = logits > 0
        area = masks.flatten(1).sum(1)
        logits, ious, masks, area = logits[area > 0], ious[area > 0], masks[area > 0], area[area > 0]
        objects = masks.flatten(1).float() @ dense.flatten(1).T / area[:, None]
        objects = F.normalize(objects, dim=1)
        scores, labels = (objects @ prototypes.T).clamp(min=0).max(1)
        order = ious.argsort(descending=True, stable=True)
        order = order[self._nms(_boxes(masks)[order], labels[order])][: config.max_candidates]
        order = order[scores[order] > 0]
        logits, scores, labels, objects = logits[order], scores[order], labels[order], objects[order]
        full = F.interpolate(logits[:, None], size=(height, width), mode="bilinear", antialias=True)[:, 0] > 0
        alive = full.flatten(1).any(1)
        full, scores, labels, objects = full[alive], scores[alive], labels[alive], objects[alive]
        decay = torch.ones_like(scores)
        for label in labels.unique():
            rows = (labels == label).nonzero()[:, 0]
            flat = full[rows].flatten(1).to(torch.float32)
            inside = (flat @ flat.T) / flat.sum(1)[:, None]
            weight = (objects[rows] @ objects[rows].T).clamp(0, 1)
            decay[rows] = torch.sqrt(1 - torch.tril(inside * weight, -1).max(1).values)
        scores = scores * decay
        best = scores.argsort(descending=True, stable=True)[: config.max_detections]
        full = full[best]
        return {"masks": full, "scores": scores[best], "labels": labels[best], "boxes": _boxes(full)}

    def _nms(self, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Greedy class-aware NMS on boxes already in order."""
        # On the host: a few hundred rows of dependent steps.
        b, classes = boxes.float().cpu().numpy(), labels.cpu().numpy()
        area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
        alive, kept = np.ones(len(b), bool), []
        for i in range(len(b)):
            if not alive[i]:
                continue
            kept.append(i)
            w = np.minimum(b[i, 2], b[i:, 2]) - np.maximum(b[i, 0], b[i:, 0])
            h = np.minimum(b[i, 3], b[i:, 3]) - np.maximum(b[i, 1], b[i:, 1])
            inter = np.maximum(w, 0) * np.maximum(h, 0)
            union = area[i] + area[i:] - inter
            alive[i:] &= ~((classes[i:] == classes[i]) & (inter > self.config.nms_iou_threshold * union) & (union > 0))
        return torch.tensor(kept, dtype=torch.int64, device=boxes.device)

    def whole(self, images: list[np.ndarray], prototypes: torch.Tensor) -> list[dict[str, Any]]:
        """Images, encoded together, to detections with COCO run lengths."""
        results = []
        with torch.inference_mode(), self.autocast():
            x = self.prepare(images)
            embedding, high_res = self.encode_image(x)
            patches = self.encode_patches(x)
            for i, image in enumerate(images):
                row = slice(i, i + 1)
                logits, ious = self.decode((embedding[row], [level[row] for level in high_res]))
                found = self.after(patches[row], logits, ious, prototypes, *image.shape[:2])
                result = {name: value.cpu().numpy() for name, value in found.items()}
                results.append(result | {"rles": encode_masks(result["masks"])})
        return results


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """Inclusive x1, y1, x2, y2 of masks `[n, h, w]` that are not empty."""
    height, width = masks.shape[1:]
    columns, rows = masks.any(1).int(), masks.any(2).int()
    first = torch.stack([columns.argmax(1), rows.argmax(1)], 1)
    last = torch.stack([width - 1 - columns.flip(1).argmax(1), height - 1 - rows.flip(1).argmax(1)], 1)
    return torch.cat([first, last], 1)
