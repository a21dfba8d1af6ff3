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

MAX_PIXELS = 400_000_000
"""Of all images that wait or are being worked on: 1.2 GB. A file of a few kilobytes may hold half of them."""


class Busy(Exception):
    """The queue is full: the caller should come again after so many seconds."""

    def __init__(self, seconds: int):
        self.seconds = seconds


class PredictionQueue:
    """One thread that takes what has come, up to `at_once` images, and gives each caller what was found in its own.

    predict: images in, one result each out, in order and lazily; called in that thread alone, so programs that are not
    made for threads may be behind it. limit: images that may wait; max_pixels: of all images that are here, but one
    alone may have more. Further ones raise `Busy`.
    """

    def __init__(
        self,
        predict: Callable[[Iterable[np.ndarray]], Iterator[Any]],
        metrics: Metrics,
        *,
        limit: int,
        at_once: int,
        max_pixels: int = MAX_PIXELS,
    ):
        self._predict, self._metrics, self._at_once = predict, metrics, at_once
        self._queue: queue.Queue[tuple[np.ndarray, Future[Any]] | None] = queue.Queue(limit)
        self._max_pixels, self._pixels, self._counting = max_pixels, 0, threading.Lock()
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
        return self._queue.full() or self._pixels >= self._max_pixels

    @property
    def patience(self) -> int:
        """Seconds after which half of those that may wait now will have been answered."""
        return min(60, max(1, round(self._each * self._queue.maxsize / 2)))

    async def __call__(self, image: np.ndarray, seconds: float) -> Any:
        """What was found in an image. Raises `Busy`, `TimeoutError` after `seconds`, or what the prediction raised."""
        future: Future[Any] = Future()
        pixels = image.shape[0] * image.shape[1]
        with self._counting:
            if self._pixels and self._pixels + pixels > self._max_pixels:
                raise Busy(self.patience)
            try:
                self._queue.put_nowait((image, future))
            except queue.Full:
                raise Busy(self.patience) from None
            self._pixels += pixels
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
            ended, taken = None in items, [item for item in items if item is not None]
            self._answer_all([item for item in taken if item[1].set_running_or_notify_cancel()])
            with self._counting:
                self._pixels -= sum(image.shape[0] * image.shape[1] for image, _ in taken)
            del items, taken  # while it waits for more
            if ended:
                return

    def _answer_all(self, wanted: Sequence[tuple[np.ndarray, Future[Any]]]) -> None:
        try:
            self._answer(wanted)
        except Exception as error:
            left = [item for item in wanted if not item[1].done()]
            if len(wanted) == 1:
                left[0][1].set_exception(error)
            else:  # it may be one image's fault: the others are not to suffer for it
                for item in left:
                    self._answer_alone(item)

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
