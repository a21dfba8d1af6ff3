"""Make start weights of the small models out of smaller checkpoints: `scripts/train_small.py --init` trains them on.

git show fa8a6d6:ntt_jax/assets/sam2_ntt_small.pt > old/sam2_ntt_small.pt      (so the .json, and DINOv2's two)
python scripts/grow_small.py old/sam2_ntt_small.pt init/sam2.npz --blocks 0 2 3 5 6 7 8 9
python scripts/grow_small.py old/dinov2_ntt_small.pt init/dinov2.npz --blocks 0 1 3 4 5 7

New blocks add nothing at first (SAM 2: the last kernels of their two branches are 0) or little (DINOv2: LayerScale
.05). Where the hidden layer of the mask decoder has become narrower, the units with the largest weights stay.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntt_jax.demo.training import dinov2, sam2
from ntt_jax.demo.training.loop import save_weights
from ntt_jax.loading import load_dinov2, load_sam2
from weight_port import convert

_SEED = 5
_LAYER_SCALE = 0.05


def arrays_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """Every array of a model by its `/`-joined names."""
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="checkpoint, with its configuration (.json) beside it")
    parser.add_argument("new", type=Path, help="weights to write, for --init")
    parser.add_argument(
        "--blocks", type=int, nargs="+", required=True, help="places of the old blocks in the new model"
    )
    args = parser.parse_args()
    given = json.loads(args.old.with_suffix(".json").read_text())
    is_sam2 = given["model"] == "sam2"
    with tempfile.TemporaryDirectory() as folder:
        convert(args.old, Path(folder) / "old.safetensors", given=given)
        old = arrays_of((load_sam2 if is_sam2 else load_dinov2)(Path(folder) / "old.safetensors"))
    model: Any = (sam2 if is_sam2 else dinov2).new_model(_SEED)

    moved = {}
    for name, array in old.items():
        parts = name.split("/")
        if "blocks" in parts:
            place = parts.index("blocks") + 1
            parts[place] = str(args.blocks[int(parts[place])])
        moved["/".join(parts)] = array
    start = {}
    for name, array in arrays_of(model).items():
        if name in moved:
            start[name] = moved[name]
        elif name.endswith("gamma"):
            start[name] = np.full_like(array, _LAYER_SCALE)
        else:
            start[name] = array * (not (is_sam2 and name.endswith(("attn/proj/kernel", "mlp/layers/1/kernel"))))
    if is_sam2:
        for layer in range(model.config.decoder_depth):
            hidden, last = (f"sam_mask_decoder/transformer/layers/{layer}/mlp/layers/{k}" for k in (0, 1))
            weight = np.linalg.norm(start[f"{hidden}/kernel"], axis=0) * np.linalg.norm(start[f"{last}/kernel"], axis=1)
            kept = np.sort(np.argsort(-weight)[: model.config.decoder_mlp_dim])
            start |= {f"{hidden}/{part}": start[f"{hidden}/{part}"][..., kept] for part in ("kernel", "bias")}
            start[f"{last}/kernel"] = start[f"{last}/kernel"][kept]

    state = nnx.state(model)
    for path, leaf in nnx.to_flat_state(state):
        array = start.pop("/".join(map(str, path)))
        if array.shape != leaf.shape:
            raise SystemExit(f"{path}: the old model has {array.shape}, the new one {leaf.shape}")
        leaf.set_value(jnp.asarray(array))
    args.new.parent.mkdir(parents=True, exist_ok=True)
    save_weights(args.new, state)


if __name__ == "__main__":
    main()
