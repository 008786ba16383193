"""The local cache: objects added from the workspace, and placed back into it.

A file is read once: it is hashed while it is copied in, or cloned and the clone hashed, so the object's bytes and its
digest always agree whatever happens to the file meanwhile. Additions become visible together, at the end of a batch.
Which files are added, and which objects are wanted where, is decided above; how a folder of objects works is `loose`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, translate_os_error, write_all
from mlops_cli.hashing import Digest, hash_bytes, hash_file
from mlops_cli.store.copying import SMALL, copy_descriptor
from mlops_cli.store.links import UNSUPPORTED, LinkMode, object_at, reflink, rename_new
from mlops_cli.store.loose import CREATE_FLAGS, OBJECT_MODE, LooseStore, Scratch
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, Durability, cut, damaged_in_flight
from mlops_cli.store.sources import (
    changed,
    hash_stable,
    is_same_file,
    is_unchanged,
    open_regular,
    read_stable,
    unreadable,
)

__all__ = ["Batch", "Cache", "Durability"]

# Below this a copy is cheaper: a clone makes the file system write a fresh source out first. Measured on btrfs: copying
# 64 KiB 124 us, cloning it 61 us when it is on disk already and 197 us when it is not.
CLONE_FROM = 64 << 10
_WRITABLE = 0o222
_EXECUTABLE = 0o111
# Of a copy's two ends, the one that these come from is the cache.
_TARGET_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EEXIST})


class Cache(LooseStore):
    """The local store of objects below `root`; several processes may use it at once."""

    label = "the cache"

    def __init__(self, root: Path, *, link: LinkMode, durability: Durability) -> None:
        super().__init__(root.absolute(), durability)
        self.link = link
        self.clones = link is LinkMode.REFLINK
        self._token = ""
        self._numbers = count()

    def trouble(self, error: OSError, doing: str) -> MlxError:
        """Return what to raise when the system refuses, naming the cache's folder."""
        return translate_os_error(error, f"{doing} (the cache is `{self.root}`)")

    def absent(self, digests: Sequence[Digest]) -> MlxError:
        """Return what to raise for objects that are not here."""
        return AbsentObjects(digests, self.label, hint="`mlx fetch` brings it from a remote")

    def damaged(self, digest: Digest, found: Digest) -> CorruptObject:
        """Move a damaged object out of the way and return what to raise for it."""
        message = f"object `{cut(digest)}` in the cache is damaged: its bytes hash to `{cut(found)}`"
        try:
            moved = self.quarantine(digest)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = f"it could not be moved away ({reason}); remove `{self.object_path(digest)}`, then `mlx pull`"
        else:
            hint = f"it is in `{moved.parent.name}/` of the cache now; `mlx pull` brings a good one from a remote"
        return DamagedObjects([digest], message, hint=hint)

    def quarantine(self, digest: Digest) -> Path:
        """Move an object to `quarantine/`, where nothing is served from, and return its new path."""
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        target = folder / f"{digest.removeprefix('blake3:')}.{os.urandom(4).hex()}"
        with suppress(FileNotFoundError):  # another process did it first
            Path(self.object_path(digest)).rename(target)
        return target

    @property
    def shares(self) -> bool:
        """Whether files of the workspace and objects are one file (hard links, symlinks)."""
        return self.link in (LinkMode.HARDLINK, LinkMode.SYMLINK)

    def copying(self) -> Cache:
        """Return this cache for files that are to stay the workspace's own."""
        return Cache(self.root, link=LinkMode.COPY, durability=self.durability)

    def holds(self, digest: Digest, size: int) -> bool:
        """Whether an object is here and can be trusted: of that size and read-only, or else found right by reading.

        One that is damaged is quarantined, and then it is not here.
        """
        path = self.object_path(digest)
        if not os.access(path, os.F_OK):
            return False
        try:
            self._inspect(digest, path, size)
        except (MissingObject, CorruptObject):
            return False
        return True

    def _inspect(self, digest: Digest, path: str, size: int | None) -> os.stat_result:
        try:
            info = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            raise self.absent([digest]) from None
        if info.st_mode & _WRITABLE or (size is not None and info.st_size != size):
            self.check(digest)
        return info

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Collect objects that become durable and then visible, in the order of adding, when the block ends.

        When the block raises, none of them does, and nothing is left behind.
        """
        batch = Batch(self)
        try:
            yield batch
            batch.publish()
        finally:
            batch.close()

    def place(
        self,
        digest: Digest,
        target: str,
        *,
        executable: bool,
        dir_fd: int | None = None,
        size: int | None = None,
        replace: bool = False,
    ) -> os.stat_result | None:
        """Make an object appear at `target`, in one step, as the link mode says; what cannot be linked is copied.

        The target's folder must exist; with `dir_fd` the target is relative to that folder. Copies are verified as they
        are made; links when the object's mode, or `size` when given, is not as it was stored. UsageError when something
        is at `target`, unless `replace` lets a file or symlink there give way; MissingObject, CorruptObject. What was
        at `target`, or nothing, is there after an error or a crash.

        Returns what `os.stat` says of the file that now has the object's bytes; None when somebody else was at it
        already, so that it may have others.
        """
        goal = _Goal(target, executable, dir_fd, replace)
        try:
            placed = None if self.link is LinkMode.COPY else self._link(digest, goal, size)
            placed = placed or self._copy(digest, goal)
        except FileExistsError:
            hint = "move it away, or `mlx add` it first"
            raise UsageError(f"`{target}` is in the way: it already exists", hint=hint) from None
        except OSError as error:
            raise translate_os_error(error, f"write `{target}`") from error
        return placed.untouched()

    def _link(self, digest: Digest, goal: _Goal, size: int | None) -> _Placed | None:
        """Link an object out, or return None when it must be copied."""
        clone = self.link is LinkMode.REFLINK
        if (clone and not self.clones) or (goal.executable and not clone):
            return None
        source = self.object_path(digest)
        info = self._inspect(digest, source, size)
        if clone and info.st_size <= CLONE_FROM:
            return None
        temporary = self.beside(goal.path)
        try:
            if self.link is LinkMode.HARDLINK:
                os.link(source, temporary, dst_dir_fd=goal.dir_fd, follow_symlinks=False)
            elif self.link is LinkMode.SYMLINK:
                os.symlink(source, temporary, dir_fd=goal.dir_fd)
            else:
                reflink(source, temporary, mode=goal.mode, dir_fd=goal.dir_fd)
                info = _stamp(temporary, goal.dir_fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            if clone:
                self.clones = False
            return None
        _settle(temporary, goal)
        return _Placed(info, goal)

    def _copy(self, digest: Digest, goal: _Goal) -> _Placed:
        source = self.open_descriptor(digest)
        try:
            size = os.fstat(source).st_size
            data = b""
            if size <= SMALL:
                data = os.read(source, size + 1)
                found = hash_bytes(data)
                if found != digest:
                    raise self.damaged(digest, found)
            temporary = self.beside(goal.path)
            descriptor = os.open(temporary, CREATE_FLAGS, goal.mode, dir_fd=goal.dir_fd)
            try:
                if size <= SMALL:
                    write_all(descriptor, data)
                elif (found := copy_descriptor(source, descriptor)[0]) != digest:
                    raise self.damaged(digest, found)
                info = _stamp(descriptor)
            except BaseException:
                _remove(temporary, goal.dir_fd)
                raise
            finally:
                os.close(descriptor)
        finally:
            os.close(source)
        _settle(temporary, goal)
        return _Placed(info, goal)

    def beside(self, target: str) -> str:
        """Return an unused temporary name in the folder of `target`."""
        if not self._token:
            self._token = f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}-"
        folder, slash, _ = target.rpartition("/")
        return f"{folder}{slash}{self._token}{next(self._numbers)}"


class _Goal(NamedTuple):
    """Where an object is to appear, and as what."""

    path: str
    executable: bool
    dir_fd: int | None
    replace: bool

    @property
    def mode(self) -> int:
        """The mode to create the file with; the process's umask still takes from it."""
        return 0o777 if self.executable else 0o666


