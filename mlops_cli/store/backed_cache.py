"""A cache with files behind it: what it lacks is read from where the files are, and never stored.

It is what goes to a remote when nothing is to stay here. Files may be written to at any time, so whatever is taken from
one is hashed on its way: what is no longer as it was looked at is damaged.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping

from mlops_cli.hashing import Digest, hash_bytes, hash_descriptor
from mlops_cli.store.cache import Cache
from mlops_cli.store.copying import copy_descriptor
from mlops_cli.store.objects import DamagedObjects, too_large
from mlops_cli.store.scratch import CREATE_FLAGS, OBJECT_MODE
from mlops_cli.store.tree_format import TREE_LIMIT

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not be waited for


class BackedCache(Cache):
    """`cache` with `files` (paths of regular files and of symlinks that are objects) and trees that `read_tree` has."""

    def __init__(self, cache: Cache, files: Mapping[Digest, bytes], read_tree: Callable[[Digest], bytes]) -> None:
        super().__init__(cache.root, link=cache.link, durability=cache.durability, packs=cache.packs)
        self._files = files
        self._read_tree = read_tree

    def missing(self, digests: Collection[Digest]) -> set[Digest]:  # noqa: ARG002
        """Return those of `digests` that are neither here nor behind: trees are always behind."""
        return set()

    def read(self, digest: Digest, *, limit: int | None = TREE_LIMIT) -> bytes:
        """Return an object's bytes, verified; CorruptObject, also for more than `limit` bytes and a changed file."""
        path = self._files.get(digest)
        if path is None:
            return self._read_tree(digest)
        if os.path.islink(path) and hash_bytes(target := os.readlink(path)) == digest:
            return target
        with open(self._opened(digest, path), "rb") as stream:
            data = stream.read() if limit is None else stream.read(limit + 1)
        if limit is not None and len(data) > limit:
            raise too_large(digest, limit)
        if hash_bytes(data) != digest:
            raise changed_file(digest, path)
        return data

    def open_descriptor(self, digest: Digest) -> int:
        """Return an open descriptor of a file that had the object's bytes when it was looked at."""
        path = self._files.get(digest)
        return super().open_descriptor(digest) if path is None else self._opened(digest, path)

    def check(self, digest: Digest) -> None:
        """Read an object to its end; CorruptObject for a file that has other bytes by now."""
        path = self._files.get(digest)
        if path is None:
            super().check(digest)
            return
        descriptor = self._opened(digest, path)
        try:
            if hash_descriptor(descriptor) != digest:
                raise changed_file(digest, path)
        finally:
            os.close(descriptor)

    def lend(self, digest: Digest, new_path: Callable[[], str]) -> tuple[str, bool]:
        """Return a copy that nobody writes to, and that it is temporary; CorruptObject for a changed file."""
        path = self._files.get(digest)
        if path is None:
            return super().lend(digest, new_path)
        copy = new_path()
        source = self._opened(digest, path)
        try:
            target = os.open(copy, CREATE_FLAGS, OBJECT_MODE)
            try:
                found, _ = copy_descriptor(source, target)
            finally:
                os.close(target)
        except OSError as error:
            raise self.trouble(error, f"copy `{os.fsdecode(path)}`") from error
        finally:
            os.close(source)
        if found != digest:
            os.unlink(copy)
            raise changed_file(digest, path)
        return copy, True

    def _opened(self, digest: Digest, path: bytes) -> int:
        try:
            descriptor = os.open(path, _FLAGS)
        except OSError as error:
            raise changed_file(digest, path) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a device may have no end
            os.close(descriptor)
            raise changed_file(digest, path)
        return descriptor


def changed_file(digest: Digest, path: bytes) -> DamagedObjects:
    """Return what to raise for a file that is not what it was when it was looked at."""
    hint = "run the command again when nobody writes to it"
    return DamagedObjects([digest], f"`{os.fsdecode(path)}` was changed while it was sent", hint=hint)
