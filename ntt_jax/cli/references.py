"""`ntt-jax references`: examine the references of a memory, and say which to replace."""

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntt_jax.cli import models, options
from ntt_jax.cli.progress import Progress
from ntt_jax.errors import InputError
from ntt_jax.text import counted, show

if TYPE_CHECKING:
    from ntt_jax.datasets.dataset import CocoDataset
    from ntt_jax.memory.bank import MemoryBank

EPILOG = """\
examples:
  ntt-jax references --memory memory.safetensors
  ntt-jax references --memory memory.safetensors --annotations instances_train2017.json --images train2017 \\
                     --out references.html
  ntt-jax references --dinov2 dinov2_vitl14 --references references.json \\
                     --annotations instances_train2017.json --images train2017

Verdicts: "replace" what is likely to cost accuracy (the mask is tiny on the patch grid, box and mask lie apart, it
looks like another class, or unlike its class's other references); "check" what may (cut off by the border, enlarged
many times, as much like another class as like its own). own: cosine with its class's other references; other: with the
most similar other class. If the annotations hold a sound replacement, the command proposes it: put its ids into
references.json, make the memory again and look again.

A memory of `ntt-jax fit` or `Segmenter.save` has no annotations. Its references are compared with one another and named
by their files; sizes, boxes and borders are not examined."""


