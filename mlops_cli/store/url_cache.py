"""A cache behind a URL, for machines with little disk: a remote that takes the place of the folder of objects.

What is here is a window on it: the listings of folders, which are small and are read again and again. All else comes
when it is needed, a round at a time, to a folder of the process's own, and goes with it; what is added goes up from the
files themselves (`url_batch`). An object counts as stored when the remote has it, whatever is in the window.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlops_cli.errors import MissingObject
from mlops_cli.files import write_all
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.batch import Batch
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import UNSUPPORTED, LinkMode
from mlops_cli.store.objects import Durability
from mlops_cli.store.pack_format import PackError
from mlops_cli.store.pack_index import Table
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.placing import Goal, Placed, remove, settle, stamp
from mlops_cli.store.remote import Remote
from mlops_cli.store.tree_format import MAGIC, TREE_LIMIT

Announce = Callable[[Bucket, str], None]
"""What is called with the bucket and its URL before anything is sent."""

ROUND = 256 << 20  # bytes of objects that are here at once, unless one alone has more


class UrlCache(Cache):
    """The cache in `bucket`; `root` is the window, `kept` where this clone keeps what it knows of the index.

    No I/O before the first verb. RemoteError from any verb that needs the bucket and cannot reach it.
    """

    def __init__(self, root: Path, bucket: Bucket, kept: str, *, durability: Durability, announce: Announce) -> None:
        super().__init__(root, link=LinkMode.COPY, durability=durability)
        self.url: str = bucket.url
        self.label = bucket.label
        self.most_at_once = ROUND
        self.remote = Remote(bucket, kept)
        self._announce = announce
        self._window = Cache(self.root, link=LinkMode.COPY, durability=durability, packs=self.packs)
        self._trees: dict[Digest, bytes] = {}
        self._divided = False
        self._tables: Sequence[Table] = ()
        self.relied: set[Digest] = set()

    @property
    def window(self) -> Cache:
        """What is here, as a cache of its own: listings."""
        return self._window

    def copying(self) -> Cache:
        """Return this cache: what comes from it is always a copy."""
        return self

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Ask nobody for the length of the block: everything counts as stored, and what is not here cannot be read."""
        self.is_offline = True
        try:
            yield
        finally:
            self.is_offline = False

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not stored, whether or not they are here."""
        return set() if self.is_offline else self.remote.missing(digests)

    def holds(self, digest: Digest, size: int) -> bool:  # noqa: ARG002
        """Whether an object is stored, as the index says.

        A copy of this process asks nobody (`prepare`): what it finds stored is in `relied`.
        """
        if not self._divided:
            return self.remote.holds(digest)
        if digest in self.relied:
            return True
        raw = raw_digest(digest)
        with suppress(PackError):  # whose process this is a copy of tells
            if any(table.find(raw) for table in self._tables):
                self.relied.add(digest)
        return digest in self.relied

    def prepare(self) -> None:
        """Have the index here, for copies of this process: what speaks over a network does not survive a fork."""
        self._tables = self.remote.tables()

    def divide(self) -> None:
        """Go on in a copy of this process, which asks nobody."""
        super().divide()
        self._divided = True
        self.relied = set()

    def rely(self, digests: Collection[Digest]) -> None:
        """Take over what a copy of this process has found stored; MissingObject when it is not any more."""
        if gone := self.missing(digests):
            raise self.remote.absent(gone)

    def read(self, digest: Digest, *, limit: int | None = TREE_LIMIT) -> bytes:
        """Return an object's bytes, verified; MissingObject, or CorruptObject, also for more than `limit` bytes."""
        known = self._trees.get(digest)
        if known is not None:
            return known
        try:
            return self._window.read(digest, limit=limit)
        except MissingObject:
            if self.is_offline:
                raise
        data = self.remote.read(digest, limit=limit)
        if data[: len(MAGIC)] == MAGIC:
            self._trees[digest] = data
        return data

    def open_descriptor(self, digest: Digest) -> int:
        """Return an open descriptor of a file with an object's bytes, verified, that is gone when it is closed."""
        with self.near({digest: 1}) as near:
            path, _ = near.lend(digest, lambda: "")
            if os.path.exists(path):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            descriptor = os.memfd_create("mlx", os.MFD_CLOEXEC)
            write_all(descriptor, near.read(digest, limit=None))
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor

    def check(self, digest: Digest) -> None:
        """Read an object to its end; MissingObject or CorruptObject unless its bytes hash to `digest`."""
        with self.near({digest: 1}):
            return

    def place(
        self,
        digest: Digest,
        target: str,
        *,
        executable: bool,
        dir_fd: int | None = None,
        size: int | None = None,
        replace: bool = False,
        hidden: bool = False,
    ) -> os.stat_result | None:
        """Make an object appear at `target` in one step, as `Cache.place` does; many at once come with `near`."""
        with self.near({digest: 1}) as near:
            return near.place(
                digest, target, executable=executable, dir_fd=dir_fd, size=size, replace=replace, hidden=hidden
            )

    @contextmanager
    def near(self, uses: Mapping[Digest, int], jobs: int = 0, reporter: Reporter = SILENT) -> Iterator[Cache]:
        """Yield a cache that has these objects, each to be placed so many times; it goes when the block ends.

        AbsentObjects or DamagedObjects when some are not stored, or not as they were written.
        """
        with self.open_near(uses) as near:
            self.remote.bring(near, list(uses), jobs=jobs, reporter=reporter)
            yield near

    @contextmanager
    def open_near(self, uses: Mapping[Digest, int] | None = None) -> Iterator[Cache]:
        """Yield an empty cache of this process's own, which goes when the block ends."""
        with self.window.scratch() as scratch:
            yield _NearCache(Path(scratch.next_path()), uses or {})

    def stored_size(self, digest: Digest, size: int) -> int | None:  # noqa: ARG002
        """Return the bytes that an object of `size` bytes takes where it is stored, None when it is not."""
        return self.remote.stored_size(digest)

    def send(self, source: Cache, wanted: Wanted, reporter: Reporter = SILENT) -> None:
        """Store what `source` has of `wanted`; it is durable when this returns."""
        self._announce(self.remote.bucket, self.url)
        self.remote.send(source, wanted, reporter=reporter)

    def keep_trees(self, trees: Sequence[bytes]) -> None:
        """Keep listings in the window."""
        batch = Batch(self.window)
        try:
            for data in trees:
                batch.add_bytes(data)
            batch.publish()
        finally:
            batch.close()

    def bring_trees(self, digests: Collection[Digest]) -> None:
        """Bring listings to the window: those that are stored, and are not there yet."""
        lacking = self.window.missing(digests)
        lacking -= self.remote.missing(lacking)
        if lacking:
            self.remote.bring(self.window, lacking)

    def read_run(self, key: str) -> bytes | None:
        """Return the run record stored under a fingerprint, or None."""
        if self.is_offline:
            return None
        return self.remote.read_run(key)

    def write_run(self, key: str, data: bytes) -> None:
        """Store a run record under its fingerprint, replacing what was there."""
        self._announce(self.remote.bucket, self.url)
        self.remote.write_run(key, data)

    def list_runs(self) -> Iterator[str]:
        """Yield the fingerprints that have a run record."""
        return self.remote.list_runs()


class _NearCache(Cache):
    """Objects that came for one command and go with it: a file that is placed for the last time is moved, not copied.

    They were verified as they came, and nobody else knows of them.
    """

    resumes = False

    def __init__(self, root: Path, uses: Mapping[Digest, int]) -> None:
        super().__init__(root, link=LinkMode.COPY, durability=Durability.NONE)
        self._uses = Counter(uses)
        self._mask = os.umask(0o022)
        os.umask(self._mask)

    def _copy(self, digest: Digest, goal: Goal) -> Placed:
        if self._uses[digest] != 1:
            return super()._copy(digest, goal)
        temporary = self._made_at(goal)
        source = self.object_path(digest)
        try:
            os.rename(source, temporary, dst_dir_fd=goal.dir_fd)
        except FileNotFoundError:
            raise self.absent([digest]) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return super()._copy(digest, goal)
        try:
            os.chmod(temporary, goal.mode & ~self._mask, dir_fd=goal.dir_fd)
            info = stamp(temporary, goal.dir_fd)
        except BaseException:
            remove(temporary, goal.dir_fd)
            raise
        settle(temporary, goal)
        return Placed(info, goal)
