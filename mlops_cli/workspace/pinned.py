"""Imports whose bytes never came: recorded with `--no-download`, or lost since; their sources have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlops_cli.progress import Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.remote import Remote
from mlops_cli.workspace.reach import reach
from mlops_cli.workspace.snapshot import Tracked

Pair = tuple[Tracked, str]


def is_pinned(tracked: Tracked) -> bool:
    """Say whether what is recorded is what the source had, and so may be brought from there."""
    return tracked.source is not None and tracked.source.fetched == tracked.digest


def leave_pinned(cache: Cache, store: Remote, share: Sequence[Pair], reporter: Reporter) -> Sequence[Pair]:
    """Return `share` without the imports of which neither the cache nor the remote has everything; each is a note."""
    left = set(_find_pinned(cache, store, share))
    for tracked in sorted({tracked.path: tracked for tracked, _ in left}.values(), key=lambda tracked: tracked.path):
        reporter.note(
            f"`{tracked.path}` is not pushed: its bytes are not here; the same `mlx import` without `--no-download` "
            "brings them"
        )
    return [pair for pair in share if pair not in left] if left else share


def _find_pinned(cache: Cache, store: Remote, share: Sequence[Pair]) -> Iterator[Pair]:
    for pair in share:
        if is_pinned(pair[0]):
            needed = reach(cache, [pair])
            absent = needed.unread | cache.missing(needed.sizes)
            if absent and store.missing(absent):
                yield pair
