"""`ntt-jax app`: a page on this machine, on which references are clicked and results looked at."""

import argparse
from pathlib import Path
from typing import Any

from ntt_jax.cli import models, options
from ntt_jax.config import arithmetic
from ntt_jax.errors import InputError
from ntt_jax.text import show

EPILOG = """\
examples:
  ntt-jax app holiday_photos
  ntt-jax app holiday_photos --sam2 sam2.1_hiera_tiny --dinov2 dinov2_vits14 --port 8800

Everything is kept in holiday_photos/ntt-jax as plain files: references.json and negatives.json (COCO), thresholds.json,
what was found, exports, and memory.safetensors, which the other commands take:
  ntt-jax segment more_photos --memory holiday_photos/ntt-jax/memory.safetensors --out found

The page is for this machine alone, and for whoever has the token in the printed address."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(commands, "app", run, "click references and see results, on a page", EPILOG)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the photos")
    options.add_paths(parser, "sam2", "dinov2")
    add_address(parser, port=8765)
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    options.add_detection(parser)
    options.add_compute(parser, cores=True)


def add_address(parser: Any, *, port: int) -> None:
    """`--host`, `--port`, `--token-file`."""
    group = parser.add_argument_group("address")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, reached from this machine alone; 0.0.0.0: from the network)",
    )
    group.add_argument(
        "--port",
        type=options.whole_number(0, 65535),
        default=port,
        metavar="N",
        help=f"port to listen on, 0 for any that is free (default: {port})",
    )
    group.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the token, at least 16 characters (default: a new one each time)",
    )


def listen(args: argparse.Namespace) -> Any:
    """`running.listen` as the options say, with what a wider address means. Raises `InputError`."""
    try:
        from ntt_jax.app import running
    except ImportError as error:
        raise InputError(f"{args.command}: `pip install 'ntt-jax[app]'` is needed ({error})") from None
    token = None
    if args.token_file is not None:
        from ntt_jax.files import read_bytes

        token = read_bytes(args.token_file, max_bytes=4096, what="file of a token").decode("ascii", "replace").strip()
        if len(token) < 16 or not token.isascii() or not token.replace("-", "").replace("_", "").isalnum():
            raise InputError("--token-file: expected at least 16 letters, digits, - and _")
    address = running.listen(args.host, args.port, token)
    if args.host not in running.LOCAL:
        models.warn(
            f"--host {args.host}: whoever reaches this machine and has the token can use it; the traffic is not "
            "encrypted, so put a server with TLS before it outside a network you trust"
        )
    return address


def segmenter_options(args: argparse.Namespace, compute: Any) -> dict[str, Any]:
    """Options of a `Segmenter` as `add_detection` and `options.compute` say. Starts JAX."""
    return {
        "config": options.detect_config(args),
        "batch_size": compute.batch_size,
        "devices": compute.devices,
        "matmul_precision": arithmetic(args.dtype)[1],
    }


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    options.check_folder(args.folder, "FOLDER")
    options.check_paths(args, "sam2", "dinov2")
    from ntt_jax.app.project import NAME
    from ntt_jax.images.photos import photos_of_folder

    photos_of_folder(args.folder, output=args.folder / NAME)  # that there is none is said before models are fetched
    address = listen(args)
    options.resolve_weights(args)
    compute = options.compute(args)
    chosen = segmenter_options(args, compute)
    from ntt_jax.app import running
    from ntt_jax.loading import load_dinov2, load_sam2

    args.resume_hint = "everything is in the project's folder; the same command goes on"
    dtype = arithmetic(args.dtype)[0]
    loaded = load_sam2(args.sam2, dtype), load_dinov2(args.dinov2, dtype)
    files = Path(args.sam2), Path(args.dinov2)
    with running.page(args.folder, *loaded, address, files=files, compute=compute, **chosen) as page:
        running.run(
            page,
            address,
            started=lambda: show(f"open {address.url}/?token={address.token}  (Ctrl-C ends)"),
            browser=None if args.no_browser else args.folder / NAME,
        )
