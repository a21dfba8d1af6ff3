"""`python -m weight_port convert | export | inspect`."""

import argparse
import collections
import contextlib
import os
import signal
import sys
from typing import Any, NoReturn

from ntt_jax.errors import InputError
from ntt_jax.files import describe, parse_json, read_bytes, show_path
from ntt_jax.text import show

INTERRUPTED = 130
_SHOWN_BESIDE = 12

_DESCRIPTION = """\
Weights of SAM 2, DINOv2 and DINOv3, from PyTorch or Hugging Face checkpoints to the one file that ntt-jax loads and
back.
Checkpoints from strangers are safe to open: nothing in them is executed."""

_EXAMPLES = """\
examples:
  python -m weight_port convert sam2.1_hiera_large.pt sam2.1_hiera_large.safetensors
  python -m weight_port convert dinov2_vitl14_pretrain.pth dinov2_vitl14.safetensors
  python -m weight_port convert facebook_dinov2-large/ dinov2_vitl14.safetensors     (a Hugging Face folder)
  python -m weight_port convert dinov3-vitl16-pretrain-lvd1689m/ dinov3_vitl16.safetensors               (likewise)
  python -m weight_port convert epoch_20.ckpt tuned.safetensors --key state_dict --prefix model.   (as a trainer saves)
  python -m weight_port inspect sam2.1_hiera_large.safetensors
  python -m weight_port export  sam2.1_hiera_large.safetensors again.pt
  python -m weight_port export --orbax dinov2_vitl14.safetensors dinov2_vitl14_orbax/  (for other JAX programs)

Meta publishes the checkpoints at https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_large.pt
(tiny, small, base_plus, large; SAM 2.0: 072824/sam2_hiera_large.pt) and
https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth (vits14, vitb14, vitl14, vitg14; with
registers: dinov2_vitl14_reg4_pretrain.pth). PyTorch is not needed, neither to read nor to write .pt files.

exit status: 0 done; 2 bad arguments or input (one line says what); 1 anything else."""

_CONFIG_HELP = """\
JSON file with configuration fields that the tensors do not show, for models of no published size:
{"num_heads": 6} for DINOv2 or DINOv3;
{"hiera": {"num_heads": 2, "window_spec": [8, 4, 16, 8], "global_att_blocks": [23, 33, 43]}} for SAM 2;
other fields of ntt_jax.config may be added"""


