"""What was read in another way than it is written: counted by kind, one line each."""

import threading
import warnings


class InputNote(UserWarning):
    """What a function was given was read in another way than it is written, or looks doubtful. One line."""


class Notes:
    """Collects remarks by kind; threads may add to it.

    notes.add("polygons of fewer than three points left out", "annotation 5")
    notes.lines()  # ("polygons of fewer than three points left out: 1 (annotation 5)",)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, kind: str, where: str, advice: str = "", count: int = 1) -> None:
        """`count` more of a kind; the first `where` is shown, `advice` (the way to another reading) ends the line."""
        with self._lock:
            before, first = self._kinds.get((kind, advice), (0, where))
            self._kinds[kind, advice] = before + count, first

    def lines(self) -> tuple[str, ...]:
        """One line per kind, in the order in which the kinds came first."""
        return tuple(_line(*kind, *found) for kind, found in self._kinds.items())

    def warn(self) -> None:
        """The lines as warnings of the category `InputNote`."""
        for line in self.lines():
            warnings.warn(line, InputNote, stacklevel=2)


def _line(kind: str, advice: str, count: int, where: str) -> str:
    shown = where if count == 1 else f"the first: {where}"
    return f"{kind}: {count} ({shown})" + (f"; {advice}" if advice else "")
