"""Changing some paths of a stored folder without looking at the rest.

New trees are kept in memory until the last change is made: what many changes pass through on the way is not stored,
only the trees that the result names.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.store.batch import Batch
from mlops_cli.store.trees import EMPTY_TREE, Entry, Index, Kind, decode_tree, edit, find, graft
from mlops_cli.workspace.scan import Scanner

Parts = tuple[bytes, ...]


class Rewriting:
    """Trees in the making over those that a scan has seen or the cache holds."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._new: dict[Digest, bytes] = {}

    def add_bytes(self, data: bytes) -> Digest:
        """Keep a new tree."""
        digest = hash_bytes(data)
        self._new[digest] = data
        return digest

    def read(self, digest: Digest) -> bytes:
        """Return a tree, new or old; MissingObject."""
        found = self._new.get(digest)
        return self._scanner.read(digest) if found is None else found

    def rewrite(self, root: Digest, changes: Mapping[Parts, Entry | None], batch: Batch | None) -> Entry:
        """Return the entry, without a name, of `root` with every path of `changes` replaced, or removed for None.

        The new trees that it names go to `batch`. MissingObject when a tree on the way is not here.
        """
        result = Entry(b"", Kind.FOLDER, 0, 0, root)
        for parent in sorted({parts[:-1] for parts in changes}, key=len):  # a folder before what is changed in it
            below = {parts[-1]: entry for parts, entry in changes.items() if parts[:-1] == parent}
            result = self._replace(result.digest, parent, below)
        self.keep(result.digest, batch)
        return result

    def keep(self, root: Digest, batch: Batch | None) -> None:
        """Give the new trees that `root` names to `batch`, and all that there are to the scan."""
        self._scanner.trees.update(self._new)
        if batch is not None:
            for data in reversed(self._needed(root)):
                batch.add_bytes(data)

    def _replace(self, root: Digest, parent: Parts, changes: Mapping[bytes, Entry | None]) -> Entry:
        """Change several names of one folder at once: a thousand new files cost one new tree, not a thousand."""
        if len(changes) == 1:
            ((name, entry),) = changes.items()
            return graft(self, self, root, (*parent, name), entry)
        folder = find(self, root, parent) if parent else Entry(b"", Kind.FOLDER, 0, 0, root)
        there = folder.digest if folder is not None and folder.kind == Kind.FOLDER else None
        changed = edit(self, self, there, changes)
        left = changed if changed.digest != EMPTY_TREE else None
        return graft(self, self, root, parent, left) if parent else changed

    def _needed(self, root: Digest) -> list[bytes]:
        """Return the new trees that `root` needs, each before those that it names itself."""
        needed: list[bytes] = []
        pending = [root]
        while pending:
            digest = pending.pop()
            data = self._new.pop(digest, None)
            if data is None:
                continue
            needed.append(data)
            tree = decode_tree(data, digest)
            below = tree.leaves if isinstance(tree, Index) else [entry for entry in tree if entry.kind == Kind.FOLDER]
            pending.extend(item.digest for item in below)
        return needed
