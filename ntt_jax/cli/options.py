"""Arguments that several commands share: how they are described, checked, and turned into what the package takes.

The checks here need no JAX, so a mistyped path or number is answered at once.
"""

import argparse
import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntt_jax.cli.detection_options import add_detection as add_detection
from ntt_jax.cli.detection_options import add_proposals as add_proposals
from ntt_jax.cli.detection_options import detect_config as detect_config
from ntt_jax.cli.tile_options import add_tiles as add_tiles
from ntt_jax.cli.tile_options import tile_config as tile_config
from ntt_jax.config import DTYPES
from ntt_jax.errors import InputError
from ntt_jax.files import check_output, check_private, show_path
from ntt_jax.hub.names import DEFAULT_DINOV2, DEFAULT_SAM2, parse
from ntt_jax.images.remote import location
from ntt_jax.runs.paths import check_file as check_file
from ntt_jax.runs.paths import check_folder as check_folder
from ntt_jax.runs.paths import check_input
from ntt_jax.runs.paths import make_output_folder as make_output_folder
from ntt_jax.text import number_in

CACHE_OFF = "none"


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], help: str, epilog: str) -> Any:
    """Add the command `name` to the parser: `help` in one line, `epilog` with examples, `run` to be called."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"\s*[+-]?\d{1,30}\s*", text, re.ASCII) else None  # int() also takes 1_0
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return value

    return parse


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = number_in(text)
    if value is None or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return value


_PATHS = {
    "sam2": ("W", "SAM 2: a name (`ntt-jax weights list`), an id of the Hugging Face Hub, or any checkpoint"),
    "dinov2": ("W", "the encoder, DINOv2 or DINOv3, likewise"),
    "memory": ("memory.safetensors", "file that `ntt-jax memory` wrote"),
    "references": ("references.json", "which annotations are references"),
    "annotations": (
        "A.json",
        "annotations of the images: COCO or LVIS (JSON) or a list of VOC images (VOC2007/ImageSets/Main/test.txt)",
    ),
    "images": ("DIR", "folder of the images that --annotations names"),
    "reference_annotations": ("TRAIN.json", "annotations among which the references are chosen"),
    "reference_images": ("DIR", "folder of the images that --reference-annotations names (default: --images)"),
}


_WEIGHTS = {"sam2": DEFAULT_SAM2, "dinov2": DEFAULT_DINOV2}


def add_paths(parser: Any, *names: str, required: bool = True, note: str = "", remote: bool = False) -> None:
    """Options that name a file or folder and mean the same in every command.

    note: added to their help. remote: folders of images may be addresses.
    """
    for name in names:
        metavar, text = _PATHS[name]
        option = f"--{name.replace('_', '-')}"
        if name in _WEIGHTS:
            default = _WEIGHTS[name]
            parser.add_argument(option, default=default, metavar=metavar, help=f"{text} (default: {default}){note}")
            continue
        there = remote and name.endswith("images")
        more = ", or its address: s3://, https://, ..." if there else ""
        kind = location if there else Path
        parser.add_argument(option, type=kind, required=required, metavar=metavar, help=text + more + note)


def add_exif(parser: Any) -> None:
    """`--exif`: how photos with an orientation tag are read."""
    parser.add_argument(
        "--exif",
        choices=("upright", "raw"),
        default="upright",
        help="photos with an EXIF orientation: upright, as viewers and annotation tools show them (as stored where the "
        "annotations fit only the stored pixels), or raw, always as stored (default: upright)",
    )


def check_paths(args: argparse.Namespace, *names: str) -> None:
    """Raise `InputError` unless what these options name, if they were given, is a readable file or folder."""
    for name in names:
        path = getattr(args, name)
        if path is not None:
            check_path(path, name)


def check_path(path: Any, name: str) -> None:
    """The same for one option, written with underscores: a folder of images, annotations, or another file."""
    if name in _WEIGHTS:
        check_weights(path, name)
    else:
        check_input(path, name)


def check_weights(value: str | Path, name: str) -> None:
    """Raise `InputError` unless `--sam2` or `--dinov2` (`name`) is a name, a Hub id or an existing checkpoint."""
    try:
        found = parse(value, name)
    except InputError as error:
        raise InputError(f"--{name}: {error}") from None
    if isinstance(found, Path) and not found.is_dir():
        check_file(found, f"--{name}")


def resolve_weights(args: argparse.Namespace) -> None:
    """Put in place of `--sam2` and `--dinov2`, where they were given, the converted file that they stand for.

    That may download and convert; afterwards they are paths. Raises `InputError` with the way out.
    """
    from ntt_jax.hub import resolve

    hint = getattr(args, "resume_hint", None)
    args.resume_hint = "what has arrived of the weights is kept; the same command goes on from there"
    for name in _WEIGHTS:
        if (value := getattr(args, name, None)) is not None:
            try:
                setattr(args, name, resolve(value, name))
            except InputError as error:
                raise InputError(f"--{name}: {error}") from None
    if hint is None:
        vars(args).pop("resume_hint")
    else:
        args.resume_hint = hint


def add_compute(parser: Any, *, batch_size: int = 1, batches: bool = True, cores: bool = False) -> None:
    """How the models run: `--dtype`, `--batch-size` with its default, `--devices`, `--compilation-cache`.

    batches: False for work on one image at a time, by one device: without `--batch-size` and `--devices`. cores: with
    `--cores`, for commands that segment.
    """
    group = parser.add_argument_group("how it is computed")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="arithmetic of the models; tensorfloat32 (NVIDIA GPUs) and bfloat16 are faster on accelerators and less "
        "exact (default: float32)",
    )
    if batches:
        group.add_argument(
            "--batch-size",
            type=whole_number(1, 4096),
            default=batch_size,
            metavar="N",
            help=f"images that each device works on at once; more is faster on accelerators (default: {batch_size})",
        )
        group.add_argument(
            "--devices",
            type=whole_number(1, 2**16),
            metavar="N",
            help="how many of the visible devices to use (default: all)",
        )
    else:
        parser.set_defaults(devices=1)
    parser.set_defaults(divide_points=cores)
    if cores:
        group.add_argument(
            "--cores",
            type=whole_number(1, 2**10),
            metavar="N",
            help="without an accelerator: CPU cores that share the points of every image (default: all)",
        )
    else:
        parser.set_defaults(cores=None)  # the same division, so that `memory` computes what `run` does, to the bit
    group.add_argument(
        "--compilation-cache",
        default=None,
        metavar="DIR",
        help=f"folder of compiled programs, which make the next start quick; {CACHE_OFF!r} keeps none "
        "(default: ntt-jax/xla in $XDG_CACHE_HOME or ~/.cache)",
    )


def add_ray(parser: Any) -> None:
    """`--ray`."""
    parser.add_argument_group("several machines").add_argument(
        "--ray",
        metavar="ADDRESS",
        help="let the workers of a Ray cluster run the models: its address, 'auto' (the cluster that this machine is "
        "part of) or 'local' (workers on this machine); see docs/parallel.md",
    )


def check_detection(args: argparse.Namespace) -> None:
    """Raise `InputError` for rules or proposals that cannot work; make the folder that the detections go to."""
    detect_config(args)
    if args.proposals is not None:
        check_file(args.proposals, "--proposals")
    make_output_folder(args.out)


def check_output_file(path: Path, option: str = "--out") -> None:
    """Raise `InputError` unless a file can be written at `path`, before the work that would fill it begins."""
    try:
        check_output(path)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{option}: no permission to write in {path.parent}")


def start_jax(args: argparse.Namespace) -> list[Any]:
    """Start JAX as the options of `add_compute` say and return the devices to use.

    Without an accelerator that is one, which stands for all cores; `devices.core_devices` has one for each of them.

    Raises `InputError` when there are fewer devices than asked for or the cache folder is not ours alone.
    """
    if getattr(args, "ray", None) is not None and args.devices is not None:
        raise InputError("--devices: is of one machine; with --ray every worker takes one GPU, or CPU cores (--cores)")
    cache = _cache_folder(args.compilation_cache)
    import jax

    from ntt_jax.compiled.devices import core_devices

    usual_jax()

    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if getattr(args, "ray", None) is not None:  # the accelerators of this machine are for workers
        jax.config.update("jax_platforms", "cpu")
    divide_cpu(args.cores)
    devices = jax.local_devices() if core_devices() is None else jax.local_devices()[:1]
    if args.devices is None:
        return devices
    if args.devices > len(devices):
        kind = devices[0].platform.upper()
        raise InputError(f"--devices: {args.devices} asked for, but JAX sees {len(devices)} ({kind})")
    return devices[: args.devices]


def usual_jax() -> None:
    """Numbers as the method was published with, whatever the environment says for other work (`JAX_ENABLE_X64`)."""
    import jax

    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")


def divide_cpu(cores: int | None) -> None:
    """Let JAX see `cores` cores of the CPU, or all of them, as a device each, unless somebody has set their number.

    Only before the first array is made, for instance by reading a memory; afterwards nothing happens.
    """
    from ntt_jax.compiled.devices import available_cores, devices_are_set, use_all_cores

    usual_jax()

    cores = available_cores() if cores is None else cores
    if cores > 1 and not devices_are_set():
        with contextlib.suppress(InputError):  # JAX runs already
            use_all_cores(cores)


def compute(args: argparse.Namespace) -> Any:
    """Start JAX (`start_jax`) and return how the models run, a `runs.Compute`, as the options of `add_compute` say."""
    devices = start_jax(args)
    from ntt_jax.compiled.devices import core_devices
    from ntt_jax.runs.models import Compute

    cores = core_devices() if args.divide_points else None
    batch_size, divide = getattr(args, "batch_size", 1), "images" if cores is None else "points"
    return Compute(args.dtype, batch_size, cores or devices, divide, getattr(args, "ray", None))


def _cache_folder(option: str | None) -> Path | None:
    """The folder of the compilation cache, made if needed; None when switched off or the default cannot be made.

    What lies there is loaded as machine code, so nobody else may have placed anything there (`check_private`).
    """
    if option == CACHE_OFF:
        return None
    base = os.environ.get("XDG_CACHE_HOME", "")
    default = (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "ntt-jax" / "xla"
    folder = default if option is None else Path(option)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        exposed = check_private(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write")
    except (OSError, ValueError, RuntimeError) as error:
        if option is None:
            return None
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--compilation-cache: cannot use {option!r}: {reason}") from None
    if exposed is not None:
        raise InputError(
            f"--compilation-cache: {show_path(folder)}: {exposed}, and what lies there is run as a program; name a new "
            f"folder that is yours alone, or give {CACHE_OFF!r}"
        )
    return folder