class _Placed(NamedTuple):
    """A file as it was just before it got its name, and that name."""

    before: os.stat_result
    goal: _Goal

    def untouched(self) -> os.stat_result | None:
        """Return the file's stat now; None when it is another file, or one that was written to.

        A symlink to an object stands for the object.
        """
        try:
            now = os.stat(self.goal.path, dir_fd=self.goal.dir_fd)
        except OSError:
            return None
        return now if is_same_file(now, self.before) else None


def _stamp(file: int | str, dir_fd: int | None = None) -> os.stat_result:
    """Set a new file's mtime to the nanosecond and return its stat.

    The kernel stamps what is written with a clock that ticks every few milliseconds: that alone would not tell our
    bytes from those that somebody else writes over them in the same tick.
    """
    now = time.time_ns()
    with suppress(OSError):  # a file server that lets nobody set times
        os.utime(file, ns=(now, now), dir_fd=dir_fd)
    return os.stat(file, dir_fd=dir_fd)


def _settle(temporary: str, goal: _Goal) -> None:
    """Give a finished file its name."""
    try:
        if goal.replace:
            os.rename(temporary, goal.path, src_dir_fd=goal.dir_fd, dst_dir_fd=goal.dir_fd)
        else:
            rename_new(temporary, goal.path, dir_fd=goal.dir_fd)
    except BaseException:
        _remove(temporary, goal.dir_fd)
        raise
    if goal.replace:
        _remove(temporary, goal.dir_fd)  # renaming one name of a file to another name of it does nothing


