"""A folder of loose objects: one file per object, published by a rename.

    objects/<aa>/<rest>     an object's bytes, mode 0444
    runs/<fingerprint>.yaml run records
    tmp/                    files on their way in (`scratch`)

The one idea is the order: bytes are written and hashed under `tmp`, synced once for many files, renamed into
`objects`, and the folders synced. A crash therefore leaves whole objects or none, and leftovers under `tmp` that the
next writer recognises by their free lock. The local cache and folder remotes are both this, with other words for what
goes wrong.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mlops_cli.errors import CorruptObject, MlxError
from mlops_cli.files import FEW_FILES, sync_filesystem, sync_folder, sync_paths
from mlops_cli.hashing import Digest, hash_bytes, parse_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.copying import hash_stream
from mlops_cli.store.intake import Intake
from mlops_cli.store.objects import AbsentObjects, Durability, Opener, too_large
from mlops_cli.store.scratch import OBJECT_MODE, Scratch
from mlops_cli.store.sharing import grant, make_folder
from mlops_cli.store.tree_format import TREE_LIMIT

RUN_SIZE_LIMIT = 1 << 20
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


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
            return Intake(str(self.root), self.is_packed, self.publish, reporter).run(objects, jobs or self.parallel)
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
