"""Listings of folders: those of the cache, and of a remote where the cache lacks them. Nothing is stored."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.hashing import Digest
from mlops_cli.store.cache import Cache
from mlops_cli.store.remote import Remote


class Listings:
    """Trees of `cache`, and of `store` where the cache lacks them; each comes once."""

    def __init__(self, cache: Cache, store: Remote) -> None:
        self._cache = cache
        self._store = store
        self._read: dict[Digest, bytes] = {}

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are good in neither."""
        return {digest for digest in self._cache.missing(digests) if self._bring(digest) is None}

    def read(self, digest: Digest) -> bytes:
        """Return a tree; MissingObject, CorruptObject."""
        data = self._read.get(digest)
        return self._cache.read(digest) if data is None else data

    def _bring(self, digest: Digest) -> bytes | None:
        if digest not in self._read:
            with suppress(MissingObject, CorruptObject):
                self._read[digest] = self._store.read(digest)
        return self._read.get(digest)
