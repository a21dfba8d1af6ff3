"""The part of a page about `ntt-jax tune`: the chosen rules, what was tried, and where to put the thresholds."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, parse_json, read_bytes, show_path, write_bytes
from ntt_jax.report.page import render

FILE = "tune.json"
MAX_BYTES = 256 * 1024**2
MAX_ROWS = 500
"""Configurations that the page shows, those that are best on the images to choose on."""
_KINDS = ("segm", "bbox")
_WHAT = "file of tune"


def read_tuned(path: Path) -> dict[str, Any]:
    """What the page shows of a tune.json, JSON-ready. Raises `InputError` if it is not what `ntt-jax tune` writes."""
    content = parse_json(read_bytes(path, max_bytes=MAX_BYTES, what=_WHAT), path, what=_WHAT)
    try:
        return _view(content)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{show_path(path)}: is not what `ntt-jax tune` writes ({type(error).__name__})") from None


def write_tuned_report(path: PathLike, folder: Path, title: str | None = None) -> dict[str, Any]:
    """Write the page of a folder of `ntt-jax tune`, whole or not at all; returns what it shows of the rules.

    Raises `InputError` as `read_tuned`, and if the file cannot be written.
    """
    tune = read_tuned(folder / FILE)
    provenance, skipped = tune.pop("provenance"), tune.pop("skipped")
    data = {
        "title": title or f"Tuning report: {folder.resolve().name or 'tune'}",
        "tune": tune,
        "skipped": skipped,
        "provenance": {"Run": provenance} if provenance else {},
    }
    write_bytes(path, render(data, {}))
    return tune


def _view(content: Mapping[str, Any]) -> dict[str, Any]:
    metric = content["metric"]
    if metric not in _KINDS:
        raise ValueError(metric)
    chosen, goal = content["chosen"], content["threshold_target"]
    rows = sorted(content["table"], key=lambda row: -(_number(row["choose"][metric]["AP"]) or 0.0))
    return {
        "metric": metric,
        "search": str(content["search"]),
        "images": [_count(content["images"][part]) for part in ("choose", "report")],
        "memories": len(content["memories"]),
        "configurations": _count(content["configurations"]),
        "chosen": str(chosen["name"]),
        "method": {str(name): _text(value) for name, value in chosen["method"].items()},
        "within_noise": bool(chosen["within_noise"]),
        "gains": [_gain(kind, chosen["gain"][kind]) for kind in _KINDS if kind in chosen["gain"]],
        "rows": [_row(row, metric) for row in rows[:MAX_ROWS]],
        "target": "f1" if goal["kind"] == "f1" else f"{goal['kind']} {_number(goal['value']):g}",
        "points": [_point(one) for one in content["thresholds"]],
        "skipped": [[str(one.get("file_name", "")), str(one.get("reason", ""))] for one in content["skipped"]],
        "provenance": {str(name): _text(value) for name, value in content["provenance"].items()},
    }


def _gain(kind: str, number: Mapping[str, Any]) -> dict[str, Any]:
    """AP before and after, the gain with its spread and interval, and by shots."""
    shots = number.get("by_shots") or {}
    return {
        "kind": kind,
        "interval": _interval(number["interval"]),
        **{name: _number(number[name]) for name in ("before", "after", "gain", "spread")},
        "shots": [[str(count), _number(one["gain"]), _number(one["spread"])] for count, one in shots.items()],
    }


def _row(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    chosen, reported = row["choose"][metric], row["report"][metric]
    return {
        "name": str(row["name"]),
        "choose": [_number(chosen[name]) for name in ("AP", "gain", "spread")],
        "report": [_number(reported[name]) for name in ("AP", "gain", "spread")],
        "interval": _interval(reported.get("interval")),
    }


def _point(one: Mapping[str, Any]) -> dict[str, Any]:
    """A class's threshold and what it gives; curve: [score, precision, recall] from the highest score on."""
    return {
        "name": str(one["class"]),
        "interval": _interval(one["interval"]),
        "objects": _count(one["objects"]),
        **{name: _number(one[name]) for name in ("threshold", "precision", "recall", "f1")},
        "curve": [[_share(value) for value in _three(row)] for row in one.get("curve") or []],
    }


def _three(row: Any) -> list[Any]:
    first, second, third = row
    return [first, second, third]


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a number")
    return round(float(value), 6)


def _share(value: Any) -> float:
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError("from 0 to 1")
    return number


def _interval(value: Any) -> list[float | None] | None:
    if value is None:
        return None
    low, high = value
    return [_number(low), _number(high)]


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("a count")
    return value


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
