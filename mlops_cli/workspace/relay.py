"""Bringing objects from a remote to a cache behind a URL: they pass through this machine, a round at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from mlops_cli.hashing import Digest
from mlops_cli.progress import Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.remote import Transferred
from mlops_cli.store.rounds import rounds_of
from mlops_cli.store.url_cache import UrlCache


class Bringing(Protocol):
    """Something that brings objects into a cache, verified: a remote, or what stands for one."""

    def bring(self, cache: Cache, digests: Collection[Digest], *, jobs: int, reporter: Reporter) -> Transferred: ...


def relay(
    cache: UrlCache,
    store: Bringing,
    blobs: Mapping[Digest, int],
    levels: Sequence[Sequence[Digest]],
    *,
    label: str,
    jobs: int,
    reporter: Reporter,
) -> Transferred:
    """Store what `cache` lacks of `blobs` (with their bytes), then of the trees of `levels`, the topmost first.

    The trees are in the window already. What passes counts half when it is here, and in full when it is stored.
    AbsentObjects or DamagedObjects when `store` has not all of it.
    """
    trees = {digest: len(cache.window.read(digest)) for level in reversed(levels) for digest in level}
    lacking = cache.missing({**blobs, **trees})
    reporter.start(label, sum(size for digest, size in {**blobs, **trees}.items() if digest in lacking), "bytes")
    halves = _Halves(reporter)
    done = Transferred(0, 0)
    for share in rounds_of([digest for digest in blobs if digest in lacking], blobs.__getitem__, cache.most_at_once):
        with cache.open_near() as near:
            done = done.plus(store.bring(near, share, jobs=jobs, reporter=halves))
            cache.send(near, Wanted(share, [], blobs), halves)
    listings = [digest for digest in trees if digest in lacking]
    if listings:
        cache.send(cache.window, Wanted([], listings, trees), reporter)
    return done


class _Halves:
    """Passes on half of what it is told: every byte goes two ways."""

    def __init__(self, reporter: Reporter) -> None:
        self.start = reporter.start
        self.note = reporter.note
        self._advance = reporter.advance
        self._odd = 0

    def advance(self, amount: int) -> None:
        half, self._odd = divmod(self._odd + amount, 2)
        self._advance(half)
