"""What the records of a workspace need of a cache in which something may be damaged, and who needs what."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.damage import DamagedObject
from mlops_cli.store.objects import DamagedObjects
from mlops_cli.store.quarantine import peek
from mlops_cli.store.trash import Trash
from mlops_cli.workspace.reach import Reach, reach
from mlops_cli.workspace.snapshot import Tracked


class SoundCache:
    """The cache without what is known to be damaged in it; what turns out so when it is read is put away too."""

    def __init__(self, cache: Cache, damaged: Sequence[DamagedObject], *, dry_run: bool) -> None:
        self.damaged = {item.digest: item for item in damaged}
        self._cache = cache
        self._trash = Trash(cache)
        self._dry_run = dry_run
        self._hidden = {item.digest for item in damaged if item.moved is None}

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not here, or not good."""
        return self._cache.missing(digests) | self._hidden.intersection(digests)

    def read(self, digest: Digest) -> bytes:
        """Return a tree; MissingObject, also for one that is damaged."""
        if digest in self._hidden:
            raise MissingObject(f"object `{digest}` is damaged")
        try:
            return peek(self._cache, digest)
        except DamagedObjects as error:
            self._put_away(digest, error.message)
            raise MissingObject(error.message) from error

    def verify(self, digests: Collection[Digest]) -> None:
        """Read those of `digests` that have just come; what is damaged is put away again."""
        for digest in digests:
            with suppress(MissingObject, CorruptObject):  # the cache has quarantined it by then
                self._cache.check(digest)

    def in_trash(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that the trash of the cache has."""
        return set(self._trash.find({raw_digest(digest) for digest in digests})) if digests else set()

    def _put_away(self, digest: Digest, why: str) -> None:
        moved = None
        if not self._dry_run:
            with suppress(OSError):
                moved = self._cache.quarantine(digest).relative_to(self._cache.root).as_posix()
        if moved is None:
            self._hidden.add(digest)
        self.damaged[digest] = DamagedObject(digest, why, moved)


class Needs:
    """What the records of the workspace need: which of it is `absent`, and who needs what."""

    def __init__(self, sound: SoundCache, tracked: Sequence[Tracked], reporter: Reporter = SILENT) -> None:
        self.absent: set[Digest] = set()
        self._sound = sound
        # What remotes never get is only in the clone that made it.
        self._tracked = [entry for entry in tracked if entry.push or not sound.missing([entry.digest])]
        for entry in self._tracked:
            reporter.advance(1)
            found = reach_of(sound, entry)
            self.absent |= found.unread | sound.missing(found.sizes)

    def owners(self, digests: Collection[Digest]) -> dict[Digest, list[Tracked]]:
        """Return the tracked paths that need each of `digests`, for those that some do."""
        found: dict[Digest, list[Tracked]] = {}
        for entry in self._tracked if digests else ():
            for digest in reach_of(self._sound, entry).owners.keys() & set(digests):
                found.setdefault(digest, []).append(entry)
        return found


def reach_of(sound: SoundCache, entry: Tracked) -> Reach:
    """Return what a tracked path needs, whatever turns out to be damaged on the way."""
    while True:
        before = len(sound.damaged)
        try:
            return reach(sound, [(entry, "")])
        except MissingObject:  # a tree that was here, and turned out to be damaged
            if len(sound.damaged) == before:
                raise
        except CorruptObject as error:  # its bytes are its own, but it is no tree: the record is wrong
            sound.damaged[entry.digest] = DamagedObject(entry.digest, error.message, None)
            return Reach(owners={entry.digest: entry.path})