def _remove(path: str, dir_fd: int | None) -> None:
    with suppress(OSError):
        os.unlink(path, dir_fd=dir_fd)


class Batch:
    """Objects being added to a cache, not visible before their batch ends; for one thread."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._scratch = Scratch(str(cache.root))
        self._pending: dict[Digest, str] = {}
        self._adopted: list[tuple[str, str, os.stat_result]] = []  # file, its name under tmp/, as it was when hashed
        self._replaced: list[tuple[str, Digest, os.stat_result]] = []  # files that symlinks take the place of
        self._in_memory = CLONE_FROM if cache.clones else SMALL

    def add_bytes(self, data: bytes) -> Digest:
        """Add an object that is in memory."""
        digest = hash_bytes(data)
        self._keep(digest, data)
        return digest

    def add_file(self, path: str, size: int, *, copied: bool = False) -> Digest:
        """Add a regular file of `size` bytes and return its digest; what is stored is what was hashed.

        In the link modes the file itself becomes the object (read-only) and, with symlinks, a symlink takes its place,
        once the batch is published; with `copied` it is left alone. A symlink to an object stands for that object;
        when that is another cache's, its bytes are copied in. UsageError when it is no regular file, is not
        `size` bytes, or keeps changing while it is read.
        """
        try:
            if self._cache.shares and not copied:
                return self._adopt(path, size)
            if size > self._in_memory:
                return self._copy(path, size)
            data, _ = read_stable(path, size)
        except UsageError:
            linked = self._add_linked(path, size)
            if linked is None:
                raise
            return linked
        digest = hash_bytes(data)
        self._keep(digest, data)
        return digest

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Say whether an object is in this batch or in the cache; given its `size`, one that is damaged is not."""
        if digest in self._pending:
            return True
        return not self._cache.missing((digest,)) if size is None else self._cache.holds(digest, size)

    def read(self, digest: Digest) -> bytes:
        """Return the verified bytes of an object of this batch or of the cache."""
        pending = self._pending.get(digest)
        if pending is None:
            return self._cache.read(digest)
        data = Path(pending).read_bytes()
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
            self._cache.publish(self._pending)
            for path, digest, before in self._replaced:
                self._leave_symlink(path, digest, before)
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error
        self._pending, self._adopted, self._replaced = {}, [], []

    def close(self) -> None:
        """Remove what was not published."""
        self._scratch.close()

    def _keep(self, digest: Digest, data: bytes) -> None:
        if digest in self._pending or self._cache.holds(digest, len(data)):
            return
        try:
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
        if digest is None or digest in self._pending or self._cache.holds(digest, size):
            return digest
        if not os.path.isfile(target):
            return None
        found = self._copy(target, size)
        if found != digest:
            raise damaged_in_flight(digest, found)
        return digest

    def _temporary(self) -> str:
        try:
            return self._scratch.next_path()
        except OSError as error:
            raise self._cache.trouble(error, "add to the cache") from error

    def _copy_once(self, path: str, size: int, temporary: str) -> Digest | None:
        """Fill `temporary` and return its digest, or None when the file changed meanwhile."""
        try:
            source, before = open_regular(path)
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
            data, info = read_stable(path, size)
            digest = hash_bytes(data)
        else:
            digest, info = hash_stable(path, size)
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

    def _leave_symlink(self, path: str, digest: Digest, before: os.stat_result) -> None:
        """Put a symlink to the published object in a file's place, unless the file is no longer what was stored."""
        if not is_same_file(os.stat(path, follow_symlinks=False), before):
            return
        temporary = self._cache.beside(path)
        os.symlink(self._cache.object_path(digest), temporary)
        os.rename(temporary, path)
