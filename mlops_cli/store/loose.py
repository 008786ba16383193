"""A folder of loose objects: one file per object, published by a rename.

    objects/<aa>/<rest>     an object's bytes, mode 0444
    runs/<fingerprint>.yaml run records
    tmp/<pid>.<random>/     files on their way in; `tmp/<pid>.<random>.lock` is held while their process lives

The one idea is the order: bytes are written and hashed under `tmp`, synced once for many files, renamed into
`objects`, and the folders synced. A crash therefore leaves whole objects or none, and leftovers under `tmp` that the
next writer recognises by their free lock. The local cache and folder remotes are both this, with other words for what
goes wrong.
"""

from __future__ import annotations

import fcntl
import io
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.files import FEW_FILES, sync_filesystem, sync_folder, sync_paths, write_all
from mlops_cli.hashing import Digest, hash_bytes, parse_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.copying import SMALL, copy_descriptor, copy_stream, fill, hash_stream
from mlops_cli.store.objects import AbsentObjects, Durability, Failures, Opener, damaged_in_flight, too_large
from mlops_cli.store.pack_format import LARGEST
from mlops_cli.store.pack_writer import Packer
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.sharing import grant, make_folder
from mlops_cli.store.tree_format import TREE_LIMIT

ROUND_OBJECTS = 1000
ROUND_BYTES = 256 << 20
RUN_SIZE_LIMIT = 1 << 20
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
OBJECT_MODE = 0o444


