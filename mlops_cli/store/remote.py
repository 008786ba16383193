"""A remote: objects that a team shares behind a URL, in packs, with an index that is read instead of asking for each.

    mlx.json                 {"mlx": 2}
    packs/<name>.pack        small objects and trees, in packs as the cache has them
    objects/<aa>/<rest>      objects too large for a pack, as their plain bytes
    recipes/<aa>/<rest>      of which chunks a large file is made; they are in packs
    index/<name>.idx         what is where (`remote_index`)
    trash/<name>.idx         what a collection has condemned and not deleted yet
    runs/<fingerprint>.yaml  run records

What is written appears in this order: packs and objects, then the index, then what Git names. So nothing that the
index says is ever not there, and two that push at once only add. A remote of layout 1 has no packs and no index; it is
read as it is, and the first push gives it an index.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from mlops_cli.errors import MlxError, RemoteError
from mlops_cli.hashing import Digest, digest_from_raw, parse_digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.checkup import Scope
from mlops_cli.store.chunking import CHUNKED_FROM
from mlops_cli.store.download import Download
from mlops_cli.store.folder_bucket import FolderBucket
from mlops_cli.store.loose import RUN_SIZE_LIMIT
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, too_large
from mlops_cli.store.pack_format import LARGEST, RECORD_SIZE, Row
from mlops_cli.store.pack_index import Place, rows_table
from mlops_cli.store.pack_segment import Segment
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.recipe import Recipe
from mlops_cli.store.reliance import Everything, Reliance
from mlops_cli.store.remote_checkup import Fault, check_bytes, check_files, check_recipes
from mlops_cli.store.remote_chunks import check_whole
from mlops_cli.store.remote_index import CHUNKED, LOOSE, TRASH, RemoteIndex
from mlops_cli.store.remote_marker import (
    LAYOUT,
    MARKER,
    WITHOUT_INDEX,
    UnreadableMarker,
    note_seen,
    read_layout,
    was_seen,
    write_marker,
)
from mlops_cli.store.remote_reading import ObjectReader
from mlops_cli.store.remote_survey import Survey, survey
from mlops_cli.store.run_notes import RunNotes
from mlops_cli.store.tree_format import TREE_LIMIT
from mlops_cli.store.upload import Upload

_ATTEMPTS = 3
_MOST = 2**32 - 1


class Transferred(NamedTuple):
    """What a transfer moved: how many objects, how many bytes."""

    objects: int
    bytes: int

    def plus(self, other: Transferred) -> Transferred:
        """Return what both moved."""
        return Transferred(self.objects + other.objects, self.bytes + other.bytes)


class Remote:
    """The remote in `bucket`; `kept` is a folder of this clone for what need not be asked twice.

    No I/O before the first verb. RemoteError from any verb when it cannot be reached, or is of a later layout.
    """

    def __init__(self, bucket: Bucket, kept: str) -> None:
        self.bucket = bucket
        self.name = bucket.name
        self.url = bucket.url
        self.label = bucket.label
        self._kept = kept
        self.index = RemoteIndex(bucket, kept)
        self.trash = RemoteIndex(bucket, f"{kept}/trash", TRASH)
        self._everything = Everything(self.index, self.trash)
        self.run_notes = RunNotes(f"{kept}/runs")
        self._reliance = Reliance(bucket, self.index, self.trash)
        self._asked: list[Collection[Digest]] = []
        self._held: set[Digest] = set()
        self._layout: int | None = None  # 0 while there is no marker
        self.mended: list[str] = []  # the keys of what `mend_index` put back

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not here, as the index says."""
        found = set(self._find(digests))
        self._reliance.believe(found)
        self._asked.append(found)
        return set(digests) - found

    def confirm(self) -> None:
        """Make sure that all that was found here, and what was sent, is still here: one listing, unless it is not.

        MissingObject for what somebody has taken away since it was found; RemoteError.
        """
        self._look()
        if not self._layout or not any(self._asked):
            return
        self.index.forget()
        lost = self._reliance.lost()
        if gone := {digest for digest in lost if any(digest in asked for asked in self._asked)}:
            raise self.absent(gone)

    def tables(self) -> list[Segment]:
        """Return all that the index says, brought here so that asking it is no request any more."""
        self._look()
        return self.index.tables() if self._layout else []

    def holds(self, digest: Digest) -> bool:
        """Say whether an object is here, as the index says: `missing` for those that come one by one."""
        if not self._find([digest]):
            return False
        if not self._held:
            self._asked.append(self._held)
            self._reliance.believe(self._held)
        self._held.add(digest)
        return True

    def stored_size(self, digest: Digest) -> int | None:
        """Return the bytes that an object takes here, a large file with all its chunks; None when it is not here."""
        place = self._find([digest]).get(digest)
        if place is None:
            return None
        return place.length if place.pack in (LOOSE, CHUNKED) else place.stored + RECORD_SIZE

    def measure(self, digests: Collection[Digest]) -> int:
        """Return the bytes of those of `digests` that are here, condemned or not; no file counts for over 4 GiB."""
        self._look()
        found = self._everything.find(digests) if digests and self._layout else {}
        return sum(place.length for place in found.values())

    def check(
        self, digests: Collection[Digest] | None = None, *, read: bool, jobs: int = 0, reporter: Reporter = SILENT
    ) -> list[Fault]:
        """Return what of `digests` (None: of everything) the index names and the remote has not as it was written.

        By the names and sizes of its files alone or, with `read`, by reading all of it, when the reporter is told how
        many bytes that is. From now on, all that was found wrong is missing; `forget_faults` lets others know.
        """
        self._look()
        if not self._layout:
            return []
        if digests is None:
            places = {digest_from_raw(raw): place for raw, place in self.index.rows()}
        else:
            places = self.index.find(digests)
        faults, owners, recipes = check_recipes(self.bucket, self.index, places)  # `places` has the chunks instead
        found = list(check_files(self.bucket, places))
        for pack in {places[fault.digest].pack for fault in found if isinstance(fault.error, AbsentObjects)}:
            if pack not in (LOOSE, CHUNKED):
                self.index.reject(pack)  # with all that is in it, whether or not it was asked for
        if read:
            for fault in found:
                del places[fault.digest]
            whole = [recipe for recipe in recipes if all(name in places for name in _chunks_of(recipe))]
            apart = places.keys() - {name for recipe in whole for name in _chunks_of(recipe)}
            total = sum(recipe.size for recipe in whole) + sum(places[digest].length for digest in apart)
            reporter.start("verifying", total, "bytes")
            faults += check_whole(self.bucket, self.index, whole, places, jobs, reporter)
            found += check_bytes(self.bucket, places, jobs, reporter)
        self.index.deny(fault.digest for fault in found)
        for fault in found:
            faults += [Fault(owner, fault.error) for owner in owners.get(fault.digest, [fault.digest])]
        faults = list({fault.digest: fault for fault in faults}.values())
        self.index.deny(fault.digest for fault in faults)
        return faults

    def survey(self, scope: Scope, *, jobs: int = 0, reporter: Reporter = SILENT) -> Survey:
        """Examine all that the index names, reading as much of it as `scope` says; changes nothing."""
        self._look()
        if not self._layout:
            return Survey()
        jobs = jobs or self.bucket.parallel
        return survey(self.bucket, self.index, self.trash, self._kept, scope, jobs=jobs, reporter=reporter)

    def deny(self, digests: Collection[Digest]) -> None:
        """Take more for missing, as if `check` had found it wrong."""
        self.index.deny(digests)

    def forget_faults(self) -> None:
        """Let the index name no more what `check` has found wrong."""
        self._prepare()
        self.index.rewrite()

    def unsound(self) -> list[str]:
        """Return the keys of what the index consists of that are not here as they were written."""
        self._look()
        return self.index.unsound() if self._layout else []

    def mend_index(self) -> list[str]:
        """Make the index, and the marker, whole as far as they are known here; the rest goes.

        Returns the names of what had to go: what only that named is missing now.
        """
        self._mend_marker()
        self._prepare(anew=True)
        lost = [*self.index.mend(), *self.trash.mend()]
        self.mended += [*self.index.mended, *self.trash.mended]
        return lost

    def send(self, cache: Cache, wanted: Wanted, *, jobs: int = 0, reporter: Reporter = SILENT) -> Transferred:
        """Make what `cache` has of `wanted` present here; the reporter advances by bytes, starting it is the caller's.

        AbsentObjects or DamagedObjects when the cache lacks some, once all other blobs are here.
        """
        self._prepare()
        size, left = 0, wanted
        for _ in range(_ATTEMPTS):
            upload = Upload(cache, self.bucket, self.index, reporter)
            try:
                size += upload.run(left, jobs)
            finally:
                self._reliance.wrote(upload.keys)
                self._reliance.believe(upload.believed)
                self._reliance.believe(left.blobs)
                self._reliance.believe(left.trees)
            lost = self._reliance.lost()
            if gone := {
                digest for digest in lost - wanted.sizes.keys() if any(digest in asked for asked in self._asked)
            }:
                raise self.absent(gone)
            if not lost:
                return Transferred(len(wanted.blobs) + len(wanted.trees), size)
            left = _again(lost, wanted)
        raise RemoteError(f"{self.label} loses what is sent to it", hint="is it being collected? run the command again")

    def bring(
        self, cache: Cache, digests: Collection[Digest], *, jobs: int = 0, reporter: Reporter = SILENT
    ) -> Transferred:
        """Bring those of `digests` that `cache` lacks into it, verified; what came stays when the rest fails.

        AbsentObjects or DamagedObjects name what did not come. The reporter advances by bytes.
        """
        lacking = cache.missing(digests)
        if not lacking:
            return Transferred(0, 0)
        self._look()
        if not self._layout:
            raise self.absent(lacking)
        download = Download(cache, self.bucket, self._everything, reporter)
        download.run([digest for digest in dict.fromkeys(digests) if digest in lacking], jobs)
        return Transferred(download.objects, download.bytes)

    def read(self, digest: Digest, *, limit: int | None = TREE_LIMIT) -> bytes:
        """Return an object's bytes, verified; MissingObject, or CorruptObject, also for more than `limit` bytes."""
        reader = ObjectReader(self.bucket, self._everything.find, partial(self.read, limit=LARGEST))
        for _ in range(_ATTEMPTS):
            self._look()
            place = self._everything.find([digest]).get(digest) if self._layout else None
            if place is None:
                break
            try:
                data = reader.read_at(digest, place, limit)
            except AbsentKey:
                self._everything.reject(place.pack)
                continue
            except DamagedObjects:
                if not self.index.doubt(digest):
                    raise
                continue
            if limit is not None and len(data) > limit:
                raise too_large(digest, limit)
            return data
        raise self.absent([digest])

    def find_small(self, digests: Collection[Digest]) -> list[Digest]:
        """Return those of `digests` that are here, condemned or not, and may be trees by their size."""
        self._look()
        found = self._everything.find(digests) if digests and self._layout else {}
        return sorted(digest for digest, place in found.items() if place.length <= TREE_LIMIT)

    def list(self) -> Iterator[Digest]:
        """Yield every digest here, in no order."""
        self._look()
        if self._layout:
            for raw, _ in self.index.rows():
                yield digest_from_raw(raw)

    def read_run(self, key: str) -> bytes | None:
        """Return the run record stored under a fingerprint, or None."""
        place = _run_key(key)
        self._look()
        try:
            data = self.bucket.get(place, 0, RUN_SIZE_LIMIT + 1)
        except AbsentKey:
            return None
        return data if len(data) <= RUN_SIZE_LIMIT else None

    def write_run(self, key: str, data: bytes) -> None:
        """Store a run record under its fingerprint, replacing what was there."""
        place = _run_key(key)
        self._prepare()
        self.bucket.put(place, data)

    def list_runs(self) -> Iterator[str]:
        """Yield the fingerprints that have a run record."""
        self._look()
        for stored in self.bucket.list("runs"):
            name = stored.key.removeprefix("runs/")
            if name.endswith(".yaml") and name[:-5].isalnum():
                yield name[:-5]

    def is_new(self) -> bool:
        """Say whether nothing was ever pushed here; RemoteError for a folder that could not even be made."""
        self._look()
        if isinstance(self.bucket, FolderBucket):
            self.bucket.refuse_unmounted()
        return not self._layout

    def absent(self, digests: Collection[Digest]) -> MlxError:
        """Return what to raise for objects that are not here: RemoteError when the remote itself is not."""
        bucket = self.bucket
        if isinstance(bucket, FolderBucket) and not bucket.exists():
            hint = "mount it, or check its URL: `mlx remote list`"
            return RemoteError(f"{self.label} (`{bucket.folder}`) does not exist", hint=hint)
        return AbsentObjects(sorted(digests), self.label, hint="`mlx push` it from a clone that has it")

    def _find(self, digests: Collection[Digest]) -> dict[Digest, Place]:
        self._look()
        return self.index.find(digests) if digests and self._layout else {}

    def _look(self) -> None:
        """Check, once, that this code understands the remote's layout; one that holds nothing yet passes."""
        if self._layout is not None:
            return
        layout = read_layout(self.bucket)
        if layout == WITHOUT_INDEX:
            self.index.supplement(rows_table(self._loose(), LOOSE))
        self._layout = layout
        if layout:
            note_seen(self._kept)

    def _mend_marker(self) -> None:
        """Write the marker of a remote anew that has one which is no JSON, as when it was cut short.

        A place without an index of ours is left alone: its `mlx.json` may be somebody else's.
        """
        try:
            read_layout(self.bucket)
        except UnreadableMarker:
            if not self.index.exists():
                raise
            write_marker(self.bucket)
            self.mended.append(MARKER)

    def _loose(self) -> Iterator[Row]:
        for stored in self.bucket.list("objects"):
            with suppress(ValueError):
                digest = parse_digest("blake3:" + stored.key.removeprefix("objects/").replace("/", "", 1))
                size = min(stored.size, _MOST)
                yield Row(raw_digest(digest), 0, size, size)

    def refuse_without_index(self) -> None:
        """Raise RemoteError where nothing was ever pushed, or no index says what is there."""
        if self.is_new():
            raise RemoteError(f"nothing was ever pushed to {self.label} (`{self.url}`)", hint="`mlx push`")
        if self._layout == WITHOUT_INDEX:
            raise RemoteError(f"{self.label} has no index yet", hint="the next `mlx push` of something new makes one")

    def refuse_lost(self) -> None:
        """Raise RemoteError where this clone knows of objects and nothing is left, as of a disk that is not mounted."""
        self._look()
        if not self._layout and was_seen(self._kept) and not self.index.exists():
            raise RemoteError(
                f"{self.label} (`{self.url}`) is empty, and this clone knows it with data",
                hint="mount it, or check its URL (`mlx remote list`); if its data is meant to be gone, "
                f"`mlx push --repair --remote {self.name}` begins it anew",
            )

    def _prepare(self, *, anew: bool = False) -> None:
        """Make the place a remote, and one of an earlier layout one of this.

        RemoteError where this clone knows of objects and nothing is left, as of a disk that is not mounted; not `anew`.
        """
        self._look()
        if not self._layout and was_seen(self._kept):  # by a push that has begun it since this one looked, maybe
            self._layout = None
            self._look()
        if self._layout == LAYOUT:
            return
        if not anew:
            self.refuse_lost()
        if self._layout == WITHOUT_INDEX:
            self.index.add([])
        write_marker(self.bucket)
        self._layout = LAYOUT
        note_seen(self._kept)


def _chunks_of(recipe: Recipe) -> Iterator[Digest]:
    return (digest_from_raw(chunk.raw) for chunk in recipe.chunks())


def _again(lost: Collection[Digest], wanted: Wanted) -> Wanted:
    """Return what to send so that `lost` is there again: objects, or chunks of files that were sent."""
    objects = [digest for digest in wanted.sizes if digest in lost]
    if len(objects) < len(lost):
        objects += [digest for digest in wanted.blobs if wanted.sizes[digest] >= CHUNKED_FROM and digest not in lost]
    trees = [digest for digest in wanted.trees if digest in lost]
    held = set(trees)
    return Wanted([digest for digest in objects if digest not in held], trees, wanted.sizes)


def _run_key(key: str) -> str:
    if not key.isalnum() or not key.isascii():
        raise ValueError(f"`{key}` is not a fingerprint")
    return f"runs/{key}.yaml"
