"""A bounded number of threads over any number of items.

Threads pay where the wait is for a network; the window keeps memory and open files the same for ten items and for ten
million. With one job no thread is started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_bounded(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, with at most `jobs` running and twice that many taken ahead.

    The first exception ends it: what has not begun is dropped, what runs is waited for.
    """
    if jobs <= 1:
        yield from map(function, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415 - 18 ms that work in one thread saves

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="mlx-store")
    try:
        source = iter(items)
        window: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(source, 2 * jobs))
        while window:
            result = window.popleft().result()
            for item in islice(source, 1):
                window.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
