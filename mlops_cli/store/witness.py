"""Telling, without asking for each object, that a store has lost none since it was last asked for all.

Objects leave a store with the file that holds them: a pack, or a loose object from its folder. So when no pack is gone
and no folder of loose objects has changed, all that was there still is. What is damaged where it lies is found by
whoever reads it, not here.
"""

from __future__ import annotations

import marshal
import os
import time
from contextlib import suppress
from typing import NamedTuple

import xxhash

from mlops_cli.store.packed import PackedStore

_SETTLED_NS = 2_000_000_000  # the coarsest tick of a folder's time of change


class Witness(NamedTuple):
    """What a store looked like: the names of its packs, and when each folder of loose objects changed, in ns.

    With it goes the size, in bytes, up to which an object is believed to be in a pack.
    """

    root: str
    packs: frozenset[str]
    shards: tuple[tuple[str, int], ...]
    pack_below: int
    at: int

    @classmethod
    def of(cls, store: PackedStore) -> Witness:
        """Look at a store; OutsideError when it cannot be looked into."""
        at = time.time_ns()
        objects = store.root / "objects"
        shards = []
        try:
            with suppress(FileNotFoundError), os.scandir(objects) as entries:
                shards = sorted((entry.name, entry.stat(follow_symlinks=False).st_mtime_ns) for entry in entries)
            packs = store.packs.names()
        except OSError as error:
            raise store.trouble(error, f"look into {store.label}") from error
        return cls(os.fspath(store.root), frozenset(packs), tuple(shards), store.pack_below, at)

    @property
    def stamp(self) -> bytes:
        """16 bytes that stand for this; none while a folder is so young that its next change might not show."""
        if any(changed > self.at - _SETTLED_NS for _, changed in self.shards):
            return b""
        facts = (self.root, sorted(self.packs), self.shards, self.pack_below)
        return xxhash.xxh3_128_digest(marshal.dumps(facts, 2))

    def still_has(self, before: Witness) -> bool:
        """Say whether all that was there `before` surely is now."""
        return self.root == before.root and self.packs >= before.packs and self.shards == before.shards
