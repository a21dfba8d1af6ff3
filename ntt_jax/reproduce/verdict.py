"""Published and found numbers side by side, and what that says."""

from dataclasses import asdict, dataclass
from typing import Any

from ntt_jax.reproduce.published import Benchmark, ByHand, Number

ROUNDING = 0.1
"""Percent. Published numbers have one decimal, and sums in another order move ours by less than a tenth of that."""

WORDS = {"bbox": "boxes", "segm": "masks"}


@dataclass(frozen=True)
class Row:
    """AP of one kind at one number of shots (0: the mean over several), in percent. tolerance: difference that chance
    explains."""

    shots: int
    seeds: int
    kind: str
    found: float | None
    found_std: float | None
    published: float | None
    published_std: float | None
    tolerance: float | None

    @property
    def difference(self) -> float | None:
        """Found minus published."""
        return None if self.found is None or self.published is None else self.found - self.published

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is one that chance or rounding explains; None where there is nothing to compare."""
        if self.difference is None or self.tolerance is None:
            return None
        return abs(self.difference) <= self.tolerance + 1e-9


def row(
    benchmark: Benchmark, shots: int, seeds: list[int], kind: str, found: float | None, found_std: float | None
) -> Row:
    """One row of the table. found, found_std: fractions, as in metrics.json.

    A seed that was published alone must agree to a rounding. A mean over seeds must lie within the published standard
    deviation, one other seed within two of them.
    """
    published: Number | None = benchmark.of_seed.get((shots, seeds[0])) if len(seeds) == 1 else None
    alone = published is not None
    published = published or benchmark.by_shots.get(shots)
    value = getattr(published, kind, None)
    std = getattr(published, f"{kind}_std", None)
    tolerance = ROUNDING if alone else None if std is None else (std if len(seeds) > 1 else 2 * std) + ROUNDING / 2
    percent = [None if number is None else 100 * number for number in (found, found_std)]
    return Row(shots, len(seeds), kind, percent[0], percent[1], value, std, tolerance)


def mean_row(shots: int, found: list[float | None], published: float | None) -> Row:
    """The mean over runs with fixed references: fractions found, percent published; found is None if one is lacking."""
    known = [value for value in found if value is not None]
    mean = 100 * sum(known) / len(known) if known and len(known) == len(found) else None
    return Row(shots, len(found), "bbox", mean, None, published, None, None if published is None else ROUNDING)


def differences(benchmark: Benchmark | ByHand, settings: dict[str, Any]) -> list[str]:
    """What keeps a run from being the published one. settings: sam2, dinov2 (names), dtype, detection (changed
    constants by name), images, skipped."""
    out = []
    for name, words in (("sam2", "SAM 2"), ("dinov2", "DINOv2")):
        if settings[name] != getattr(benchmark, name):
            out.append(f"{words} is {settings[name]}, there {getattr(benchmark, name)}")
    if settings["dtype"] != "float32":
        out.append(f"--dtype {settings['dtype']}, there float32")
    out += [f"{name} is {value}, there the published one" for name, value in settings["detection"].items()]
    if settings["images"] != benchmark.images:
        out.append(f"{settings['images']} images, there {benchmark.images}")
    if settings["skipped"]:
        out.append(f"images skipped, which count as missed: {settings['skipped']}")
    return out


def verdict(rows: list[Row], different: list[str]) -> str:
    """One sentence."""
    compared = [one for one in rows if one.agrees is not None]
    if not compared:
        return "found only: no published number of this is on record"
    worst = max(compared, key=lambda one: abs(one.difference or 0) - (one.tolerance or 0))
    shots = worst.shots or "all"
    where = f"{WORDS[worst.kind]} at {shots} shots: {worst.difference:+.2f}, {worst.tolerance:.2f} is expected"
    if different:
        return f"not comparable: {'; '.join(different)} (largest difference: {where})"
    if all(one.agrees for one in compared):
        return f"reproduced: every number agrees (largest difference: {where})"
    return f"NOT reproduced: {sum(not one.agrees for one in compared)} of {len(compared)} numbers differ ({where})"


def format_table(rows: list[Row]) -> str:
    """The table as text."""
    count = "seeds" if all(one.shots for one in rows) else "runs"
    lines = [f"{'shots':>5} {count:>5}  {'AP of':<6}{'published':>14}{'found':>14}{'difference':>12}"]
    for one in rows:
        found, published = _number(one.found, one.found_std, 2), _number(one.published, one.published_std, 1)
        gap = "" if one.difference is None else f"{one.difference:+.2f}"
        head = f"{one.shots or 'all':>5} {one.seeds:>5}  {WORDS[one.kind]:<6}"
        lines.append(f"{head}{published:>14}{found:>14}{gap:>12}")
    return "\n".join(lines)


def _number(value: float | None, std: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if std is None else f" +- {std:.{digits}f}")


def to_json(rows: list[Row], different: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything, for reproduce.json."""
    table = [{**asdict(one), "difference": one.difference, "agrees": one.agrees} for one in rows]
    return {"verdict": verdict(rows, different), "differs": different, "table": table, "settings": settings}
