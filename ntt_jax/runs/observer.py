"""Who hears how a long piece of work gets on. The work says nothing by itself."""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Observer(Protocol):
    """Hears what a person wants to know while work goes on (`cli.progress.Progress` shows it on a terminal)."""

    def begin(self, what: str, total: int, *, done: int = 0, unit: str = "images") -> None:
        """A piece of work of `total` steps begins; an earlier start has finished `done` of them."""

    def step(self, count: int = 1) -> None:
        """`count` more steps are finished and saved."""

    def end(self) -> None:
        """The piece of work has ended, finished or not."""

    def note(self, message: str) -> None:
        """Something a person should read now, in one line."""


class Silent:
    """An observer that keeps everything to itself."""

    def begin(self, what: str, total: int, *, done: int = 0, unit: str = "images") -> None:
        """Nothing is shown."""

    def step(self, count: int = 1) -> None:
        """Nothing is shown."""

    def end(self) -> None:
        """Nothing is shown."""

    def note(self, message: str) -> None:
        """Nothing is shown."""


SILENT = Silent()


@contextlib.contextmanager
def work(observer: Observer, what: str, total: int, *, done: int = 0, unit: str = "images") -> Iterator[None]:
    """A piece of work from its begin to its end, however it ends."""
    observer.begin(what, total, done=done, unit=unit)
    try:
        yield
    finally:
        observer.end()


def warn(observer: Observer, message: str) -> None:
    """A warning; the work goes on."""
    observer.note(f"warning: {message}")
