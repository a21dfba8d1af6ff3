"""`ntt-jax demo`: the whole method on made-up scenes, without any download."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import options

EPILOG = """\
example:
  ntt-jax demo --out demo_out

The demo draws scenes of classes that no model has seen, converts the small trained checkpoints that come with the
package, chooses references, builds the memory, evaluates, prints AP at each number of shots and writes pictures."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "demo", run, "show the whole method on made-up scenes; nothing is downloaded", EPILOG
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for pictures and results")
    parser.add_argument(
        "--seed",
        type=options.whole_number(0, 2**31 - 1),
        default=0,
        metavar="N",
        help="seed of the scenes (default: 0)",
    )
    parser.add_argument(
        "--scenes",
        type=options.whole_number(1, 10**5),
        default=40,
        metavar="N",
        help="scenes to evaluate on (default: 40)",
    )
    parser.add_argument(
        "--shots", type=shots, default=(1, 5), metavar="LIST", help="references per class, e.g. 1,5 (default: 1,5)"
    )
    options.add_compute(parser, batch_size=4)


def shots(text: str) -> tuple[int, ...]:
    """An argparse type: whole numbers separated by commas."""
    return tuple(dict.fromkeys(options.whole_number(1, 1000)(part) for part in text.split(",")))


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    options.make_output_folder(args.out)
    devices = options.start_jax(args)
    from ntt_jax.demo.demo import run_demo

    run_demo(
        args.out,
        seed=args.seed,
        scenes=args.scenes,
        shots=args.shots,
        dtype=args.dtype,
        batch_size=args.batch_size,
        devices=devices,
    )
