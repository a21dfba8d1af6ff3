"""Where captions go in a picture: beside what they name, inside the picture, none over another where there is room."""

from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels; right and bottom lie just outside."""


def place_captions(
    objects: Sequence[Box], sizes: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[tuple[int, int]]:
    """The top left corner of each caption, the first ones having the first choice.

    A caption goes above its object's top left corner, else inside it, below it, or along its edges; where all of that
    is taken, to the nearest free place; where the picture is full, over as little of the others as can be.

    Args:
      objects: what the captions name. sizes: width and height of each caption. picture: width and height.
    """
    wide, high = picture
    places: list[tuple[int, int]] = []
    taken: list[Box] = []
    for (left, top, right, bottom), (width, height) in zip(objects, sizes, strict=True):
        near = [
            (left, top - height), (left, top), (left, bottom), (left, bottom - height),
            (right - width, top - height), (right - width, top), (right - width, bottom),
            (right - width, bottom - height), (right, top), (left - width, top),
        ]  # fmt: skip
        # Just beside the captions that are there already.
        near += [(left, t) for _, upper, _, lower in taken for t in (lower, upper - height)]
        near += [(t, top - height) for before, _, after, _ in taken for t in (after, before - width)]
        steps = [(left, row * height) for row in range(int(high // max(1, height)))]
        far = sorted([*near[10:], *steps], key=lambda place: abs(place[0] - left) + abs(place[1] - (top - height)))
        best, least = (0, 0), float("inf")
        for x, y in [*near[:10], *far]:
            corner = round(max(0, min(x, wide - width))), round(max(0, min(y, high - height)))
            covered = sum(_common(corner, (width, height), other) for other in taken)
            if covered < least:
                best, least = corner, covered
            if not covered:
                break
        places.append(best)
        taken.append((best[0], best[1], best[0] + width, best[1] + height))
    return places


def _common(corner: tuple[int, int], size: tuple[int, int], other: Box) -> float:
    """Pixels that two rectangles share."""
    across = min(corner[0] + size[0], other[2]) - max(corner[0], other[0])
    down = min(corner[1] + size[1], other[3]) - max(corner[1], other[1])
    return max(0.0, across) * max(0.0, down)


def touches(corner: tuple[int, int], size: tuple[int, int], box: Box) -> bool:
    """Whether a caption touches or covers the box of its object."""
    return (
        corner[0] <= box[2] and corner[0] + size[0] >= box[0] and corner[1] <= box[3] and corner[1] + size[1] >= box[1]
    )
