"""The local cache: the store that files of the workspace come from.

An object appears in the workspace as a copy, a clone or a link, as the settings say. How files come in is `batch`, how
a folder of objects works `loose` and `packed`; which objects are wanted where is decided above.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, translate_os_error, write_all
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.copying import SMALL, copy_descriptor
from mlops_cli.store.links import UNSUPPORTED, LinkMode, reflink
from mlops_cli.store.objects import AbsentObjects, Durability
from mlops_cli.store.packed import PackedStore
from mlops_cli.store.packs import Packs
from mlops_cli.store.placing import Goal, Placed, remove, settle, stamp
from mlops_cli.store.scratch import CREATE_FLAGS

__all__ = ["Cache", "Durability"]

# Below this a copy is cheaper: a clone makes the file system write a fresh source out first. Measured on btrfs: copying
# 64 KiB 124 us, cloning it 61 us when it is on disk already and 197 us when it is not.
CLONE_FROM = 64 << 10
# Above these a file is an object of its own, below it goes into a pack. Where files are links, a packed one is a copy.
PACK_COPIED = 64 << 10
PACK_LINKED = 16 << 10
_WRITABLE = 0o222
_SECOND = 1_000_000_000  # ns


class Cache(PackedStore):
    """The local store of objects below `root`; several processes may use it at once."""

    label = "the cache"
    url: str | None = None  # where its objects are, when that is not below `root`
    is_offline = False  # whether what is not on this machine is taken for stored, and nobody is asked
    resumes = True  # whether what an interrupted fetch brought of a large file is kept for the next
    most_at_once: int | None = None  # bytes of objects that may be near at once; None: all are

    def __init__(self, root: Path, *, link: LinkMode, durability: Durability, packs: Packs | None = None) -> None:
        self.link = link
        below = PACK_LINKED if self.shares else PACK_COPIED
        super().__init__(root.absolute(), durability, pack_below=below, packs=packs)
        self.clones = link is LinkMode.REFLINK
        self._token = ""
        self._numbers = count()
        self._fresh: set[str] = set()  # files that count as new already
        self._loose: set[str] | None = None  # folders of loose objects that were there at the first look

    def trouble(self, error: OSError, doing: str) -> MlxError:
        """Return what to raise when the system refuses, naming the cache's folder."""
        return translate_os_error(error, f"{doing} (the cache is `{self.root}`)")

    def absent(self, digests: Sequence[Digest]) -> MlxError:
        """Return what to raise for objects that are not here."""
        return AbsentObjects(digests, self.label, hint="`mlx fetch` brings it from a remote")

    @property
    def shares(self) -> bool:
        """Whether files of the workspace and objects are one file (hard links, symlinks)."""
        return self.link in (LinkMode.HARDLINK, LinkMode.SYMLINK)

    def copying(self) -> Cache:
        """Return this cache for files that are to stay the workspace's own."""
        return Cache(self.root, link=LinkMode.COPY, durability=self.durability, packs=self.packs)

    def holds(self, digest: Digest, size: int) -> bool:
        """Whether an object is here and can be trusted: of that size and read-only, or else found right by reading.

        One that is damaged is quarantined, and then it is not here. Its file counts as new again, so that `mlx gc`
        leaves alone what a record is about to name.
        """
        try:
            place = self.packs.find(digest)
        except OSError as error:
            raise self.trouble(error, "look into the cache") from error
        if place is not None:
            return place.length == size and self._freshen(self.packs.path_of(place.pack))
        if not self._may_be_loose(digest[7:9]):
            return False
        path = self.object_path(digest)
        if not os.access(path, os.F_OK):
            return False
        try:
            self._inspect(digest, path, size)
        except (MissingObject, CorruptObject):
            return False
        return self.shares or self._freshen(path)  # a link's times are those of the user's file

    @property
    def window(self) -> Cache:
        """What of this cache is on this machine, as a cache: this one."""
        return self

    @contextmanager
    def near(self, uses: Mapping[Digest, int], jobs: int = 0, reporter: Reporter = SILENT) -> Iterator[Cache]:  # noqa: ARG002
        """Yield a cache on this machine that has these objects, each to be placed so many times: this one."""
        yield self

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Look at nothing but what is on this machine for the length of the block: all of it, here."""
        yield

    def bring_trees(self, digests: Collection[Digest]) -> None:
        """Have listings at hand that are about to be read, where that takes something: not here."""

    def lend(self, digest: Digest, new_path: Callable[[], str]) -> tuple[str, bool]:  # noqa: ARG002
        """Return a file with an object's bytes, as far as its name tells, and whether it is temporary: it is not."""
        return self.object_path(digest), False

    def _may_be_loose(self, shard: str) -> bool:
        """Say whether loose objects were in a folder at the first look; what others store later is stored twice."""
        if self._loose is None:
            self._loose = set(os.listdir(self._objects)) if os.path.isdir(self._objects) else set()
        return shard in self._loose or shard in self._shards

    def _freshen(self, path: str) -> bool:
        """Make a file count as new, once; returns whether it is there."""
        if path in self._fresh:
            return True
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # somebody else's, or read-only
        self._fresh.add(path)
        return True

    def _inspect(self, digest: Digest, path: str, size: int | None) -> os.stat_result:
        try:
            info = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            raise self.absent([digest]) from None
        if info.st_mode & _WRITABLE or (size is not None and info.st_size != size):
            self.check(digest)
        return info

    def vouch(self, digest: Digest) -> os.stat_result:
        """Return the stat of a loose object that has the bytes it must have; MissingObject, CorruptObject otherwise.

        It is read once. Then the fraction of a second in its mtime is set to what its digest says, which whoever writes
        to it through a link undoes. Another user's object cannot be marked so, nor written to by this one: that it is
        read-only and of the right size is enough.
        """
        path = self.object_path(digest)
        info = self._inspect(digest, path, None)
        fraction = int(digest[-8:], 16) % _SECOND
        if info.st_mtime_ns % _SECOND != fraction and os.geteuid() in (0, info.st_uid):
            self.check(digest)
            with suppress(OSError):  # a read-only disk: it is read each time
                os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns // _SECOND * _SECOND + fraction))
            info = os.stat(path, follow_symlinks=False)
        return info

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
        """Make an object appear at `target`, in one step, as the link mode says; what cannot be linked is copied.

        The target's folder must exist; with `dir_fd` the target is relative to that folder. `hidden` says that nobody
        looks into it yet, so that the file may get its name before its bytes. Copies are verified as they are made;
        links unless the object is as it was when that was done last (`vouch`). UsageError when something is at
        `target`, unless `replace` lets a file or symlink there give way; MissingObject, CorruptObject. What was at
        `target`, or nothing, is there after an error or a crash.

        Returns what `os.stat` says of the file that now has the object's bytes; None when somebody else was at it
        already, so that it may have others.
        """
        goal = Goal(target, executable, dir_fd, replace, hidden)
        data = self.packed(digest)
        try:
            if data is not None:
                placed = self._fill(data, goal)
            else:
                placed = (self.link is not LinkMode.COPY and self._link(digest, goal, size)) or self._copy(digest, goal)
        except FileExistsError:
            hint = "move it away, or `mlx add` it first"
            raise UsageError(f"`{target}` is in the way: it already exists", hint=hint) from None
        except OSError as error:
            raise translate_os_error(error, f"write `{target}`") from error
        return placed.untouched()

    def _link(self, digest: Digest, goal: Goal, size: int | None) -> Placed | None:
        """Link an object out, or return None when it must be copied."""
        clone = self.link is LinkMode.REFLINK
        if (clone and not self.clones) or (goal.executable and not clone):
            return None
        source = self.object_path(digest)
        info = self._inspect(digest, source, size)
        if clone and info.st_size <= CLONE_FROM:
            return None
        if not clone:
            info = self.vouch(digest)
        temporary = self._made_at(goal)
        try:
            if self.link is LinkMode.HARDLINK:
                os.link(source, temporary, dst_dir_fd=goal.dir_fd, follow_symlinks=False)
            elif self.link is LinkMode.SYMLINK:
                os.symlink(source, temporary, dir_fd=goal.dir_fd)
            else:
                reflink(source, temporary, mode=goal.mode, dir_fd=goal.dir_fd)
                info = stamp(temporary, goal.dir_fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            if clone:
                self.clones = False
            return None
        settle(temporary, goal)
        return Placed(info, goal, linked=not clone)

    def try_to_clone(self, digest: Digest, beside: str) -> None:
        """Clone a loose object next to a file, and remove the clone: where that is not to be had, `clones` turns False.

        Whatever else keeps it from being made proves nothing.
        """
        temporary = self.beside(beside)
        try:
            reflink(self.object_path(digest), temporary, mode=0o600)
        except OSError as error:
            self.clones = self.clones and error.errno not in UNSUPPORTED
        else:
            os.unlink(temporary)

    def _fill(self, data: bytes, goal: Goal) -> Placed:
        """Write an object that is in memory."""
        return self._make(goal, lambda descriptor: write_all(descriptor, data))

    def _make(self, goal: Goal, write: Callable[[int], None]) -> Placed:
        """Make the file that `write` fills; when that fails, nothing stays."""
        temporary = self._made_at(goal)
        descriptor = os.open(temporary, CREATE_FLAGS, goal.mode, dir_fd=goal.dir_fd)
        try:
            write(descriptor)
            info = stamp(descriptor)
        except BaseException:
            remove(temporary, goal.dir_fd)
            raise
        finally:
            os.close(descriptor)
        settle(temporary, goal)
        return Placed(info, goal)

    def _copy(self, digest: Digest, goal: Goal) -> Placed:
        source = self.open_descriptor(digest)

        def copy(target: int) -> None:
            if (found := copy_descriptor(source, target)[0]) != digest:
                raise self.damaged(digest, found)

        try:
            size = os.fstat(source).st_size
            if size <= SMALL:
                data = os.read(source, size + 1)
                found = hash_bytes(data)
                if found != digest:
                    raise self.damaged(digest, found)
                return self._fill(data, goal)
            return self._make(goal, copy)
        finally:
            os.close(source)

    def _made_at(self, goal: Goal) -> str:
        return goal.path if goal.hidden else self.beside(goal.path)

    def divide(self) -> None:
        """Share no names with the process that this one is a copy of."""
        self._token = ""

    def beside(self, target: str) -> str:
        """Return an unused temporary name in the folder of `target`."""
        if not self._token:
            self._token = f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}-"
        folder, slash, _ = target.rpartition("/")
        return f"{folder}{slash}{self._token}{next(self._numbers)}"
