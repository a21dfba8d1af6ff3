"""Images of many callers through one compiled pass: waited for in a queue of bounded length, done in batches."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from ntt_jax.app.metrics import Metrics


class Busy(Exception):
    """The queue is full: the caller should come again after so many seconds."""

    def __init__(self, seconds: int):
        self.seconds = seconds


class PredictionQueue:
    """One thread that takes what has come, up to `at_once` images, and gives each caller what was found in its own.

    predict: images in, one result each out, in order and lazily; called in that thread alone, so programs that are not
    made for threads may be behind it. limit: images that may wait; further ones raise `Busy`.
    """

    def __init__(
        self, predict: Callable[[Iterable[np.ndarray]], Iterator[Any]], metrics: Metrics, *, limit: int, at_once: int
    ):
        self._predict, self._metrics, self._at_once = predict, metrics, at_once
        self._queue: queue.Queue[tuple[np.ndarray, Future[Any]] | None] = queue.Queue(limit)
        self._each = 1.0  # seconds for an image, lately
        self._thread = threading.Thread(target=self._work, name="predictions", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that no work has begun on."""
        return self._queue.qsize()

    @property
    def full(self) -> bool:
        """Whether no more images may wait."""
        return self._queue.full()

    @property
    def patience(self) -> int:
        """Seconds after which half of those that may wait now will have been answered."""
        return min(60, max(1, round(self._each * self._queue.maxsize / 2)))

    async def __call__(self, image: np.ndarray, seconds: float) -> Any:
        """What was found in an image. Raises `Busy`, `TimeoutError` after `seconds`, or what the prediction raised."""
        future: Future[Any] = Future()
        try:
            self._queue.put_nowait((image, future))
        except queue.Full:
            raise Busy(self.patience) from None
        # A caller who gives up cancels the future, and an image that nobody waits for is passed over.
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)

    def close(self) -> None:
        """End the thread after what it is doing; what waits is refused."""
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[1].cancel()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            items = [self._queue.get()]
            while len(items) < self._at_once:
                try:
                    items.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = None in items
            wanted = [item for item in items if item is not None and item[1].set_running_or_notify_cancel()]
            try:
                self._answer(wanted)
            except Exception as error:
                left = [item for item in wanted if not item[1].done()]
                if len(wanted) == 1:
                    left[0][1].set_exception(error)
                else:  # it may be one image's fault: the others are not to suffer for it
                    for item in left:
                        self._answer_alone(item)
            if ended:
                return

    def _answer(self, items: Sequence[tuple[np.ndarray, Future[Any]]]) -> None:
        found, began = self._predict(image for image, _ in items), time.monotonic()
        for _, future in items:
            future.set_result(next(found))
            self._metrics.images(1)
        if items:
            self._each += ((time.monotonic() - began) / len(items) - self._each) / 4

    def _answer_alone(self, item: tuple[np.ndarray, Future[Any]]) -> None:
        try:
            self._answer([item])
        except Exception as error:
            item[1].set_exception(error)
