"""`ntt-jax memory`: turn the references into one prototype per class."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ntt_jax
from ntt_jax.cli import models, options
from ntt_jax.cli.progress import Progress

if TYPE_CHECKING:
    from ntt_jax.coco import CocoDataset
    from ntt_jax.sampling import ReferenceSet

EPILOG = """\
example:
  ntt-jax memory --dinov2 dinov2_vitl14.safetensors --annotations instances_train2017.json --images train2017 \\
                 --references references.json --out memory.safetensors

--references is the file that `ntt-jax sample` wrote, or a reference pickle of the original PyTorch code.
memory.safetensors is small (no image is in it) and belongs to the DINOv2 checkpoint it was made with."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "memory", run, "turn the references into one prototype per class", EPILOG)
    options.add_dinov2(parser)
    options.add_dataset(parser)
    parser.add_argument(
        "--references", type=Path, required=True, metavar="references.json", help="which annotations are references"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="memory.safetensors", help="file to write")
    options.add_compute(parser)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_file(args.dinov2, "--dinov2")
    options.check_annotations(args.annotations, "--annotations")
    options.check_folder(args.images, "--images")
    options.check_file(args.references, "--references")
    options.check_output_file(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    from ntt_jax.datasets import load_dataset

    dataset = load_dataset(args.annotations)
    build(args, dataset, args.images, load(args.references, dataset), args.out)


def load(path: Path, dataset: "CocoDataset") -> "ReferenceSet":
    """Read a reference file, ours or upstream's pickle (recognised by its first byte or its name)."""
    from ntt_jax.files import read_bytes
    from ntt_jax.sampling import MAX_REFERENCE_BYTES, parse_references
    from ntt_jax.upstream_references import parse_upstream_references

    data = read_bytes(path, max_bytes=MAX_REFERENCE_BYTES, what="reference file")
    if data.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return parse_upstream_references(data, path, dataset)
    return parse_references(data, path)


def build(
    args: argparse.Namespace, dataset: "CocoDataset", images: Path, references: "ReferenceSet", out: Path
) -> None:
    """Encode the references with `--dinov2` and write the memory file `out`."""
    from ntt_jax.memory_file import MemoryBank, save_memory

    encoder, source_sha256 = models.read_encoder(args.dinov2)
    provenance = describe(args, dataset, references, source_sha256)
    devices = options.start_jax(args)

    from ntt_jax.builder import ReferenceEncoder, build_memory
    from ntt_jax.loading import load_dinov2

    total = sum(len(chosen.references) for chosen in references.classes)
    dinov2 = load_dinov2(args.dinov2, args.dtype)
    compiled = ReferenceEncoder(dinov2, batch_size=args.batch_size, devices=devices)
    with Progress("memory", total, unit="references") as progress:
        memory = build_memory(compiled, dataset, images, references, step=progress.step)
    names, ids = zip(*((chosen.name, chosen.category_id) for chosen in references.classes), strict=True)
    save_memory(out, MemoryBank(memory, names, ids, encoder, provenance))
    print(f"{out}: {len(names)} classes, {total} references, {encoder.name}")
    for chosen in references.classes:
        print(f"  {chosen.name}: {len(chosen.references)}")


def describe(
    args: argparse.Namespace, dataset: "CocoDataset", references: "ReferenceSet", encoder_sha256: str
) -> dict[str, Any]:
    """Where a memory comes from: the same inputs give the same description."""
    return {
        "encoder_sha256": encoder_sha256,
        "annotations_sha256": dataset.sha256,
        "references": {
            str(chosen.category_id): [[r.image_id, r.annotation_id] for r in chosen.references]
            for chosen in references.classes
        },
        "shots": references.shots,
        "seed": references.seed,
        "dtype": args.dtype,
        "tool": f"ntt-jax {ntt_jax.__version__}",
    }
