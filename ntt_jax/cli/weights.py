"""`ntt-jax weights`: which models there are by name, and bringing, finding and checking their weights."""

import argparse
from typing import Any

from ntt_jax.cli import options
from ntt_jax.errors import InputError
from ntt_jax.text import show

EPILOG = """\
examples:
  ntt-jax weights list
  ntt-jax weights get sam2_hiera_large dinov2_vitl14        before a machine loses its network
  ntt-jax weights get owner/fine-tuned-dinov2@v2            any model of the two architectures on the Hugging Face Hub
  ntt-jax weights get epoch_20.pth --key model_ema          one of several models; the file stands for it from now on
  ntt-jax weights path dinov2_vitl14
  ntt-jax weights verify

Weights come from the Hugging Face Hub (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and proxies work as people know
them), or from Meta's own server if that fails (NTT_JAX_META_URL names a mirror). They are converted once, into
ntt-jax/weights in $XDG_CACHE_HOME or ~/.cache, or into $NTT_JAX_CACHE/weights. For a machine without network: set
NTT_JAX_CACHE to a folder, `get`, copy the folder, set NTT_JAX_CACHE there. See docs/names.md."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "weights", _list, "list, fetch, find and check the weights of models by name", EPILOG
    )
    parts = parser.add_subparsers(metavar="list | get | path | verify", dest="action", required=True)
    lines = {
        "list": (_list, "what there is by name, and what is here"),
        "get": (_get, "fetch and convert"),
        "path": (_path, "print where the converted file is"),
        "verify": (_verify, "compare every converted file with its sha256"),
    }
    for name, (run, text) in lines.items():
        part = parts.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        part.set_defaults(run=run)
        if name == "get":
            part.add_argument("names", nargs="+", metavar="NAME", help="names, Hub ids or checkpoints")
            part.add_argument(
                "--source", choices=("auto", "hub", "meta"), default="auto", help="where to fetch from (default: auto)"
            )
            part.add_argument("--key", help="of a checkpoint with several models: the dictionary, such as model_ema")
            part.add_argument("--prefix", help="what all names of the model start with in it, such as module.")
            part.add_argument("--again", action="store_true", help="fetch the newest version even where there is one")
        elif name == "path":
            part.add_argument("name", metavar="NAME", help="a name that was fetched before, or a checkpoint")


def _list(args: argparse.Namespace) -> None:
    from ntt_jax.hub import cache
    from ntt_jax.hub.fetch import megabytes
    from ntt_jax.hub.names import LICENCE, PACKAGED, PUBLISHED, packaged_path

    print(f"{'name':<22}{'download':>9}  {'licence':<11} {'here':<10}Hugging Face Hub")
    for model in PUBLISHED.values():
        found = cache.named(model.name)
        here = megabytes(found.size) if found else "-"
        size = megabytes(model.size or model.megabytes * 10**6)
        print(f"{model.name:<22}{size:>9}  {LICENCE:<11} {here:<10}{model.repository}")
    for name in PACKAGED:
        size = megabytes(packaged_path(name).stat().st_size)
        print(f"{name:<22}{'-':>9}  {LICENCE:<11} {size:<10}(in this package, for trying things out)")
    for name in sorted(set(cache.names()) - set(PUBLISHED)):
        if found := cache.named(name):
            show(f"{name}  {megabytes(found.size)}")
    print(f"\nconverted weights are in {cache.folder()}")


def _get(args: argparse.Namespace) -> None:
    from ntt_jax.hub import parse, resolve

    for name in args.names:
        parse(name)  # a mistyped name is answered before another one is fetched
    args.resume_hint = "what has arrived is kept; the same command goes on from there"
    for name in args.names:
        print(
            f"{name}  {resolve(name, source=args.source, again=args.again, key=args.key, prefix=args.prefix)}",
            flush=True,
        )


def _path(args: argparse.Namespace) -> None:
    from pathlib import Path

    from ntt_jax.hub import cache, parse, resolve

    what = parse(args.name)
    if isinstance(what, Path):
        print(resolve(what))
    elif found := cache.named(what.name):
        print(found.path)
    else:
        raise InputError(f"{what.name}: not here yet; `ntt-jax weights get {what.name}` fetches it")


def _verify(args: argparse.Namespace) -> None:
    from ntt_jax.hub import cache
    from weight_port.files import sha256
    from weight_port.official import describe_sha256

    labels: dict[str, list[str]] = {}
    for name, record in cache.names().items():
        labels.setdefault(record["key"], []).append(name)
    damaged = []
    for entry in cache.entries():
        label = ", ".join(labels.get(entry.path.stem, [entry.path.stem[:12]]))
        good = sha256(entry.path) == entry.sha256
        source = describe_sha256(entry.source_sha256, labels.get(entry.path.stem, [""])[0])
        show(f"{label}: {'ok' if good else 'DAMAGED'}  {entry.path}  made of {entry.source_sha256[:12]}..., {source}")
        if not good:
            damaged.append(entry.path)
    if not cache.entries():
        print(f"nothing is in {cache.folder()}")
    if damaged:
        raise InputError(f"{len(damaged)} damaged: delete {damaged[0]} (it is made again when it is asked for)")
