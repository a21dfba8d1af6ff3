"""The outcome of `ntt-jax tune` as text."""

from typing import Any

from ntt_jax.text import counted, one_line

_SHOWN = 30


def trial_table(outcome: dict[str, Any]) -> str:
    """The configurations, the best on the images to choose on first: AP, and gain +- its spread over the memories."""
    kind = outcome["metric"]
    rows = sorted(outcome["table"], key=lambda row: -(row["choose"][kind]["AP"] or 0.0))
    head = f"{'AP':>6}  {'gain':>16}  {'AP':>6}  {'gain':>16}  {'95 % of the gain':>16}  rules"
    lines = [f"{'chosen on':>24}  {'reported on':>24}", head]
    for row in rows[:_SHOWN]:
        cells = []
        for part in ("choose", "report"):
            number = row[part][kind]
            cells += [f"{percent(number['AP']):>6}", f"{gain(number):>16}"]
        bounds = row["report"][kind].get("interval")
        between = "" if bounds is None else f"{100 * bounds[0]:+.1f} .. {100 * bounds[1]:+.1f}"
        lines.append("  ".join([*cells, f"{between:>16}", one_line(row["name"])]))
    if len(rows) > _SHOWN:
        lines.append(f"... {len(rows) - _SHOWN} more in tune.json")
    return "\n".join(lines)


def gain_lines(outcome: dict[str, Any]) -> str:
    """What the chosen constants gain on the images to report on, with its interval."""
    lines = []
    for kind, number in outcome["chosen"]["gain"].items():
        bounds = number["interval"]
        between = "" if bounds is None else f", 95 % between {100 * bounds[0]:+.1f} and {100 * bounds[1]:+.1f}"
        words = {"segm": "masks", "bbox": "boxes"}[kind]
        by_shots = number.get("by_shots", {}).items()
        shots = "".join(f"; {counted(int(count), 'shot')} {gain(one)}" for count, one in by_shots)
        lines.append(f"AP of {words}: {percent(number['before'])} -> {percent(number['after'])}{between}{shots}")
    return "\n".join(lines)


def threshold_table(outcome: dict[str, Any]) -> str:
    """The thresholds with their intervals, and what they give."""
    names = {one["class"]: one_line(one["class"])[:60] for one in outcome["thresholds"]}
    width = max([len("class"), *map(len, names.values())])
    lines = [f"{'class':<{width}}  threshold        interval  precision  recall   F1  objects"]
    for one in outcome["thresholds"]:
        bounds = one["interval"]
        between = "" if bounds is None else f"{bounds[0]:.3f} .. {bounds[1]:.3f}"
        score = "none" if one["threshold"] is None else f"{one['threshold']:.3f}"
        numbers = f"{percent(one['precision']):>9}  {percent(one['recall']):>6}  {percent(one['f1']):>3}"
        lines.append(f"{names[one['class']]:<{width}}  {score:>9}  {between:>14}  {numbers}  {one['objects']:>7}")
    return "\n".join(lines)


def gain(number: dict[str, float | None]) -> str:
    """A gain and its spread, in percent."""
    if number["gain"] is None:
        return "n/a"
    spread = "" if number["spread"] is None else f" +- {100 * number['spread']:.1f}"
    return f"{100 * number['gain']:+.1f}{spread}"


def percent(value: float | None) -> str:
    """A fraction in percent."""
    return "n/a" if value is None else f"{100 * value:.1f}"
