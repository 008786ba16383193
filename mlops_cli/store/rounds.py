"""Cutting what is to move into rounds, so that what is here at once has few bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rounds_of(items: Sequence[Item], size_of: Callable[[Item], int], most: int | None) -> Iterator[Sequence[Item]]:
    """Yield `items` in order, in rounds of at most `most` bytes, or one item; all at once when that is None.

    There is always a round, be it empty.
    """
    if most is None:
        yield items
        return
    start = size = 0
    for number, item in enumerate(items):
        more = size_of(item)
        if number > start and size + more > most:
            yield items[start:number]
            start, size = number, 0
        size += more
    yield items[start:]
