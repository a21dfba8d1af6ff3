"""`ntt-jax import-memory`: a memory checkpoint of the original PyTorch code as a memory file."""

import argparse
from pathlib import Path
from typing import Any

import ntt_jax
from ntt_jax.cli import models, options
from ntt_jax.errors import InputError
from ntt_jax.text import show

EPILOG = """\
example:
  ntt-jax import-memory memory_postprocessed.ckpt --dinov2 dinov2_vitl14 \\
                        --annotations instances_train2017.json --references few_shot_30shot_seed33.pkl \\
                        --out memory.safetensors

The checkpoint holds no class names: they come from --references (the pickle that it was made from, or a reference file)
or from --classes. Nothing in the checkpoint is executed. The command prints classes with fewer references,
means that differ when they are computed again from its features and masks, and how it compares with --compare, a memory
that `ntt-jax memory` made."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "import-memory", run, "turn a memory.ckpt of the original PyTorch code into a memory file", EPILOG
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="MEMORY.ckpt", help="the file that --out_path named in the original code"
    )
    options.add_paths(parser, "dinov2", "annotations")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument(
        "--references", type=Path, metavar="REFERENCES", help="pickle or references.json that it was made of"
    )
    chosen.add_argument("--classes", metavar="LIST", help="its classes, as in `ntt-jax sample`")
    parser.add_argument(
        "--compare", type=Path, metavar="memory.safetensors", help="a memory of the same classes to compare with"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="memory.safetensors", help="file to write")


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_file(args.checkpoint, "MEMORY.ckpt")
    options.check_paths(args, "dinov2", "annotations", "references", "compare")
    options.check_output_file(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    from ntt_jax.datasets.dataset import select_classes
    from ntt_jax.memory.bank import MemoryBank, load_memory, save_memory
    from ntt_jax.runs.inputs import read_references
    from ntt_jax.runs.models import read_encoder
    from ntt_jax.upstream.memory import compare_memories, convert_upstream_memory, read_upstream_memory
    from weight_port.files import sha256

    encoder, source_sha256, weights = read_encoder(args.dinov2)
    dataset = models.read_dataset(args.annotations)
    provenance: dict[str, Any] = {
        "encoder_sha256": source_sha256,
        "encoder_weights": weights(),
        "annotations_sha256": dataset.sha256,
        "imported_sha256": sha256(args.checkpoint),
        "tool": f"ntt-jax {ntt_jax.__version__}",
    }
    if args.references is not None:
        references = read_references(args.references, dataset)
        ids, names = zip(*((chosen.category_id, chosen.name) for chosen in references.classes), strict=True)
        provenance["references"] = {
            str(chosen.category_id): [[r.image_id, r.annotation_id] for r in chosen.references]
            for chosen in references.classes
        }
    else:
        ids, names = zip(*((c.id, c.name) for c in select_classes(dataset, args.classes)), strict=True)
    upstream = read_upstream_memory(args.checkpoint)
    made, remarks = convert_upstream_memory(upstream, names, encoder)
    if args.compare is not None:
        other = load_memory(args.compare)
        if other.category_ids != ids or other.encoder.embed_dim != encoder.embed_dim:
            raise InputError(f"--compare: {args.compare} is a memory of other classes or another encoder")
        remarks += [f"compared with {args.compare}:"]
        remarks += [
            f"{name}: {there} references there, {here} here"
            for name, there, here in zip(names, other.shots, made.shots.tolist(), strict=True)
            if there != here
        ]
        remarks += compare_memories(other.memory, made, names)
    save_memory(args.out, MemoryBank(made, names, ids, encoder, provenance))
    show(f"{args.out}: imported from {args.checkpoint}")
    for remark in remarks:
        show(f"  {remark}")
