"""Images of many callers through one compiled pass: waited for in a queue of bounded length, done in batches."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np

from ntt_jax.app.metrics import Metrics


class Busy(Exception):
    """The queue is full: the caller should come again later."""


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
        self._thread = threading.Thread(target=self._work, name="predictions", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that no work has begun on."""
        return self._queue.qsize()

    async def __call__(self, image: np.ndarray, seconds: float) -> Any:
        """What was found in an image. Raises `Busy`, `TimeoutError` after `seconds`, or what the prediction raised."""
        future: Future[Any] = Future()
        try:
            self._queue.put_nowait((image, future))
        except queue.Full:
            raise Busy from None
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
                found = self._predict(image for image, _ in wanted)
                for _, future in wanted:
                    future.set_result(next(found))
                    self._metrics.images(1)
            except Exception as error:
                for _, future in wanted:
                    if not future.done():
                        future.set_exception(error)
            if ended:
                return
