"""`ntt-jax serve`: detections of a memory for other programs, at an address."""

import argparse
from typing import Any

from ntt_jax.cli import options
from ntt_jax.cli.app import add_address, listen, segmenter_options
from ntt_jax.config import arithmetic
from ntt_jax.text import show_lines

EPILOG = """\
examples:
  ntt-jax serve --memory memory.safetensors --token-file token.txt
  curl -H "Authorization: Bearer $(cat token.txt)" -F image=@photo.jpg http://127.0.0.1:8766/v1/predict

/docs shows the address's functions, /v1/openapi.json describes them for programs, /v1/health and /v1/metrics are for
monitoring. References that are added there last as long as the program."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "serve", run, "detections for other programs, at an address", EPILOG)
    options.add_paths(parser, "sam2", "dinov2", "memory")
    add_address(parser, port=8766)
    parser.add_argument(
        "--max-waiting",
        type=options.whole_number(1, 100_000),
        default=64,
        metavar="N",
        help="images that may wait; further requests are answered with 429 (default: 64)",
    )
    parser.add_argument(
        "--timeout",
        type=options.whole_number(1, 86_400),
        default=120,
        metavar="SECONDS",
        help="after which a request that has no answer gets 503 (default: 120)",
    )
    options.add_detection(parser)
    options.add_compute(parser, cores=True)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    options.check_paths(args, "sam2", "dinov2", "memory")
    address = listen(args)
    options.resolve_weights(args)
    chosen = segmenter_options(args, options.compute(args))
    from ntt_jax.app import running
    from ntt_jax.loading import load_dinov2, load_sam2
    from ntt_jax.segmenter.segmenter import Segmenter

    args.resume_hint = "no request is being answered any more"
    dtype = arithmetic(args.dtype)[0]
    segmenter = Segmenter.load(args.memory, load_sam2(args.sam2, dtype), load_dinov2(args.dinov2, dtype), **chosen)
    with running.service(segmenter, address, limit=args.max_waiting, seconds=float(args.timeout)) as service:
        running.run(
            service,
            address,
            started=lambda: show_lines(
                f"serving at {address.url}/v1 with token {address.token}  (Ctrl-C ends)\n"
                f"what it can do: {address.url}/?token={address.token}"
            ),
        )
