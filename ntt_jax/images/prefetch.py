"""Host work done ahead of the device: a map over threads that keeps the order and a bounded distance."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int, workers: int = 4
) -> Iterator[Result]:
    """`function` of every item, in order, computed by `workers` threads while the caller uses earlier results.

    At most `ahead` results wait to be asked for, so memory stays bounded. An exception of `function` is raised where
    its result would have come.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
