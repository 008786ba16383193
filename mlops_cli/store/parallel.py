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

_MOMENT = 0.5  # s


def map_bounded(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int,
    *,
    weigh: Callable[[Item], int] = lambda _: 0,
    most: int = 0,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, with at most `jobs` running and twice that many taken ahead.

    Of items that `weigh` something, no more are taken ahead when those that are weigh `most` together. While this
    thread waits for others it calls `meanwhile` twice a second. The first exception ends it: what has not begun is
    dropped, what runs is waited for.
    """
    if jobs <= 1:
        yield from map(function, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor, wait  # noqa: PLC0415 - 18 ms that work in one thread saves

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="mlx-store")
    try:
        source = iter(items)
        window: deque[tuple[Future[Result], int]] = deque()
        weight = 0
        while True:
            while len(window) < 2 * jobs and weight <= most:
                taken = list(islice(source, 1))
                if not taken:
                    break
                its = weigh(taken[0])  # before it begins: it may be a file that goes
                weight += its
                window.append((pool.submit(function, taken[0]), its))
            if not window:
                return
            future, its = window.popleft()
            while not wait([future], _MOMENT).done:
                meanwhile()
            result = future.result()
            weight -= its
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
