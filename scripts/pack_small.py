"""Turn the weights of scripts/train_small.py into the PyTorch checkpoints that the package ships.

python scripts/pack_small.py out/sam2 out/dinov2 --note "trained with ..."
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import nnx

from ntt_jax.config import Sam2Config, from_dict
from ntt_jax.demo.training.loop import load_weights
from ntt_jax.models.encoder import encoder_class
from ntt_jax.models.sam2.sam2_base import Sam2
from weight_port import export_state_dict

ASSETS = Path(__file__).resolve().parents[1] / "ntt_jax" / "assets"
LARGEST = 8_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs=2, metavar="DIR", help="--out folders of scripts/train_small.py")
    parser.add_argument("--note", required=True, help="how they were made: command, commit, seed, device")
    args = parser.parse_args()
    ASSETS.mkdir(exist_ok=True)
    for folder in args.folders:
        config = from_dict(json.loads((folder / "config.json").read_text()))
        is_sam2 = isinstance(config, Sam2Config)
        kind: Any = Sam2 if is_sam2 else encoder_class(config)
        model = kind(config, rngs=nnx.Rngs(0))
        tensors = export_state_dict(load_weights(folder / "weights.npz", model))
        half = {name: torch.from_numpy(array.astype(np.float16)) for name, array in tensors.items()}
        torch.save({"model": half} if is_sam2 else half, ASSETS / f"{config.name}.pt")
        (ASSETS / f"{config.name}.json").write_text((folder / "config.json").read_text())
    (ASSETS / "NOTE.txt").write_text(args.note + "\n")
    total = sum(path.stat().st_size for path in ASSETS.glob("*.pt"))
    print(f"{total} bytes")
    if total >= LARGEST:
        raise SystemExit(f"the checkpoints are {total} bytes together; at most {LARGEST} are shipped")


if __name__ == "__main__":
    main()
