"""Objects on their way into a cache behind a URL: files go up from where they lie, and are not copied here.

A file is read twice, once for its digest and once on its way up, where it is hashed again: what is stored is what was
hashed first, or the batch fails. Listings go up after all that they name, and stay here too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from mlops_cli.errors import UsageError
from mlops_cli.hashing import RAW_SIZE, Digest, digest_from_raw, hash_bytes, raw_digest
from mlops_cli.progress import Reporter
from mlops_cli.store.backed_cache import BackedCache
from mlops_cli.store.batch import Added, Batch
from mlops_cli.store.cache import Cache
from mlops_cli.store.copying import SMALL
from mlops_cli.store.objects import DamagedObjects
from mlops_cli.store.pack_index import read_footer
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.sources import hash_stable, is_open_for_writing, read_stable
from mlops_cli.store.tree_format import MAGIC
from mlops_cli.store.url_cache import ROUND, UrlCache


class UrlBatch(Batch):
    """Objects being added to a cache behind a URL; for one thread.

    Those that are given as files of somebody's (`add_file`) stay files until they go up; those that are written for the
    batch (`take`, `add_bytes`) go up whenever there are many bytes of them.
    """

    def __init__(self, cache: UrlCache, reporter: Reporter) -> None:
        super().__init__(cache)
        self._url_cache = cache
        self._reporter = reporter
        self._files: dict[Digest, tuple[str, int]] = {}
        self._taken = 0

    def add_file(self, path: str, size: int, *, copied: bool = False, seen: os.stat_result | None = None) -> Digest:  # noqa: ARG002
        """Add a regular file of `size` bytes, of which `seen` may be the stat, and return its digest.

        It must stay as it is until the batch is published. A symlink to an object stands for that object. UsageError
        when it is no regular file, is not `size` bytes, or keeps changing while it is read.
        """
        try:
            self.stat = None
            if size > SMALL:
                self.was_written = is_open_for_writing(path)
                digest, self.stat = hash_stable(path, size)
            else:
                data, self.stat, self.was_written = read_stable(path, size, seen)
                digest = hash_bytes(data)
        except UsageError:
            linked = self._add_linked(path, size)
            if linked is None:
                raise
            return linked
        if not self.has(digest, size):
            self._files[digest] = path, size
        return digest

    def take(self, path: str) -> tuple[Digest, int]:
        """Add the file that somebody has written at a reserved path, which is then no more; return digest and bytes."""
        digest, size = super().take(path)
        self._taken += size
        if self._taken >= ROUND:
            self.publish()
        return digest, size

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Say whether an object is in this batch or in the cache."""
        return digest in self._files or super().has(digest, size)

    def read(self, digest: Digest) -> bytes:
        """Return the verified bytes of an object of this batch or of the cache."""
        if digest not in self._files:
            return super().read(digest)
        path, size = self._files[digest]
        return BackedCache(self._url_cache, {digest: os.fsencode(path)}, super().read).read(digest, limit=size)

    def publish(self) -> None:
        """Send everything that was added; it is durable and visible then.

        UsageError for a file that is not what it was when it was added; RemoteError.
        """
        files, self._files, self._taken = self._files, {}, 0
        pending, self._pending = self._pending, {}
        sealed = self._seal()
        if not (files or pending or sealed):
            self._url_cache.remote.confirm()
            return
        sizes = {digest: size for digest, (_, size) in files.items()}
        sizes |= {digest: os.stat(path).st_size for digest, path in pending.items()}
        blobs = sorted(files, key=lambda digest: files[digest][0])  # what lies together goes into the same packs
        blobs += pending
        packed = list(_in_order(sealed))
        sizes |= packed
        with self._url_cache.open_near() as near:
            try:
                near.publish(pending, sealed)
            except OSError as error:
                raise self._cache.trouble(error, "add to the cache") from error
            paths = {digest: os.fsencode(path) for digest, (path, _) in files.items()}
            source = BackedCache(near, paths, near.read)
            self._reporter.start("storing", sum(sizes.values()), "bytes")
            try:
                self._url_cache.send(source, Wanted(blobs, list(dict(packed)), sizes), self._reporter)
            except DamagedObjects as error:
                raise UsageError(error.message, hint=error.marked_hint) from error
            self._url_cache.keep_trees(list(_listings(near, packed)))

    def prepare(self) -> None:
        """Make ready for copies of this process to add to this batch too: they ask nobody what is stored."""
        super().prepare()
        self._url_cache.prepare()

    def divide(self, worker: int) -> None:
        """Go on as worker number `worker`, a copy of the process whose batch this is."""
        super().divide(worker)
        self._files = {}

    def divided(self) -> Added:
        """Return what this worker added, for `absorb`: nothing can be added any more."""
        files = [(path, digest, size) for digest, (path, size) in self._files.items()]
        relied = b"".join(map(raw_digest, self._url_cache.relied))
        return super().divided()._replace(files=files, relied=relied)

    def absorb(self, part: Added) -> None:
        """Take over what a worker added."""
        super().absorb(part)
        for path, digest, size in part.files:
            self._files.setdefault(digest, (path, size))
        self._url_cache.rely(
            [digest_from_raw(part.relied[at : at + RAW_SIZE]) for at in range(0, len(part.relied), RAW_SIZE)]
        )

    def _seal(self) -> list[tuple[str, str]]:
        try:
            return self._packer.seal()
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error


def _in_order(sealed: list[tuple[str, str]]) -> Iterator[tuple[Digest, int]]:
    """Yield the objects of packs and their bytes, in the order in which they were added: what a tree names is first."""
    for path, name in sealed:
        table = read_footer(path, name)
        rows = sorted(table.rows(), key=lambda row: row[1].offset)
        for raw, place in rows:
            yield digest_from_raw(raw), place.length


def _listings(near: Cache, packed: list[tuple[Digest, int]]) -> Iterator[bytes]:
    for digest, _ in packed:
        data = near.read(digest, limit=None)
        if data[: len(MAGIC)] == MAGIC:
            yield data
