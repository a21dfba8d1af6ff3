"""Images of many callers through one pass."""

import asyncio
import threading

import numpy as np
import pytest

pytest.importorskip("fastapi")

from ntt_jax.app.metrics import Metrics
from ntt_jax.app.queueing import Busy, PredictionQueue


def image(value):
    return np.full((1, 1, 3), value, np.uint8)


def test_everybody_gets_what_is_theirs():
    sizes = []

    def predict(images):
        found = [int(one[0, 0, 0]) for one in images]
        sizes.append(len(found))
        yield from found

    queue = PredictionQueue(predict, Metrics(), limit=200, at_once=16)

    async def all_at_once():
        return await asyncio.gather(*(queue(image(i), 60) for i in range(200)))

    assert asyncio.run(all_at_once()) == list(range(200))
    assert max(sizes) <= 16 and sum(sizes) == 200 and len(sizes) < 200
    queue.close()


def test_full_late_and_broken():
    go, began = threading.Event(), threading.Event()

    def predict(images):
        for one in images:
            began.set()
            go.wait()
            if one[0, 0, 0] == 13:
                raise ValueError("broken")
            yield int(one[0, 0, 0])

    queue = PredictionQueue(predict, Metrics(), limit=2, at_once=1)

    async def asked():
        first = asyncio.create_task(queue(image(1), 60))
        await asyncio.to_thread(began.wait)
        second, third = (asyncio.create_task(queue(image(value), 60)) for value in (13, 3))
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:
            await queue(image(4), 60)
        assert queue.waiting == 2 and queue.full and refused.value.seconds == queue.patience == 1
        third.cancel()  # who gives up is passed over
        go.set()
        return await asyncio.gather(first, second, third, return_exceptions=True)

    first, second, third = asyncio.run(asked())
    assert first == 1 and isinstance(second, ValueError) and isinstance(third, asyncio.CancelledError)
    go.clear()

    async def late():
        await queue(image(5), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(late())
    go.set()
    queue.close()


def test_one_bad_image_is_nobody_elses_trouble():
    def predict(images):
        for one in images:
            if one[0, 0, 0] == 13:
                raise ValueError("broken")
            yield int(one[0, 0, 0])

    queue = PredictionQueue(predict, Metrics(), limit=20, at_once=16)

    async def all_at_once():
        return await asyncio.gather(*(queue(image(i), 60) for i in range(11, 16)), return_exceptions=True)

    found = asyncio.run(all_at_once())
    assert isinstance(found.pop(2), ValueError) and found == [11, 12, 14, 15]
    queue.close()


def test_large_images_fill_it_sooner():
    go = threading.Event()

    def predict(images):
        for one in images:
            go.wait()
            yield one.shape[0]

    queue = PredictionQueue(predict, Metrics(), limit=100, at_once=1, max_pixels=1000)

    async def asked():
        large = np.zeros((30, 40, 3), np.uint8)  # alone, it may have more than all together
        first = asyncio.create_task(queue(large, 60))
        await asyncio.sleep(0)
        assert queue.full
        with pytest.raises(Busy):
            await queue(image(1), 60)
        go.set()
        assert await first == 30
        while queue.full:
            await asyncio.sleep(0)
        return await asyncio.gather(*(queue(np.zeros((rows, 10, 3), np.uint8), 60) for rows in (40, 50)))

    assert asyncio.run(asked()) == [40, 50]
    queue.close()
