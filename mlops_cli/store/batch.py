"""Objects on their way from the workspace into the cache, which appear there together.

A file is read once: it is hashed while it is copied in, or cloned and the clone hashed, so the object's bytes and its
digest always agree whatever happens to the file meanwhile.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import OutsideError, UsageError
from mlops_cli.hashing import Digest, hash_bytes, hash_file
from mlops_cli.store.cache import CLONE_FROM, Cache
from mlops_cli.store.copying import SMALL, copy_descriptor
from mlops_cli.store.links import UNSUPPORTED, LinkMode, object_at, reflink
from mlops_cli.store.objects import damaged_in_flight
from mlops_cli.store.pack_writer import Packer
from mlops_cli.store.placing import remove
from mlops_cli.store.scratch import CREATE_FLAGS, OBJECT_MODE, Scratch
from mlops_cli.store.sources import (
    Stat,
    changed,
    hash_stable,
    is_open_for_writing,
    is_same_file,
    is_unchanged,
    open_regular,
    read_stable,
    unreadable,
)

_EXECUTABLE = 0o111
_HEAD = 1 << 12  # bytes that are read at once, whatever becomes of them
# Of a copy's two ends, the one that these come from is the cache.
_TARGET_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EEXIST})


class Added(NamedTuple):
    """What a worker added to a batch, all of it plain values that can travel between processes.

    Packs (file, name) with the raw digests of what is in them, loose objects with their files, and those files of the
    workspace that become objects (path, file under `tmp/`) or give way to symlinks (path, digest), with their `Stat`.
    `files` (path, digest, bytes) go to the cache from where they lie; `relied` has the raw digests of what was not
    added because a cache behind a URL has it.
    """

    sealed: list[tuple[str, str]]
    raws: bytes
    pending: list[tuple[Digest, str]]
    adopted: list[tuple[str, str, tuple[int, ...]]]
    replaced: list[tuple[str, Digest, tuple[int, ...]]]
    files: Sequence[tuple[str, Digest, int]] = ()
    relied: bytes = b""


class Batch:
    """Objects being added to a cache, not visible before their batch ends; for one thread."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._scratch = Scratch(str(cache.root))
        self._packer = Packer(self._scratch.next_path)
        self._pending: dict[Digest, str] = {}
        # A file, its name under tmp/, and how it was when it was hashed.
        self._adopted: list[tuple[str, str, os.stat_result | Stat]] = []
        self._replaced: list[tuple[str, Digest, os.stat_result | Stat]] = []  # files that symlinks take the place of
        self._in_memory = CLONE_FROM if cache.clones else SMALL
        self._links_above = cache.pack_below if cache.shares else sys.maxsize
        self.was_written = False  # whether somebody had the file that came last open for writing
        self.stat: os.stat_result | None = None  # of the very file that was read last; None when that is not known

    def add_bytes(self, data: bytes) -> Digest:
        """Add an object that is in memory."""
        digest = hash_bytes(data)
        self._keep(digest, data)
        return digest

    def add_file(self, path: str, size: int, *, copied: bool = False, seen: os.stat_result | None = None) -> Digest:
        """Add a regular file of `size` bytes, of which `seen` may be the stat, and return its digest.

        What is stored is what was hashed.

        In the link modes a file that is too large for a pack itself becomes the object (read-only) and, with symlinks,
        a symlink takes its place, once the batch is published; with `copied` it is left alone. A symlink to an object
        stands for that object; when that is another cache's, its bytes are copied in. UsageError when it is no regular
        file, is not `size` bytes, or keeps changing while it is read.
        """
        try:
            self.stat = None
            links = size > self._links_above and not copied
            if links or size > self._in_memory:
                self.was_written = is_open_for_writing(path)
                return self._adopt(path, size) if links else self._copy(path, size)
            data, self.stat, self.was_written = read_stable(path, size, seen)
        except UsageError:
            linked = self._add_linked(path, size)
            if linked is None:
                raise
            return linked
        digest = hash_bytes(data)
        self._keep(digest, data)
        return digest

    def reserve(self) -> str:
        """Return a path for a new file that is to be taken in; threads may ask too."""
        return self._temporary()

    def take(self, path: str) -> tuple[Digest, int]:
        """Add the file that somebody has written at a reserved path, which is then no more; return digest and bytes.

        It is hashed as it lies there: what is stored is what was hashed.
        """
        try:
            size = os.stat(path, follow_symlinks=False).st_size
            if size <= max(self._cache.pack_below, _HEAD):
                digest = self.add_bytes(Path(path).read_bytes())
                os.unlink(path)
                return digest, size
            digest = hash_file(path)
            if digest in self._pending or self._cache.holds(digest, size):
                os.unlink(path)
            else:
                os.chmod(path, OBJECT_MODE)
                self._pending[digest] = path
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error
        return digest, size

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Say whether an object is in this batch or in the cache; given its `size`, one that is damaged is not."""
        if digest in self._pending or digest in self._packer:
            return True
        return not self._cache.missing((digest,)) if size is None else self._cache.holds(digest, size)

    def read(self, digest: Digest) -> bytes:
        """Return the verified bytes of an object of this batch or of the cache."""
        pending = self._pending.get(digest)
        if pending is not None:
            data = Path(pending).read_bytes()
        elif digest in self._packer:
            data = self._packer.read(digest)
        else:
            return self._cache.read(digest)
        found = hash_bytes(data)
        if found != digest:
            raise damaged_in_flight(digest, found)
        return data

    def publish(self) -> None:
        """Make everything added durable, then visible."""
        try:
            for path, temporary, before in self._adopted:
                if not is_same_file(os.stat(temporary, follow_symlinks=False), before):
                    raise changed(path)
                os.chmod(temporary, OBJECT_MODE)
            self._cache.publish(self._pending, self._packer.seal())
            for path, digest, before in self._replaced:
                self._leave_symlink(path, digest, before)
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error
        self._pending, self._adopted, self._replaced = {}, [], []
        self._cache.tidy(self._scratch)

    def prepare(self) -> None:
        """Make ready for copies of this process to add to this batch too, each to its part (`divide`)."""
        try:
            self._scratch.prepare()
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error

    def divide(self, worker: int) -> None:
        """Go on as worker number `worker`, a copy of the process whose batch this is."""
        self._cache.divide()
        self._scratch.divide(worker)
        self._packer.divide()
        self._pending, self._adopted, self._replaced = {}, [], []

    def divided(self) -> Added:
        """Return what this worker added, for `absorb`: nothing can be added any more."""
        try:
            sealed, raws = self._packer.divided()
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error
        adopted = [(path, name, tuple(Stat.of(stat))) for path, name, stat in self._adopted]
        replaced = [(path, digest, tuple(Stat.of(stat))) for path, digest, stat in self._replaced]
        return Added(sealed, raws, list(self._pending.items()), adopted, replaced)

    def absorb(self, part: Added) -> None:
        """Take over what a worker added."""
        sealed, raws, pending, adopted, replaced, *_ = part
        self._packer.absorb(sealed, raws)
        new = {digest: name for digest, name in pending if digest not in self._pending}  # or two had the same file
        self._pending.update(new)
        taken = set(new.values())
        self._adopted += [(path, name, Stat(*stat)) for path, name, stat in adopted if name in taken]
        self._replaced += [(path, digest, Stat(*stat)) for path, digest, stat in replaced]

    def close(self) -> None:
        """Remove what was not published."""
        self._packer.close()
        self._scratch.close()

    def _keep(self, digest: Digest, data: bytes) -> None:
        if digest in self._pending or digest in self._packer or self._cache.holds(digest, len(data)):
            return
        try:
            if self._cache.is_packed(data):
                self._packer.add(digest, data)
            else:
                self._pending[digest] = self._scratch.write(data)
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error

    def _copy(self, path: str, size: int) -> Digest:
        """Copy or clone a file in, hashing what is written."""
        for _ in range(2):
            temporary = self._temporary()
            digest = self._copy_once(path, size, temporary)
            if digest is not None:
                break
            os.unlink(temporary)
        else:
            raise changed(path)
        if digest in self._pending or self._cache.holds(digest, size):
            os.unlink(temporary)
        else:
            self._pending[digest] = temporary
        return digest

    def _add_linked(self, path: str, size: int) -> Digest | None:
        """Return the object that a symlink leads to, here now too; None when `path` is no link to an object."""
        try:
            target = os.readlink(path)
        except OSError:
            return None
        digest = object_at(os.fsencode(target))
        if digest is None:
            return None
        try:
            before = os.stat(path, follow_symlinks=False)
            found, self.stat = hash_stable(target, size)
        except (UsageError, OutsideError):  # there is nothing at its end, but the object may be elsewhere
            return digest if self._cache.holds(digest, size) else None
        if found == digest and (digest in self._pending or self._cache.holds(digest, size)):
            return digest
        if found != digest and target != self._cache.object_path(digest):
            raise damaged_in_flight(digest, found)
        if self._copy(target, size) != found:
            raise changed(path)
        if found != digest:  # somebody has written to the object: what the file holds now is another one
            self._replaced.append((path, found, before))
        return found

    def _temporary(self) -> str:
        try:
            return self._scratch.next_path()
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error

    def _copy_once(self, path: str, size: int, temporary: str) -> Digest | None:
        """Fill `temporary` and return its digest, or None when the file changed meanwhile."""
        try:
            source, before = open_regular(path)
            self.stat = before
            try:
                if self._clone(path, temporary):
                    return hash_file(temporary) if os.stat(temporary).st_size == size else None
                target = os.open(temporary, CREATE_FLAGS, OBJECT_MODE)
                try:
                    digest, copied = copy_descriptor(source, target)
                finally:
                    os.close(target)
                return digest if copied == size and is_unchanged(os.fstat(source), before) else None
            finally:
                os.close(source)
        except OSError as error:
            if error.errno in _TARGET_ERRORS:
                raise self._cache.trouble(error, f"add `{path}` to the cache") from error
            raise unreadable(error, path) from error

    def _clone(self, path: str, temporary: str) -> bool:
        if not self._cache.clones:
            return False
        try:
            reflink(path, temporary, mode=OBJECT_MODE)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._cache.clones = False
            return False
        return True

    def _adopt(self, path: str, size: int) -> Digest:
        """Hash a file and let it become the object; where it cannot, copy it."""
        if size <= SMALL:
            data, info, _ = read_stable(path, size)
            digest = hash_bytes(data)
        else:
            digest, info = hash_stable(path, size)
        self.stat = info
        if info.st_mode & _EXECUTABLE:
            return self._copy(path, size)  # a read-only object cannot also be executable
        if digest not in self._pending and self._cache.holds(digest, size):
            return digest
        if digest not in self._pending and not self._link_in(path, digest, info) and self._copy(path, size) != digest:
            raise changed(path)
        if self._cache.link is LinkMode.SYMLINK:
            self._replaced.append((path, digest, info))
        return digest

    def _link_in(self, path: str, digest: Digest, info: os.stat_result) -> bool:
        """Give a file a second name under tmp/, or return False when it should not or cannot have one."""
        if info.st_nlink > 1 or os.geteuid() not in (0, info.st_uid):
            return False  # other names of the file would turn read-only too; a stranger's file cannot be made so
        temporary = self._temporary()
        try:
            os.link(path, temporary, follow_symlinks=False)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise self._cache.trouble(error, f"link `{path}` into the cache") from error
        self._pending[digest] = temporary
        self._adopted.append((path, temporary, info))
        return True

    def _leave_symlink(self, path: str, digest: Digest, before: os.stat_result | Stat) -> None:
        """Put a symlink to the published object in a file's place, unless the file is no longer what was stored.

        What is in a pack, from when files were copies, cannot be linked to: that file stays.
        """
        target = self._cache.object_path(digest)
        if not is_same_file(os.stat(path, follow_symlinks=False), before) or not os.path.isfile(target):
            return
        temporary = self._cache.beside(path)
        os.symlink(target, temporary)
        try:
            os.rename(temporary, path)
        except BaseException:
            remove(temporary, None)
            raise
