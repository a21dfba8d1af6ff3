"""`ntt-jax run`: sample, memory and evaluate in one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import evaluate, memory, models, options, sample
from ntt_jax.errors import InputError

if TYPE_CHECKING:
    from ntt_jax.datasets.dataset import CocoDataset
    from ntt_jax.references.build import Negatives
    from ntt_jax.references.sampling import ReferenceSet

EPILOG = """\
example:
  ntt-jax run --sam2 sam2_hiera_large.safetensors --dinov2 dinov2_vitl14.safetensors \\
              --reference-annotations instances_train2017.json --reference-images train2017 \\
              --annotations instances_val2017.json --images val2017 \\
              --classes novel --shots 30 --seed 33 --out runs/30shot

RUN_DIR receives references.json, memory.safetensors, results.json and metrics.json, exactly as the three commands
write them one after the other. Stopped, the same command goes on where it was."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "run", run, "sample, memory and evaluate in one", EPILOG)
    options.add_paths(parser, "sam2", "dinov2", "reference_annotations")
    options.add_paths(parser, "reference_images", required=False)
    sample.add_choice(parser)
    memory.add_negatives(parser)
    options.add_paths(parser, "annotations", "images")
    evaluate.add_run_folder(parser)
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_compute(parser, cores=True)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "reference_annotations", "annotations", "images", "reference_images")
    sample.check_choice(args)
    memory.check_negatives(args)
    options.make_output_folder(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    options.divide_cpu(args.cores)
    from ntt_jax.references.sampling import load_references, save_references
    from ntt_jax.runs.folder import ADVICE
    from ntt_jax.runs.lock import FolderLock

    references_file, memory_file = args.out / "references.json", args.out / "memory.safetensors"
    with FolderLock(args.out) as lock:
        args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
        sources = models.read_dataset(args.reference_annotations)
        references = sample.choose(args, sources)
        if references_file.exists() and not args.restart:
            if load_references(references_file) != references:
                raise InputError(
                    f"{references_file}: made from another reference annotation file or with other --classes, --shots "
                    f"or --seed; {ADVICE}"
                )
        else:
            save_references(references_file, references)
        folder = args.reference_images or args.images
        negatives = memory.load_negatives(args, references, folder)
        if args.restart or not is_current(args, sources, references, negatives, memory_file):
            memory_file.unlink(missing_ok=True)
            memory.build(args, sources, folder, references, memory_file, negatives)
        evaluate.evaluate(args, lock, models.read_dataset(args.annotations), memory_file)


def is_current(
    args: argparse.Namespace,
    sources: "CocoDataset",
    references: "ReferenceSet",
    negatives: "Negatives | None",
    memory_file: Path,
) -> bool:
    """Whether an earlier start has made this memory; `InputError` if it has made another one."""
    if not memory_file.exists():
        return False
    from ntt_jax.memory.bank import load_memory
    from ntt_jax.runs.folder import ADVICE, differences

    _, source_sha256 = models.read_encoder(args.dinov2)
    made = load_memory(memory_file).provenance
    if changed := differences(made, memory.describe(args, sources, references, source_sha256, negatives)):
        raise InputError(f"{memory_file}: made with another {changed}; {ADVICE}")
    return True
