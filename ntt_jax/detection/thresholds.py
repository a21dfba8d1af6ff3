"""The score from which on a detection is shown: one for all classes, or one for each.

What is shown is chosen after the method has run, on the host. A threshold changes no detection, so another one costs
nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ntt_jax.config import DEFAULT_THRESHOLD
from ntt_jax.detection.on_host import HostDetections
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, parse_json, read_bytes, show_path
from ntt_jax.text import close_names, number_in

MAX_THRESHOLD_BYTES = 2**24
_KEY = "thresholds"


def by_class(
    thresholds: Any, class_names: Sequence[str], *, default: float = DEFAULT_THRESHOLD, where: str = "score_threshold"
) -> np.ndarray:
    """The threshold of each of the K classes, float32 `[K]`.

    thresholds: a number for all of them, or numbers by class name; classes that it does not name take `default`. where:
    starts the messages. Raises `InputError` for what is neither, and for a class that is unknown (with close names).
    """
    if not isinstance(thresholds, Mapping):
        return np.full(len(class_names), _number(thresholds, where), np.float32)
    found = np.full(len(class_names), default, np.float32)
    for name, index in zip(thresholds, class_indices(thresholds, class_names, where), strict=True):
        found[index] = _number(thresholds[name], f"{where}: {describe(name)}")
    return found


def class_indices(names: Iterable[Any], class_names: Sequence[str], where: str) -> list[int]:
    """The class index of each name. Raises `InputError` for an unknown one, with the names that come close."""
    places = {name: index for index, name in enumerate(class_names)}
    indices = []
    for name in names:
        if not isinstance(name, str) or name not in places:
            close = close_names(name, class_names) if isinstance(name, str) else []
            shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {shown}"
            raise InputError(f"{where}: the memory has no class {describe(name)}; {hint}")
        indices.append(places[name])
    return indices


def choose(
    found: HostDetections, thresholds: np.ndarray, classes: Iterable[int] | None = None, limit: int | None = None
) -> HostDetections:
    """The detections that reach the threshold of their class, best first.

    thresholds: float32 `[K]`. classes: indices of the classes that are wanted, all if None. limit: at most so many.
    """
    keep = found.scores >= thresholds[found.labels]
    if classes is not None:
        keep &= np.isin(found.labels, list(classes))
    return found.select(np.flatnonzero(keep)[:limit])


def threshold_at(score: Any) -> float:
    """The threshold that a float32 score just reaches, as a file holds it: the shortest decimal. A cosine may be
    rounded to a hair above 1, which no threshold may be."""
    return min(1.0, float(str(np.float32(score))))


def parse_thresholds(text: str) -> dict[str, float]:
    """Thresholds by class name from text such as "bus=0.7,bird=0.6". Raises `InputError` for any other text."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        if not equals or not name.strip():
            raise InputError(
                f"expected a JSON file or CLASS=NUMBER,..., as in bus=0.7,bird=0.6, found {describe(part)}"
            )
        _add(found, name.strip(), number_in(value), "")
    return found


def read_thresholds(path: PathLike) -> dict[str, float]:
    """Thresholds by class name from a JSON file: `{"bus": 0.7}`, or the same under "thresholds", as in what
    `ntt-jax report` writes. Raises `InputError`, naming the file, for any other content."""
    content = parse_json(read_bytes(path, max_bytes=MAX_THRESHOLD_BYTES, what="thresholds"), path, what="thresholds")
    if isinstance(content, dict) and isinstance(content.get(_KEY), dict):
        content = content[_KEY]
    return checked(content, show_path(path))


def of_memory(provenance: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, float]:
    """The thresholds that a memory file keeps for its classes; empty where it keeps none.

    Raises `InputError` if what it keeps is something else.
    """
    kept = checked(provenance.get(_KEY, {}), "the memory file")
    return {name: kept[name] for name in class_names if name in kept}


def checked(content: Any, where: str) -> dict[str, float]:
    """Thresholds by class name from JSON data; `where` starts the messages. Raises `InputError` unless it is that."""
    if not isinstance(content, dict):
        raise InputError(f'{where}: expected thresholds by class name, as in {{"bus": 0.7}}, found {describe(content)}')
    found: dict[str, float] = {}
    for name, value in content.items():
        _add(found, name, value, f"{where}: ")
    return found


def _add(found: dict[str, float], name: str, value: Any, where: str) -> None:
    if name in found:
        raise InputError(f"{where}class {describe(name)} has two thresholds; give one")
    number = value if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= 1:
        raise InputError(f"{where}threshold of class {describe(name)}: expected a number from 0 to 1")
    found[name] = float(number)


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, np.number)) else math.nan
    except OverflowError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(f"{where}: expected a number, or numbers by class name, found {describe(value)}")
    return number
