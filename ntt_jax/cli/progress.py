"""Progress of long work on stderr: one line that updates itself on a terminal, a line now and then in a log."""

import shutil
import sys
import time
from typing import TextIO

from ntt_jax.text import show

LOG_EVERY = 10.0
"""Seconds between two lines where stderr is not a terminal."""

_UPDATE_EVERY = 0.1


class Progress:
    """Counts steps of one piece of work. Use as a context manager; call `step()` after each.

    The rate and the time left are those of this run: `done` steps that an earlier run finished do not count as fast.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, unit: str = "images", stream: TextIO | None = None):
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.already = done
        self.width = 0
        self.warm_up = 1
        self.started = self.first = self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        self._show()
        return self

    def __exit__(self, *exc: object) -> None:
        self._show(end=True)

    @property
    def steps(self) -> int:
        """Steps finished by this process."""
        return self.done - self.already

    def step(self, count: int = 1) -> None:
        """`count` more steps are finished."""
        first = self.done == self.already
        self.done += count
        if first:
            # What comes first carries the compilation: the rate is that of the steps after it.
            self.first, self.warm_up = time.monotonic(), count
        if time.monotonic() - self.last >= (_UPDATE_EVERY if self.terminal else LOG_EVERY):
            self._show()

    def note(self, message: str) -> None:
        """A line of its own, without spoiling the updating one."""
        self.stream.write(self._erase())
        show(f"ntt-jax: {message}", to=self.stream)
        if self.terminal:
            self._show()

    def _erase(self) -> str:
        return "\r" + " " * self.width + "\r" if self.width else ""

    def _show(self, end: bool = False) -> None:
        self.last = time.monotonic()
        text = f"{self.what}: {self.done} of {self.total} {self.unit}"
        steps = self.steps
        if end:
            text += f" in {_duration(self.last - self.started)}"
        elif steps > self.warm_up:
            rate = (steps - self.warm_up) / max(self.last - self.first, 1e-9)
            text += f", {_rate(rate)}, {_duration((self.total - self.done) / rate)} left"
        if self.terminal:
            text = text[: shutil.get_terminal_size().columns - 1]
            self.stream.write(self._erase() + text + ("\n" if end else ""))
            self.width = 0 if end else len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
