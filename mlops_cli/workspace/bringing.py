"""Bringing what tracked paths need to a cache: the trees first, because they say which blobs are wanted.

To a cache behind a URL all passes through this machine, a round at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.cache import Cache
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.remote import Remote, Transferred
from mlops_cli.store.rounds import rounds_of
from mlops_cli.store.url_cache import UrlCache
from mlops_cli.workspace.reach import children, reach, resolve_part
from mlops_cli.workspace.shortfalls import refuse_gone
from mlops_cli.workspace.snapshot import Tracked


class Bringing(Protocol):
    """Something that brings objects into a cache, verified: a remote, or what stands for one."""

    def bring(self, cache: Cache, digests: Collection[Digest], *, jobs: int, reporter: Reporter) -> Transferred: ...


def find_absent(cache: Cache, store: Remote, chosen: Iterable[tuple[Tracked, str]]) -> set[Digest]:
    """Return the objects that `chosen` needs and neither store has; what lies below a tree there counts as there.

    Nothing is downloaded. RemoteError when `store` is not there.
    """
    needed = reach(cache, chosen)
    absent = store.missing(cache.missing(needed.sizes) | needed.unread)
    if absent:
        refuse_gone(store)
    return absent


def fetch_objects(
    cache: Cache,
    store: Bringing,
    chosen: Iterable[tuple[Tracked, str]],
    *,
    jobs: int = 0,
    reporter: Reporter = SILENT,
    label: str = "fetching",
) -> Transferred:
    """Copy into `cache` everything that each tracked path (or the part of it that is meant) needs.

    The listings come first, by themselves: what they name says how many bytes the rest is, which is told then.
    """
    reporter.start(f"{label} listings", None, "bytes")
    fetched = _Fetching(cache.window, store, jobs, reporter)
    levels: list[list[Digest]] = []
    blobs: dict[Digest, int] = {}
    frontier: list[Digest] = []
    for tracked, part in chosen:
        kind, digest, size = resolve_part(fetched, tracked, part)
        if kind is ObjectKind.TREE:
            frontier.append(digest)
        else:
            blobs[digest] = size
    while frontier:  # level by level: one batch a level, however many folders
        level = list(dict.fromkeys(frontier))
        fetched.bring(level)
        levels.append(level)
        frontier = []
        for digest in level:
            below_trees, below_blobs = children(cache.window.read(digest), digest)
            frontier.extend(below_trees)
            blobs.update(below_blobs)
    if isinstance(cache, UrlCache):
        return fetched.done.plus(_relay(cache, store, blobs, levels, label=label, jobs=jobs, reporter=reporter))
    lacking = cache.missing(blobs)
    reporter.start(label, sum(blobs[digest] for digest in lacking), "bytes")
    fetched.bring([digest for digest in blobs if digest in lacking])
    return fetched.done


class _Fetching:
    """A view of the cache that brings what it lacks from a remote when it is read."""

    def __init__(self, cache: Cache, store: Bringing, jobs: int, reporter: Reporter) -> None:
        self.done = Transferred(0, 0)
        self._cache = cache
        self._store = store
        self._jobs = jobs
        self._reporter = reporter

    def bring(self, digests: Sequence[Digest]) -> None:
        if digests:
            self.done = self.done.plus(
                self._store.bring(self._cache, digests, jobs=self._jobs, reporter=self._reporter)
            )

    def read(self, digest: Digest) -> bytes:
        self.bring([digest])
        return self._cache.read(digest)


def _relay(
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
