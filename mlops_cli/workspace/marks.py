"""The objects that must stay, from the roots down: of a tree, all that it names.

A tree that is not here may be on a remote, and whatever it names with it. One that was here and was damaged is another
matter: what it named may still be here, and nobody can tell which it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.objects import DamagedObjects, cut
from mlops_cli.store.pack_folder import SUFFIX
from mlops_cli.store.quarantine import read_lost
from mlops_cli.store.trash import Trash
from mlops_cli.workspace.reach import children


class Doubts:
    """What to do about what cannot be known: it is an error, unless `salvage` lets it be passed over with a note."""

    def __init__(self, reporter: Reporter, *, salvage: bool) -> None:
        self.salvage = salvage
        self._reporter = reporter
        self._noted: set[str] = set()

    def pass_over(self, error: MlxError, cause: BaseException | None = None) -> None:
        """Raise an error about what cannot be known; with `salvage`, only tell it."""
        if not self.salvage:
            raise error from cause
        self.note(error.message)

    def note(self, message: str) -> None:
        """Tell something, once."""
        if message not in self._noted:
            self._noted.add(message)
            self._reporter.note(message)


class Marks:
    """The `objects` of `cache` that are marked, as 32-byte digests; what was marked once is not read again."""

    def __init__(self, cache: Cache, doubts: Doubts, reporter: Reporter) -> None:
        self.objects: set[bytes] = set()
        self._cache = cache
        self._trash = Trash(cache)
        self._doubts = doubts
        self._reporter = reporter
        self._entered: set[bytes] = set()  # trees
        self._absent: dict[Digest, tuple[str, bool | None]] = {}  # trees that are not here: who needs each, is it one
        self._promised: set[Digest] = set()  # what some remote is to have, too

    def retry(self) -> None:
        """Mark again what trees name that were not here: they may have come, or have gone to the trash."""
        self._trash = Trash(self._cache)
        waiting, self._absent = self._absent, {}
        for digest, (name, is_tree) in waiting.items():
            self.mark([(digest, is_tree)], name, promised=())

    def absent(self, *, promised: bool = False) -> dict[Digest, str]:
        """Return the trees that are needed and not here, and who needs each; `promised`: that remotes are to have."""
        return {digest: name for digest, (name, _) in self._absent.items() if digest in self._promised or not promised}

    def mark(
        self,
        roots: Iterable[tuple[Digest, bool | None]],
        name: str,
        *,
        optional: bool = False,
        promised: Collection[Digest] | None = None,
    ) -> None:
        """Mark each root, and of a tree all below it; a root of None may be either.

        What is `optional` is kept as far as it is here: nothing is lost with it that cannot be made again. Remotes are
        to have what is `promised` (None: all roots).
        """
        roots = list(roots)
        if not optional:
            self._promised.update((digest for digest, _ in roots) if promised is None else promised)
        self._mark_below(self._mark_roots(roots, name), name, optional=optional)

    def _mark_roots(self, roots: Iterable[tuple[Digest, bool | None]], name: str) -> list[Digest]:
        """Mark the roots that are no trees; return the others."""
        objects = self.objects
        trees: list[Digest] = []
        for digest, is_tree in roots:
            raw = raw_digest(digest)
            if is_tree is False:
                objects.add(raw)
            elif raw not in self._entered:
                if is_tree is None and not self._is_tree(digest, name):
                    objects.add(raw)
                else:
                    trees.append(digest)
        return trees

    def _mark_below(self, trees: list[Digest], name: str, *, optional: bool) -> None:
        """Mark trees, and all below them."""
        objects = self.objects
        while trees:
            digest = trees.pop()
            raw = raw_digest(digest)
            if raw in self._entered:
                continue
            self._entered.add(raw)
            objects.add(raw)
            try:
                inner, blobs = children(self._tree(digest), digest)
            except MissingObject:
                if not optional:
                    self._absent[digest] = name, True
                self._entered.discard(raw)  # it may have come by the next look
                continue
            except CorruptObject as error:
                self._entered.discard(raw)  # who needs it for sure must stumble over it, too
                if not optional:
                    self._doubts.pass_over(_untold(name, error.message), error)
                continue
            trees.extend(inner)
            if digest in self._promised:
                self._promised.update(inner)
            objects.update(map(raw_digest, blobs))
            self._reporter.advance(len(blobs))

    def _is_tree(self, digest: Digest, name: str) -> bool:
        try:
            children(self._tree(digest), digest)
        except MissingObject:
            self._absent[digest] = name, None
            return False
        except DamagedObjects as error:
            self._doubts.pass_over(_untold(name, error.message), error)
            return False
        except CorruptObject:
            return False
        return True

    def _tree(self, digest: Digest) -> bytes:
        """Return a tree, also one in the trash, from where it is about to come back."""
        try:
            return self._cache.read(digest)
        except MissingObject:
            return self._trash.read(digest)

    def refuse_lost(self) -> None:
        """Refuse to go on when a tree that is needed may have been here, and was damaged: what it named is unknown."""
        if not self._absent:
            return
        lost = read_lost(self._cache)
        for digest, (name, _) in self._absent.items():
            if raw_digest(digest) in lost.objects:
                self._doubts.pass_over(
                    _untold(name, f"object `{cut(digest)}` was damaged, and is in `quarantine/` of the cache")
                )
        packs = [path for path in self._cache.packs.damaged if path.endswith(SUFFIX) and os.path.exists(path)]
        for path in (*lost.unreadable, *packs):
            name = next(iter(self._absent.values()))[0]
            hint = "`mlx fsck` tells more" if path in packs else "remove that file if nothing in it is wanted"
            self._doubts.pass_over(_untold(name, f"a part of it may be in `{path}`, which cannot be read", hint))


def _untold(name: str, why: str, hint: str = "`mlx fsck --repair` may bring a good one") -> CorruptObject:
    return CorruptObject(
        f"nobody can tell what `{name}` needs: {why}",
        hint=f"nothing was collected; {hint}, or `--salvage` goes on without it",
    )
