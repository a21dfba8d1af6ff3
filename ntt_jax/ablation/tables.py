"""Numbers of many memories put together: mean and spread over seeds, and what each reference contributes. Host only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntt_jax.evaluation import KINDS
from ntt_jax.text import one_line

Metrics = dict[str, Any]
"""What `evaluate_detections` returns."""


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, and sample standard deviation (divided by n - 1) from two values on; None where there are none."""
    known = np.array([value for value in values if value is not None])
    return {
        "mean": float(np.mean(known)) if known.size else None,
        "std": float(np.std(known, ddof=1)) if known.size > 1 else None,
    }


def by_shots(keys: Sequence[tuple[int, int]], metrics: Sequence[Metrics]) -> list[dict[str, Any]]:
    """One row per number of shots: mean and spread over its seeds of every number, in all and by class.

    keys: (shots, seed) of every memory.
    """
    rows = []
    for shots in dict.fromkeys(shots for shots, _ in keys):
        some = [one for (count, _), one in zip(keys, metrics, strict=True) if count == shots]
        row: dict[str, Any] = {"shots": shots, "seeds": len(some), **_spreads(some)}
        row["per_class"] = [
            {"category_id": c["category_id"], "name": c["name"], **_spreads([one["per_class"][k] for one in some])}
            for k, c in enumerate(some[0]["per_class"])
        ]
        rows.append(row)
    return rows


def _spreads(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
    numbers = {kind: list(some[0][kind]) for kind in _kinds(some[0])}
    if "semantic" in some[0]:  # COCO-20i: in all, and in the row of a class
        numbers["semantic"] = [name for name in ("mIoU", "IoU") if name in some[0]["semantic"]]
    return {
        kind: {name: spread([one[kind][name] for one in some]) for name in names} for kind, names in numbers.items()
    }


def _kinds(one: dict[str, Any]) -> list[str]:
    return [kind for kind in KINDS if kind in one]


def headline(one: dict[str, Any]) -> tuple[str, str]:
    """The kind that the tables are about, and its name in words: masks, or boxes where there are no masks."""
    return ("segm", "masks") if "segm" in one else ("bbox", "boxes")


def by_reference(
    lacking: Sequence[tuple[int, int]], metrics: Sequence[Metrics], origins: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """One row per reference left out: AP without it, of its class and of all, and the change against the whole memory.

    metrics: first those of the whole memory. origins: per class and reference, where it came from. A change below 0
    says that the reference helps. Sorted from the most harmful reference to the most helpful one.
    """
    whole, rows = metrics[0], []
    kinds = _kinds(whole)
    for (k, s), one in zip(lacking, metrics[1:], strict=True):
        row: dict[str, Any] = {"class": whole["per_class"][k]["name"], "reference": s, "origin": origins[k][s]}
        for kind in kinds:
            row[kind] = {
                "AP": one[kind]["AP"],
                "change": _difference(one[kind]["AP"], whole[kind]["AP"]),
                "class AP": one["per_class"][k][kind]["AP"],
                "class change": _difference(one["per_class"][k][kind]["AP"], whole["per_class"][k][kind]["AP"]),
            }
        rows.append(row)
    return sorted(rows, key=lambda row: -(row[kinds[-1]]["change"] or 0.0))


def _difference(value: float | None, before: float | None) -> float | None:
    return None if value is None or before is None else value - before


def shots_table(rows: Sequence[dict[str, Any]]) -> str:
    """`by_shots` as text, in percent."""
    columns = {f"{words} AP": (kind, "AP") for kind, words in (("bbox", "boxes"), ("segm", "masks"))}
    columns = {head: (kind, name) for head, (kind, name) in columns.items() if kind in rows[0]}
    numbers = [place for kind, _ in columns.values() for place in ((kind, "AP"), (kind, "AP50"))]
    heads = [head for one in columns for head in (one, "AP50")]
    if "semantic" in rows[0]:
        numbers, heads = [*numbers, ("semantic", "mIoU")], [*heads, "mIoU"]
    lines = [f"{'shots':>5}  {'seeds':>5}  " + "  ".join(f"{head:>12}" for head in heads)]
    for row in rows:
        cells = [_cell(row[kind][name]) for kind, name in numbers]
        lines.append(f"{row['shots']:>5}  {row['seeds']:>5}  " + "  ".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def class_table(rows: Sequence[dict[str, Any]]) -> str:
    """AP by class (lines) and number of shots (columns) as text, in percent; of what `headline` says."""
    kind, names = headline(rows[0])[0], [_name(c["name"]) for c in rows[0]["per_class"]]
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"{row['shots']:>13}" for row in rows)]
    for k, name in enumerate(names):
        cells = (_cell(row["per_class"][k][kind]["AP"]) for row in rows)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def reference_table(rows: Sequence[dict[str, Any]], limit: int = 20) -> str:
    """`by_reference` as text, in percent: the `limit` rows at both ends."""
    width = max([len("class"), *(len(_name(row["class"])) for row in rows)])
    kind, words = headline(rows[0])
    lines = [f"{'class':<{width}}  reference  {words} AP without it  change  of its class  change"]
    middle = len(rows) - 2 * limit
    for i, row in enumerate(rows):
        if limit <= i < limit + middle:
            if i == limit:
                lines.append(f"... {middle} more")
            continue
        n = row[kind]
        lines.append(
            f"{_name(row['class']):<{width}}  {row['reference']:>9}  {percent(n['AP']):>19}  {_signed(n['change']):>6}"
            f"  {percent(n['class AP']):>12}  {_signed(n['class change']):>6}"
        )
    return "\n".join(lines)


def _name(name: str) -> str:
    return name if len(name) <= 60 and name.isprintable() else one_line(name[:60])


def _cell(number: dict[str, float | None]) -> str:
    mean, std = number["mean"], number["std"]
    return percent(mean) + (f" +- {100 * std:.1f}" if std is not None else "")


def percent(value: float | None) -> str:
    """A fraction in percent."""
    return "n/a" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:+.1f}"
