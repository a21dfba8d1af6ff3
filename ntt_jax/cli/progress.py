"""Progress of long work on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

from ntt_jax.text import show

LOG_EVERY = 10.0
"""Seconds between two lines where stderr is not a terminal."""


class Progress:
    """Shows one piece of work after the other; an observer of `runs` (`runs.observer.Observer`).

    Steps that an earlier run finished do not count as fast.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._bar: tqdm | None = None
        self._log: _Log | None = None

    def begin(self, what: str, total: int, *, done: int = 0, unit: str = "images") -> None:
        """A piece of work of `total` steps begins, of which an earlier start has finished `done`."""
        if self._stream.isatty():
            options = {"initial": done, "desc": what, "unit": f" {unit}", "dynamic_ncols": True}
            self._bar = tqdm(total=total, file=self._stream, **options)
        else:
            self._log = _Log(self._stream, what, total, done, unit)

    def step(self, count: int = 1) -> None:
        """`count` more steps are finished."""
        if self._bar is not None:
            self._bar.update(count)
        if self._log is not None:
            self._log.step(count)

    def end(self) -> None:
        """The piece of work has ended."""
        if self._bar is not None:
            self._bar.close()
        if self._log is not None:
            self._log.show(end=True)
        self._bar = self._log = None

    def note(self, message: str) -> None:
        """A line of its own, without spoiling the bar."""
        if self._bar is not None:
            self._bar.clear()
        show(f"ntt-jax: {message}", to=self._stream)
        if self._bar is not None:
            self._bar.refresh()


class _Log:
    """One piece of work as lines of text."""

    def __init__(self, stream: TextIO, what: str, total: int, done: int, unit: str):
        self.stream, self.what, self.total, self.unit = stream, what, total, unit
        self.done = self.already = done
        self.warm_up = 1
        self.started = self.first = self.last = time.monotonic()
        self.show()

    def step(self, count: int) -> None:
        first = self.done == self.already
        self.done += count
        if first:
            # What comes first carries the compilation: the rate is that of the steps after it.
            self.first, self.warm_up = time.monotonic(), count
        if time.monotonic() - self.last >= LOG_EVERY:
            self.show()

    def show(self, end: bool = False) -> None:
        self.last = time.monotonic()
        text = f"{self.what}: {self.done} of {self.total} {self.unit}"
        steps = self.done - self.already
        if end:
            text += f" in {tqdm.format_interval(self.last - self.started)}"
        elif steps > self.warm_up:
            rate = (steps - self.warm_up) / max(self.last - self.first, 1e-9)
            shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
            text += f", {shown}, {tqdm.format_interval((self.total - self.done) / rate)} left"
        show(text, to=self.stream)
