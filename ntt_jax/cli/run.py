"""`ntt-jax run`: sample, memory and evaluate in one."""

import argparse
from typing import Any

from ntt_jax.cli import evaluate, memory, options, sample
from ntt_jax.cli.progress import Progress

EPILOG = """\
example:
  ntt-jax run --sam2 sam2_hiera_large --dinov2 dinov2_vitl14 \\
              --reference-annotations instances_train2017.json --reference-images train2017 \\
              --annotations instances_val2017.json --images val2017 \\
              --classes novel --shots 30 --seed 33 --out runs/30shot

RUN_DIR receives references.json, memory.safetensors, results.json and metrics.json, exactly as the three commands
write them one after the other. When stopped, the same command continues where it was."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "run", run, "sample, memory and evaluate in one", EPILOG)
    options.add_paths(parser, "sam2", "dinov2", "reference_annotations")
    options.add_paths(parser, "reference_images", required=False, remote=True)
    sample.add_choice(parser)
    memory.add_negatives(parser)
    options.add_paths(parser, "annotations", "images", remote=True)
    evaluate.add_run_folder(parser)
    evaluate.add_scorer(parser)
    options.add_exif(parser)
    options.add_detection(parser)
    options.add_proposals(parser)
    options.add_tiles(parser)
    options.add_compute(parser, cores=True)
    options.add_ray(parser)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "sam2", "dinov2", "reference_annotations", "annotations", "images", "reference_images")
    sample.check_choice(args)
    memory.check_negatives(args)
    options.check_detection(args)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    tiles = options.tile_config(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    from ntt_jax.runs.few_shot_job import run_few_shot

    args.resume_hint = f"what is finished is saved in {args.out}; the same command goes on from there"
    metrics = run_few_shot(
        args.out,
        sam2=args.sam2,
        dinov2=args.dinov2,
        reference_annotations=args.reference_annotations,
        reference_images=args.reference_images,
        choose=lambda sources: sample.choose(args, sources),
        annotations=args.annotations,
        images=args.images,
        negatives=args.negatives,
        negative_images=args.negative_images,
        config=options.detect_config(args),
        tiles=tiles,
        compute=compute,
        exif=args.exif,
        restart=args.restart,
        proposals=args.proposals,
        scorer=args.scorer,
        observer=Progress(),
        told=lambda bank: memory.report(args.out / "memory.safetensors", bank),
    )
    evaluate.report(args.out, metrics)
