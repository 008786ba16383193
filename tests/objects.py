"""Objects of a cache, wherever it keeps them: a file of their own or a pack that they share.

What these do to the files a process of `mlx` sees at once, as does a `Cache` that has looked already.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

from mlops_cli.hashing import PREFIX, Digest
from mlops_cli.store.cache import Cache, Durability
from mlops_cli.store.links import LinkMode
from mlops_cli.store.pack_format import RECORD_SIZE

LARGE = 100_000  # bytes; an object of this size is a file of its own, whatever the link mode


def large(text: str) -> str:
    """Return a text that begins with `text` and is too large for a pack."""
    return text + "." * LARGE


def cache_at(root: Path) -> Cache:
    """Return the cache at `root`, as a new process sees it."""
    return Cache(root, link=LinkMode.COPY, durability=Durability.NONE)


def stored(root: Path) -> set[str]:
    """Return the names, 64 digits each, of all objects of the cache or folder remote at `root`."""
    return {digest.removeprefix(PREFIX) for digest in cache_at(root).list()}


def contents(root: Path) -> dict[Digest, bytes]:
    """Return all objects of the cache at `root`, none of which may be damaged."""
    cache = cache_at(root)
    return {digest: cache.read(digest, limit=None) for digest in cache.list()}


def is_loose(cache: Cache, digest: Digest) -> bool:
    """Say whether an object is a file of its own."""
    return Path(cache.object_path(digest)).exists()


def lose(cache: Cache, digest: Digest) -> Callable[[], None]:
    """Take an object out of the cache, and return what puts it back."""
    data = cache.read(digest, limit=None)
    Path(cache.object_path(digest)).unlink(missing_ok=True)
    with cache.scratch() as scratch, cache.packs.replacing(wait=True):
        while (place := cache.packs.find(digest)) is not None:
            cache.packs.rewrite([place.pack], scratch.next_path, durable=False, keep=lambda kept: kept != digest)
        cache.packs.reindex(scratch.next_path)
    assert cache.missing([digest]) == {digest}

    def put_back() -> None:
        cache.write([(digest, lambda: io.BytesIO(data))])

    return put_back


def lose_all(root: Path) -> None:
    """Empty the cache at `root` of its objects; everything else in it stays."""
    for name in ("objects", "packs", "index"):
        shutil.rmtree(root / name, ignore_errors=True)


def damage(cache: Cache, digest: Digest) -> None:
    """Flip one bit of an object where it is stored; it must not be empty."""
    with cache.packs.replacing(wait=True):
        place = cache.packs.find(digest)
    if place is None:
        path = Path(cache.object_path(digest))
        at = path.stat().st_size - 1
    else:
        path = Path(cache.packs.path_of(place.pack))
        at = place.offset + RECORD_SIZE + place.stored - 1
        assert place.stored > 0
    mode = path.stat().st_mode
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    path.chmod(mode)