_ORBAX_HELP = """\
an orbax checkpoint is restored without this project, as nested dictionaries of arrays with our names and layouts:
  params = orbax.checkpoint.StandardCheckpointer().restore(folder / "params")   # folder: an absolute pathlib.Path
and made a Flax module with it:
  config = ntt_jax.config.from_dict(json.loads((folder / "config.json").read_text()))
  graph, state = nnx.split(nnx.eval_shape(lambda: DinoVisionTransformer(config, rngs=nnx.Rngs(0))))   # or Sam2
  nnx.replace_by_pure_dict(state, params)
  model = nnx.merge(graph, state)"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help shows the usage)\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser("python -m weight_port", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="convert | export | inspect")
    convert = commands.add_parser(
        "convert",
        help="a PyTorch or Hugging Face checkpoint to one .safetensors for ntt-jax",
        description="Recognise a checkpoint from its tensors (SAM 2, DINOv2, DINOv3) and write one .safetensors file.",
    )
    convert.add_argument("source", metavar="SRC", help="a .pt, .pth, .ckpt, .safetensors, or a Hugging Face folder")
    convert.add_argument("destination", metavar="DST", help="the .safetensors file to write")
    convert.add_argument("--model", metavar="NAME", help="published name, such as sam2.1_hiera_tiny: no recognition")
    convert.add_argument("--config", metavar="FILE.json", help=_CONFIG_HELP)
    _add_reading(convert)
    export = commands.add_parser(
        "export",
        help="a converted file back to the original PyTorch names and layouts, or as an orbax checkpoint",
        description="Write a converted file back as a checkpoint that Meta's code loads, bit for bit what it was, or "
        "as an orbax checkpoint for JAX programs.",
        epilog=_ORBAX_HELP,
        formatter_class=raw,
    )
    export.add_argument("source", metavar="SRC", help="a file written by convert")
    export.add_argument(
        "destination", metavar="DST", help="the .pt, .pth or .safetensors file to write; with --orbax a folder to make"
    )
    export.add_argument("--orbax", action="store_true", help="write an orbax checkpoint")
    inspect = commands.add_parser(
        "inspect",
        help="which model, variant, tensors, types, size and sha256 a file has",
        description="Show what a checkpoint or a converted file holds, after checking all of it.",
    )
    inspect.add_argument("file", metavar="FILE", help="any file or folder that convert reads, or that it wrote")
    _add_reading(inspect)
    return parser


def _add_reading(command: argparse.ArgumentParser) -> None:
    """Options that choose between several models in one checkpoint."""
    command.add_argument("--key", help="the dictionary to read in a training checkpoint, such as model_ema")
    command.add_argument("--prefix", help="what all names of the model start with in it, such as module.")


def _read_given(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    given = parse_json(read_bytes(path, max_bytes=2**20, what="configuration"), path, what="configuration")
    if not isinstance(given, dict):
        raise InputError(f"{show_path(path)}: expected a JSON object, found {describe(given)}")
    return given


def _convert(arguments: argparse.Namespace) -> list[str]:
    from weight_port import port

    given = _read_given(arguments.config)
    source, weights = port.convert(
        arguments.source,
        arguments.destination,
        model=arguments.model,
        given=given,
        key=arguments.key,
        prefix=arguments.prefix,
    )
    return [*_describe_source(source, weights), f"written  {arguments.destination}"]


def _export(arguments: argparse.Namespace) -> list[str]:
    from weight_port import port

    if arguments.orbax:
        from weight_port.orbax_folder import export_orbax

        weights = export_orbax(arguments.source, arguments.destination)
        return [*_describe_model(weights), f"written  {arguments.destination}/params (orbax) and config.json"]
    weights = port.export(arguments.source, arguments.destination)
    lines = [*_describe_model(weights), f"written  {arguments.destination}"]
    if not weights.complete:
        lines.append("note     it has no video part: load it into Meta's classes with strict=False")
    return lines


def _inspect(arguments: argparse.Namespace) -> list[str]:
    from weight_port import port

    source, weights = port.inspect(arguments.file, key=arguments.key, prefix=arguments.prefix)
    lines = _describe_source(source, weights)
    lines.append("tensors")
    for name in weights.order:
        carried = name.startswith(port.CARRIED)
        array = weights.carried[name.removeprefix(port.CARRIED)] if carried else weights.tensors[name]
        lines.append(f"  {name}  {list(array.shape)} {array.dtype}")
    return lines


def _describe_source(source: Any, weights: Any) -> list[str]:
    from weight_port.official import describe_sha256

    name = weights.config.name
    lines = [f"source   {source.path} ({source.form}; {_megabytes(source.size)})"]
    if weights.metadata:
        original = weights.metadata.get("source_sha256", "")

        def recorded(key: str) -> str:  # a stranger's text: no control characters to the terminal
            return weights.metadata.get(key, "")[:200].encode("unicode_escape").decode("ascii")

        lines += [
            f"sha256   {source.sha256}",
            f"made of  {recorded('source_name')} ({recorded('source_format')}) by {recorded('tool_version')}",
            f"         sha256 {recorded('source_sha256')}: as recorded, {describe_sha256(original, name)}",
        ]
    else:
        lines.append(f"sha256   {source.sha256}: {describe_sha256(source.sha256, name)}")
    lines += _describe_model(weights)
    lines += [f"note     {remark}" for remark in weights.remarks]
    lines += [f"note     {note}" for note in source.notes]
    if source.beside:
        listed = ", ".join(source.beside[:_SHOWN_BESIDE])
        more = f" and {len(source.beside) - _SHOWN_BESIDE} more" if len(source.beside) > _SHOWN_BESIDE else ""
        lines.append(f"left out {listed}{more}: beside the model in this checkpoint")
    return lines


def _describe_model(weights: Any) -> list[str]:
    arrays = [*weights.tensors.values(), *weights.carried.values()]
    kinds = ", ".join(sorted({str(array.dtype) for array in arrays}))
    count = sum(array.size for array in arrays)
    lines = [f"model    {weights.config.name}: {len(arrays)} tensors, {count / 1e6:.1f} M numbers, {kinds}"]
    if weights.carried:
        groups = collections.Counter(name.split(".", 1)[0] for name in weights.carried)
        listed = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in groups.items())
        numbers = sum(array.size for array in weights.carried.values())
        lines.append(
            f"carried  {len(weights.carried)} video-only tensors, {numbers / 1e6:.1f} M numbers, unused here and "
            f"restored by export: {listed}"
        )
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; returns the exit status: 0, 2 after one line on standard error, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    command = {"convert": _convert, "export": _export, "inspect": _inspect}[parsed.command]
    try:
        lines = command(parsed)
    except InputError as e:
        show(f"weight_port: error: {e}", to=sys.stderr)
        return 2
    except KeyboardInterrupt:
        show("weight_port: interrupted; nothing was written", to=sys.stderr)
        return INTERRUPTED
    with contextlib.suppress(BrokenPipeError):  # `| head`: the work is done, nobody reads on
        for line in lines:
            show(line)
        return 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files go away then too
    sys.exit(main())