def add_parser(commands: Any) -> None:
    """Describe the command's arguments."""
    parser = options.add_command(
        commands, "references", run, "examine the references of a memory, and say which to replace", EPILOG
    )
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--memory", type=Path, metavar="memory.safetensors", help="file that `ntt-jax memory` wrote")
    made.add_argument(
        "--dinov2",
        metavar="W",
        help="DINOv2, by name or any checkpoint, to encode --references with; --out then "
        "shows components and clusters of their patches too",
    )
    options.add_paths(parser, "annotations", required=False, note=" (not needed for a memory of `ntt-jax fit`)")
    options.add_paths(parser, "images", required=False, note=", for thumbnails and for --dinov2", remote=True)
    options.add_paths(parser, "references", required=False, note=" (default: those that --memory names)")
    options.add_exif(parser)
    parser.add_argument("--out", type=Path, metavar="references.html", help="also write a page with thumbnails")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--all", action="store_true", help="list the good references too")
    options.add_compute(parser)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for arguments that cannot work, before anything is read in full."""
    options.check_paths(args, "memory", "dinov2", "annotations", "references", "images")
    if args.annotations is None and (args.memory is None or args.references is not None or args.images is not None):
        raise InputError("--annotations: give the file that the references are annotations of")
    if args.dinov2 is not None and (args.references is None or args.images is None):
        raise InputError("--dinov2 encodes the references itself: give --references and --images too")
    if args.out is not None:
        options.check_output_file(args.out)


def run(args: argparse.Namespace) -> None:
    """Do what the command says."""
    check(args)
    options.resolve_weights(args)
    from ntt_jax.memory.bank import load_memory
    from ntt_jax.report.page import reference_cards, write_reference_page
    from ntt_jax.report.run_files import find_sources

    if args.annotations is None:
        bank, sources = load_memory(args.memory), None
    else:
        dataset = models.read_dataset(args.annotations)
        bank = load_memory(args.memory) if args.memory is not None else encode(args, dataset)
        sources = find_sources(bank, {"references": args.references}.get, dataset, args.images, args.exif)
    if args.out is not None:
        title = f"References: {(args.memory or args.references).name}"
        patches = models.show_patches(args, bank, sources) if args.dinov2 is not None else ()
        cards = write_reference_page(args.out, title, bank, sources, patches)
    else:
        cards = reference_cards(bank, sources, pictures=False)[0]
    if sources is None:
        name_files(cards, bank)
    if args.json:
        print(json.dumps([readable(card, bank) for card in cards], indent=2, allow_nan=False))
    else:
        show_table(cards, bank, everything=args.all, width=shutil.get_terminal_size((120, 24)).columns)
        if args.out is not None:
            show(f"{args.out}: all of them with pictures")


def encode(args: argparse.Namespace, dataset: "CocoDataset") -> "MemoryBank":
    """The memory of `--references`, made with `--dinov2`."""
    from ntt_jax.memory.bank import MemoryBank
    from ntt_jax.references.build import build_memory
    from ntt_jax.runs.inputs import look_at_images, read_references, reference_images
    from ntt_jax.runs.models import load_encoder, read_encoder
    from ntt_jax.runs.observer import work

    progress, references = Progress(), read_references(args.references, dataset)
    dataset = look_at_images(dataset, args.images, args.exif, progress, reference_images(references))
    config = read_encoder(args.dinov2).config
    compiled = load_encoder(args.dinov2, options.compute(args))
    with work(progress, "references", sum(len(c.references) for c in references.classes), unit="references"):
        made = build_memory(compiled, dataset, args.images, references, step=progress.step)
    names, ids = zip(*((chosen.name, chosen.category_id) for chosen in references.classes), strict=True)
    return MemoryBank(made, names, ids, config)


def name_files(cards: list[dict[str, Any]], bank: "MemoryBank") -> None:
    """Add to each card what a memory without annotations says of its reference: the names of its files."""
    noted = bank.provenance.get("references")
    for card in cards:
        told = noted.get(str(bank.category_ids[card["label"]])) if isinstance(noted, dict) else None
        number = card["number"]
        origin = told[number] if isinstance(told, list) and number < len(told) else None
        files = origin if isinstance(origin, dict) else {}
        card["image"] = str(files.get("image", "-"))
        card["annotation"] = str(files.get("mask") or files.get("annotations") or "-")


def readable(card: dict[str, Any], bank: "MemoryBank") -> dict[str, Any]:
    """A diagnosis with class names instead of indices."""
    names = {key: card[key] if card[key] is None else bank.class_names[card[key]] for key in ("label", "nearest")}
    return {
        "class": names["label"],
        **{key: value for key, value in card.items() if key != "label"},
        "nearest": names["nearest"],
    }


def show_table(cards: list[dict[str, Any]], bank: "MemoryBank", *, everything: bool, width: int) -> None:
    """Print a table, worst first within each class, and one line that sums up."""
    from ntt_jax.references.doctor import VERDICTS

    counts = {verdict: sum(card["verdict"] == verdict for card in cards) for verdict in VERDICTS}
    shown = [card for card in cards if everything or card["verdict"] != "good"]
    shown.sort(key=lambda card: (card["label"], VERDICTS.index(card["verdict"]), card["number"]))
    rows = [_row(card, bank) for card in shown]
    if rows:
        heads = ["class", "verdict", "annotation", "image", "own", "other", "grid", "border"]
        table = [heads, *(row for row, _ in rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
        for line, why in zip(table, [[], *(why for _, why in rows)], strict=True):
            show(
                "  ".join(text.ljust(size) for text, size in zip(line, widths, strict=True)).rstrip()[: max(width, 60)]
            )
            for text in why:
                show(f"    {text}")
    classes = counted(len(bank.class_names), "class", "classes")
    show(
        f"{counted(len(cards), 'reference')} of {classes}: {counts['replace']} to replace, "
        f"{counts['check']} to check, {counts['good']} good"
    )


def _row(card: dict[str, Any], bank: "MemoryBank") -> tuple[list[str], list[str]]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    shape = card["shape"]
    other = "-"
    if card["nearest"] is not None:
        other = f"{number(card['nearest_cosine'])} {_short(bank.class_names[card['nearest']])}"
    row = [
        _short(bank.class_names[card["label"]]),
        card["verdict"],
        _short(str(card["annotation"]), 32),
        _short(card["image"], 32),
        number(card["own"]),
        other,
        "-" if shape is None else f"{shape['share']:.0%}",
        "-" if shape is None else f"{shape['border']:.0f} px",
    ]
    why = [finding["text"] for finding in card["findings"]]
    if new := card.get("replacement"):
        why.append(
            f"try instead: annotation {new['annotation']} of image {new['image_id']} ({_short(new['image'], 60)})"
        )
    return row, [_printable(text) for text in why]


def _short(text: str, limit: int = 24) -> str:
    text = _printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _printable(text: str) -> str:
    """Names come from files: nothing in them may move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
