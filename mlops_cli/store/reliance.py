"""What a push relies on, and whether that is still so once its own segment is written.

A push leaves out what the index named when it looked. A collection may take that out of the index meanwhile, or delete
a file that the push has just written, because it was condemned long ago. The listing that ends every push shows whether
anything of the kind happened: only then is more asked. What was taken out, and still lies there, is put back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mlops_cli.errors import LockedError
from mlops_cli.hashing import Digest, digest_from_raw
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.pack_index import Place
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.remote_index import FOLDERS, RemoteIndex, tables_of
from mlops_cli.store.remote_sweep import file_of, keys_of_sweep


class Reliance:
    """What one clone believes of the remote in `bucket`, as its `index` said; `trash` has what was condemned."""

    def __init__(self, bucket: Bucket, index: RemoteIndex, trash: RemoteIndex) -> None:
        self._bucket = bucket
        self._index = index
        self._trash = trash
        self._believed: list[Collection[Digest]] = []
        self._written: set[str] = set()  # files

    def believe(self, digests: Collection[Digest]) -> None:
        """Note what the index is to name: what is not sent because it does, and what was sent."""
        self._believed.append(digests)

    def wrote(self, keys: Iterable[str]) -> None:
        """Note files that were written."""
        self._written.update(keys)

    def lost(self) -> set[Digest]:
        """Return the objects that are not there any more, of those that were believed or written; asks once a time.

        The index names them no more. LockedError when a collection is just about to delete such a file.
        """
        lost = self._taken_out() if self._index.was_reduced() else set()
        return lost | self._swept() if self._index.was_swept() else lost

    def _taken_out(self) -> set[Digest]:
        believed = {digest for digests in self._believed for digest in digests}
        lacking = believed - self._index.find(believed).keys()
        if not lacking:
            return set()
        self._trash.forget()
        condemned = self._trash.find(lacking)
        if condemned:
            rows = [(bytes.fromhex(digest[7:]), place) for digest, place in condemned.items()]
            self._index.add(tables_of(rows))
            self.wrote(file_of(raw, place) for raw, place in rows)
        return lacking - condemned.keys()

    def _swept(self) -> set[Digest]:
        written = self._written | self._repeated()
        now = max((time for time in self._index.times.values() if time is not None), default=None)
        for found in list(self._index.sweeps.values()):
            if found.key.endswith(".sweep") and (contested := keys_of_sweep(self._bucket, found, now) & written):
                self._renounce(contested)
                raise LockedError(
                    f"{self._bucket.label} is being collected, and files that this push needs are just being deleted "
                    f"there ({len(contested):,})",
                    hint="run the command again in a minute",
                )
        if written != self._written:
            return self._renounce(written - {stored.key for folder in FOLDERS for stored in self._bucket.list(folder)})
        keys = sorted(written)
        sizes = map_bounded(self._bucket.size, keys, self._bucket.parallel)
        return self._renounce({key for key, size in zip(keys, sizes, strict=True) if size is None})

    def _repeated(self) -> set[str]:
        """Return the files that the index names because this push wrote anew what others had written.

        They may have taken that back meanwhile: who writes a file that is just being deleted does.
        """
        if not self._index.merged:
            return set()
        _, tables = self._index.read_all()
        return {file_of(*row) for table in tables for row in table.rows()}

    def _renounce(self, keys: Collection[str]) -> set[Digest]:
        """Let the index name files no more; return the objects in them."""
        if not keys:
            return set()
        _, tables = self._index.read_all()
        lost: set[Digest] = set()
        for table in tables:
            for raw, place in table.rows():
                if file_of(raw, place) in keys:
                    lost.add(digest_from_raw(raw))
        self._written -= set(keys)
        self._index.deny(lost)
        self._index.rewrite()
        return lost - self._index.find(lost).keys()


class Everything:
    """The index of a remote, and its trash for what that does not name: a reader may still have what is condemned."""

    def __init__(self, index: RemoteIndex, trash: RemoteIndex) -> None:
        self._index = index
        self._trash = trash

    def find(self, digests: Collection[Digest]) -> dict[Digest, Place]:
        """Return where each of `digests` is, as far as it is there."""
        found = self._index.find(digests)
        if len(found) < len(digests):
            found |= self._trash.find([digest for digest in digests if digest not in found])
        return found

    def reject(self, pack: str) -> None:
        """Believe no more what is said of a pack: it is not there."""
        self._index.reject(pack)
        self._trash.reject(pack)

    def doubt(self, digest: Digest) -> bool:
        """Look for an object that is damaged elsewhere from now on; returns whether it can be."""
        return self._index.doubt(digest)