class Scratch:
    """Temporary files of one writer, below `tmp/`; made at first use, removed by `close`.

    One writer, possibly with several threads; never shared by processes.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._tmp = f"{root}/tmp"  # noqa: S108 - in the store, not the system's folder
        self._folder = ""
        self._made = False
        self._lock = -1
        self._numbers = count()
        self._making = threading.Lock()
        self._divisions = count()
        self._mark = ""

    def prepare(self) -> None:
        """Make the folder now; then copies of this process can write there too."""
        self.next_path()
        next(self._divisions)

    def divide(self, worker: int) -> None:
        """Go on in a copy of the process that owns the folder, under names that none of the others uses."""
        self._mark = f"{next(self._divisions)}-{worker}-"
        self._lock = -1  # the owner's to give back

    def next_path(self) -> str:
        """Return a path for a new temporary file; nothing is there yet."""
        if not self._made:
            with self._making:
                if not self._made:
                    self._make()
        return f"{self._folder}/{self._mark}{next(self._numbers)}"

    def write(self, data: bytes | memoryview) -> str:
        """Write an object's bytes under a temporary name and return that name."""
        path = self.next_path()
        descriptor = os.open(path, CREATE_FLAGS, OBJECT_MODE)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
        return path

    def close(self) -> None:
        """Remove what is left and give the lock back."""
        if self._lock < 0:
            return
        if remove_folder(self._folder):
            with suppress(OSError):
                os.unlink(f"{self._folder}.lock")
        os.close(self._lock)
        self._lock = -1
        self._made = False

    def _make(self) -> None:
        make_folder(self._tmp, self._root)
        remove_abandoned(self._tmp)
        while True:
            self._folder = f"{self._tmp}/{os.getpid()}.{os.urandom(6).hex()}"
            self._lock = os.open(f"{self._folder}.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            grant([self._lock], self._root, 0o666)
            with suppress(OSError):  # no locks on this file system: then nobody can tell what is abandoned
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            if os.fstat(self._lock).st_nlink:
                break
            os.close(self._lock)  # a cleaner took it for abandoned between `open` and `flock`
        try:
            make_folder(self._folder, self._root)
        except OSError:
            self.close()
            raise
        self._made = True


def remove_abandoned(tmp: str) -> None:
    """Remove temporary folders whose process is gone, as its free lock tells."""
    with os.scandir(tmp) as entries:
        locks = [entry.path for entry in entries if entry.name.endswith(".lock")]
    for path in locks:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if remove_folder(path.removesuffix(".lock")):
                    os.unlink(path)
            finally:
                os.close(descriptor)


def remove_folder(folder: str) -> bool:
    """Remove a flat folder and its files; return whether it is gone now."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                os.unlink(entry.path)
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


class LooseStore:
    """Loose objects below `root`; no I/O before the first verb. Subclasses say how failures are told."""

    label = "the store"
    parallel = 1

    def __init__(self, root: Path, durability: Durability) -> None:
        self.root = root
        self.durability = durability
        self._objects = f"{root}/objects/"
        self._shards: set[str] = set()

    def trouble(self, error: OSError, doing: str) -> MlxError:
        """Return what to raise when the system refuses; `doing` completes "cannot ..."."""
        raise NotImplementedError

    def absent(self, digests: Sequence[Digest]) -> MlxError:
        """Return what to raise for objects that are not here."""
        return AbsentObjects(digests, self.label)

    def damaged(self, digest: Digest, found: Digest) -> CorruptObject:
        """Return what to raise for an object whose bytes hash to `found`."""
        raise NotImplementedError

    def look(self) -> None:
        """Check that the store is one this code understands; called before every read."""

    def prepare(self) -> None:
        """Make the store fit to be written to."""

    def object_path(self, digest: Digest) -> str:
        """Return where an object's bytes are, or would be."""
        return f"{self._objects}{digest[7:9]}/{digest[9:]}"

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not here."""
        self.look()
        objects, access = self._objects, os.access
        return {digest for digest in digests if not access(f"{objects}{digest[7:9]}/{digest[9:]}", os.F_OK)}

    def open(self, digest: Digest) -> BinaryIO:
        """Return a stream of an object's bytes, not verified; MissingObject."""
        return io.FileIO(self.open_descriptor(digest), "rb")

    def open_descriptor(self, digest: Digest) -> int:
        """Return an open descriptor of an object's file; MissingObject."""
        self.look()
        try:
            return os.open(self.object_path(digest), READ_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            raise self.absent([digest]) from None
        except OSError as error:
            raise self.trouble(error, f"read object `{digest}`") from error

    def read(self, digest: Digest, *, limit: int | None = TREE_LIMIT) -> bytes:
        """Return an object's bytes, verified; MissingObject, or CorruptObject, also for more than `limit` bytes."""
        with io.FileIO(self.open_descriptor(digest), "rb") as stream:
            try:
                if limit is not None and os.fstat(stream.fileno()).st_size > limit:
                    raise too_large(digest, limit)
                data = stream.read()
            except OSError as error:
                raise self.trouble(error, f"read object `{digest}`") from error
        found = hash_bytes(data)
        if found != digest:
            raise self.damaged(digest, found)
        return data

    def check(self, digest: Digest) -> None:
        """Read an object to its end; MissingObject or CorruptObject unless its bytes hash to `digest`."""
        with self.open(digest) as stream:
            try:
                found = hash_stream(stream)
            except OSError as error:
                raise self.trouble(error, f"read object `{digest}`") from error
        if found != digest:
            raise self.damaged(digest, found)

    def list(self) -> Iterator[Digest]:
        """Yield every digest here, in no order; what is not named like an object is passed over."""
        self.look()
        for shard in _names(self._objects):
            if len(shard) == 2:
                for rest in _names(f"{self._objects}{shard}"):
                    with suppress(ValueError):
                        yield parse_digest(f"blake3:{shard}{rest}")

    def write(self, objects: Iterable[tuple[Digest, Opener]], *, reporter: Reporter = SILENT, jobs: int = 0) -> int:
        """Store objects, verified in flight, in rounds that are each durable; return the bytes that came in."""
        try:
            self.prepare()
            return _Intake(self, reporter).run(objects, jobs or self.parallel)
        except OSError as error:
            raise self.trouble(error, f"copy objects to {self.label}") from error

    def publish(self, temporaries: Mapping[Digest, str], sealed: Sequence[tuple[str, str]] = ()) -> None:
        """Make temporary files durable, then visible as objects in the given order, then their names durable.

        The packs in `sealed` (file, name) come last. OSError passes through; objects renamed before it are whole and
        stay.
        """
        if not temporaries and not sealed:
            return
        grant(temporaries.values(), self.root, OBJECT_MODE)
        durable = self.durability is not Durability.NONE
        if durable:
            self._sync_files([*temporaries.values(), *(path for path, _ in sealed)])
        touched = set()
        for digest, temporary in temporaries.items():
            shard = digest[7:9]
            touched.add(shard)
            self._rename(temporary, shard, digest[9:])
        if durable and touched:
            self._sync_folders(touched)
        if sealed:
            self.publish_packs(sealed)

    def is_packed(self, data: bytes | memoryview) -> bool:  # noqa: ARG002
        """Say whether an object with these bytes, all of them or the first MiB, belongs into a pack."""
        return False

    def publish_packs(self, sealed: Sequence[tuple[str, str]]) -> None:
        """Make packs (file, name), durable by now, visible."""
        raise NotImplementedError

    def _rename(self, temporary: str, shard: str, rest: str) -> None:
        if shard not in self._shards:
            self._make_shard(shard)
        try:
            os.rename(temporary, f"{self._objects}{shard}/{rest}")
        except FileNotFoundError:  # someone removed the empty folder after we had seen it
            self._make_shard(shard)
            os.rename(temporary, f"{self._objects}{shard}/{rest}")

    def _make_shard(self, shard: str) -> None:
        make_folder(f"{self._objects}{shard}", self.root)
        self._shards.add(shard)

    def _sync_files(self, paths: Sequence[str]) -> None:
        if self.durability is Durability.BATCH:
            sync_paths(paths, self.root)
            return
        for path in paths:
            sync_paths([path], self.root)

    def _sync_folders(self, shards: set[str]) -> None:
        if self.durability is Durability.BATCH and len(shards) > FEW_FILES:
            sync_filesystem(self.root)
            return
        for shard in shards:
            sync_folder(f"{self._objects}{shard}")
        sync_folder(self._objects)
        sync_folder(self.root)

    def delete(self, digests: Iterable[Digest]) -> None:
        """Remove objects; those that are not here already are no error."""
        for digest in digests:
            try:
                os.unlink(self.object_path(digest))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self.trouble(error, f"remove object `{digest}`") from error

    def _run_path(self, key: str) -> Path:
        if not key.isalnum() or not key.isascii():
            raise ValueError(f"`{key}` is not a fingerprint")
        return self.root / "runs" / f"{key}.yaml"

    def read_run(self, key: str) -> bytes | None:
        """Return the run record stored under a fingerprint, or None."""
        path = self._run_path(key)
        self.look()
        try:
            with path.open("rb") as stream:
                data = stream.read(RUN_SIZE_LIMIT + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.trouble(error, f"read run record `{key}`") from error
        return data if len(data) <= RUN_SIZE_LIMIT else None

    def write_run(self, key: str, data: bytes) -> None:
        """Store a run record under its fingerprint, replacing what was there."""
        path = self._run_path(key)
        try:
            self.prepare()
            self.write_file(path, data)
        except OSError as error:
            raise self.trouble(error, f"write to {self.label}") from error

    def write_file(self, path: Path, data: bytes) -> None:
        """Make a file that is no object hold `data`; a crash leaves the old one or the new. OSError passes through.

        It comes from `tmp/` as objects do, where the next writer takes away what a crash left.
        """
        scratch = Scratch(str(self.root))
        try:
            temporary = scratch.write(data)
            if self.durability is not Durability.NONE:
                sync_paths([temporary], self.root)
            grant([temporary], self.root, OBJECT_MODE)
            make_folder(str(path.parent), self.root)
            os.rename(temporary, path)
            if self.durability is not Durability.NONE:
                sync_folder(path.parent)
        finally:
            scratch.close()

    def list_runs(self) -> Iterator[str]:
        """Yield the fingerprints that have a run record."""
        for name in _names(f"{self.root}/runs"):
            if name.endswith(".yaml") and name[:-5].isalnum():
                yield name[:-5]


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


class _Intake:
    """Objects on their way into a store: taken in by one thread or several, published by one, in rounds."""

    def __init__(self, store: LooseStore, reporter: Reporter) -> None:
        self._store = store
        self._reporter = reporter
        self._scratch = Scratch(str(store.root))
        self._buffers = threading.local()
        self._failures = Failures()
        self._packer = Packer(self._scratch.next_path)
        self._round: dict[Digest, str] = {}
        self._round_bytes = 0

    def run(self, objects: Iterable[tuple[Digest, Opener]], jobs: int) -> int:
        """Take all in; return the bytes. Objects that failed are raised together at the end."""
        total = 0
        try:
            try:
                for digest, taken, size in map_bounded(self._receive, objects, jobs):
                    if isinstance(taken, bytes):
                        self._packer.add(digest, taken)
                    elif taken:
                        self._round[digest] = taken
                    if taken is not None:
                        self._round_bytes += size
                        total += size
                    if len(self._round) >= ROUND_OBJECTS or self._round_bytes >= ROUND_BYTES:
                        self._publish()
            finally:
                self._publish()  # even when the source fails half-way: what arrived is whole and need not come again
        finally:
            self._packer.close()
            self._scratch.close()
        self._failures.raise_any()
        return total

    def _publish(self) -> None:
        ready, self._round = self._round, {}
        size, self._round_bytes = self._round_bytes, 0
        self._store.publish(ready, self._packer.seal())
        if size:
            self._reporter.advance(size)

    def _receive(self, item: tuple[Digest, Opener]) -> tuple[Digest, str | bytes | None, int]:
        """Take one object in; return its temporary file, or its bytes when it is for a pack, and its size.

        Of one that failed, nothing.
        """
        digest, opener = item
        try:
            with opener() as stream:
                found, taken, size = self._take(stream, digest)
        except (MissingObject, CorruptObject) as error:
            self._failures.add(digest, error)
            return digest, None, 0
        if found == digest:
            return digest, taken, size
        self._failures.add(digest, damaged_in_flight(digest, found))
        if isinstance(taken, str):
            os.unlink(taken)
        return digest, None, 0

    def _take(self, stream: BinaryIO, digest: Digest) -> tuple[Digest, str | bytes | None, int]:
        """Take a stream's bytes; return the digest of what was taken, where it is (file or bytes) and its size."""
        buffer = self._buffer()
        filled = fill(stream, buffer)
        if filled < len(buffer):
            found = hash_bytes(buffer[:filled])
            if found != digest:
                return found, None, filled
            packed = self._store.is_packed(buffer[:filled])
            return found, bytes(buffer[:filled]) if packed else self._scratch.write(buffer[:filled]), filled
        packed = self._store.is_packed(buffer)
        path = self._scratch.next_path()
        target = os.open(path, CREATE_FLAGS, OBJECT_MODE)
        try:
            if isinstance(stream, io.FileIO):
                stream.seek(0)
                found, size = copy_descriptor(stream.fileno(), target)
            else:
                found, size = copy_stream(stream, target, buffer, filled)
        finally:
            os.close(target)
        if packed and found == digest and size <= LARGEST:
            data = Path(path).read_bytes()
            os.unlink(path)
            return found, data, size
        return found, path, size

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._buffers, "value", None)
        if buffer is None:
            buffer = self._buffers.value = memoryview(bytearray(SMALL))
        return buffer
