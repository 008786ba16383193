"""Reading a store to find what is damaged in it: every object against its digest, every pack and segment as a whole.

The one idea: a unit (a pack, or one folder of loose objects) is read to its end, in memory that does not grow with the
store, and judged by its own bytes alone. Units know when they were read last, so that a part of the store a day comes
round to all of it. Good objects of a damaged pack move to a new one before the old goes to `quarantine/`; nothing is
deleted but segments, which say nothing that the packs do not. Whom an object belongs to is known above.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import PREFIX, Digest, digest_from_raw, hash_bytes, hash_descriptor, parse_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.loose import READ_FLAGS, remove_abandoned
from mlops_cli.store.objects import DamagedObjects, Durability, cut
from mlops_cli.store.pack_folder import SEGMENT_SUFFIX, SUFFIX
from mlops_cli.store.pack_format import FILE_HEADER, RECORD_SIZE, PackError, find_footer, scan_records
from mlops_cli.store.pack_index import Table, footer_table, mapped, segment_table
from mlops_cli.store.pack_writer import unpacked
from mlops_cli.store.packed import PackedStore
from mlops_cli.store.tree_format import TREE_LIMIT

CHECKED = "checked.json"  # when each unit was read last: seconds since 1970 by its name


@dataclass(frozen=True, slots=True)
class Scope:
    """How much of a store to read: `percent` of its bytes, until `seconds` are over (None: no end to it).

    What was not read for the longest time comes first; what was begun is read to its end. `clock` counts seconds, `now`
    is the time of day (seconds since 1970), `random` breaks ties.
    """

    percent: float = 100.0
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    random: Random = field(default_factory=Random)


@dataclass(frozen=True, slots=True)
class DamagedObject:
    """An object whose bytes are not its own, and where they were moved (relative to the store; None: not moved)."""

    digest: Digest
    why: str
    moved: str | None


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A pack or a segment that is not as it was written (relative to the store); `rebuilt` from what is good in it."""

    file: str
    why: str
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class Checkup:
    """What reading a store found; `units` of `of_units` were read, `objects` and `bytes` in them.

    `leftovers` are temporary files of processes that are gone (bytes); they are removed.
    """

    units: int
    of_units: int
    objects: int
    bytes: int
    damaged: tuple[DamagedObject, ...]
    files: tuple[DamagedFile, ...]
    leftovers: int
    strays: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all of the store was read."""
        return self.units == self.of_units


class _Unit(NamedTuple):
    name: str  # relative to the store
    size: int


def check_store(
    store: PackedStore,
    scope: Scope = Scope(),
    *,
    dry_run: bool = False,
    reporter: Reporter = SILENT,
) -> Checkup:
    """Read what `scope` says of a store; put away what is damaged, unless `dry_run`. OSError passes through."""
    return _Checker(store, scope, dry_run, reporter).run()


class _Checker:
    def __init__(self, store: PackedStore, scope: Scope, dry_run: bool, reporter: Reporter) -> None:
        self._store = store
        self._root = str(store.root)
        self._scope = scope
        self._dry_run = dry_run
        self._reporter = reporter
        self._objects = self._bytes = 0
        self._damaged: list[DamagedObject] = []
        self._files: list[DamagedFile] = []
        self._strays: list[str] = []

    def run(self) -> Checkup:
        units = list(self._units())
        leftovers = self._sweep()
        self._check_segments()
        chosen = self._choose(units)
        self._reporter.start("checking", sum(unit.size for unit in chosen), "bytes")
        begun = self._scope.clock()
        read: list[str] = []
        for unit in chosen:
            if self._scope.seconds is not None and self._scope.clock() - begun >= self._scope.seconds:
                break
            if unit.name.endswith(SUFFIX):
                self._check_pack(unit)
            else:
                self._check_folder(unit.name)
            read.append(unit.name)
        self._remember(units, read)
        return Checkup(
            len(read),
            len(units),
            self._objects,
            self._bytes,
            tuple(self._damaged),
            tuple(self._files),
            leftovers,
            tuple(self._strays),
        )

    # What there is ---------------------------------------------------------------------------------------------------

    def _units(self) -> Iterator[_Unit]:
        for name in self._store.packs.names():
            with suppress(FileNotFoundError):
                yield _Unit(f"packs/{name}{SUFFIX}", os.stat(self._store.packs.path_of(name)).st_size)
        for shard in _listed(f"{self._root}/objects"):
            size = 0
            for entry in _entries(f"{self._root}/objects/{shard}"):
                with suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
            yield _Unit(f"objects/{shard}", size)

    def _choose(self, units: Sequence[_Unit]) -> list[_Unit]:
        if self._scope.percent >= 100 and self._scope.seconds is None:
            return list(units)
        checked = self._checked()
        order = sorted(units, key=lambda unit: (checked.get(unit.name, 0), self._scope.random.random()))
        wanted = sum(unit.size for unit in units) * self._scope.percent / 100
        chosen: list[_Unit] = []
        for unit in order:
            if wanted <= 0:
                break
            chosen.append(unit)
            wanted -= unit.size
        return chosen

    def _checked(self) -> dict[str, int]:
        try:
            value = json.loads(Path(self._root, CHECKED).read_bytes())
        except (OSError, ValueError):
            return {}
        known = value.items() if isinstance(value, dict) else ()
        return {name: when for name, when in known if isinstance(when, int)}

    def _remember(self, units: Sequence[_Unit], read: Sequence[str]) -> None:
        if self._dry_run or not read:
            return
        names = {unit.name for unit in units}
        kept = {name: when for name, when in self._checked().items() if name in names}
        kept |= dict.fromkeys(read, int(self._scope.now()))
        with suppress(OSError):  # a cache that others own: then nobody knows when it was read
            self._store.write_file(Path(self._root, CHECKED), json.dumps(kept, sort_keys=True).encode())

    def _sweep(self) -> int:
        """Remove what writers that are gone left in `tmp/`; returns its bytes."""
        folder = f"{self._root}/tmp"  # noqa: S108 - in the store, not the system's folder
        before = _size_below(folder)
        if self._dry_run or not before:
            return 0
        with suppress(OSError):
            remove_abandoned(folder)
        return before - _size_below(folder)

    # Loose objects ---------------------------------------------------------------------------------------------------

    def _check_folder(self, name: str) -> None:
        for entry in _entries(f"{self._root}/{name}"):
            try:
                digest = parse_digest(f"{PREFIX}{name.rpartition('/')[2]}{entry.name}")
            except ValueError:
                self._strays.append(f"{name}/{entry.name}")
                continue
            self._check_loose(digest, f"{name}/{entry.name}")

    def _check_loose(self, digest: Digest, name: str) -> None:
        path = f"{self._root}/{name}"
        try:
            descriptor = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            return
        try:
            info = os.fstat(descriptor)
            try:
                found = hash_descriptor(descriptor)
                why = None if found == digest else f"its bytes hash to `{cut(found)}`"
            except OSError as error:
                why = f"it cannot be read: {(error.strerror or str(error)).lower()}"
        finally:
            os.close(descriptor)
        self._count(info.st_size)
        if why is not None:
            self._damaged.append(DamagedObject(digest, why, self._put_away(digest, path, info)))
        self._reporter.advance(info.st_size)

    def _put_away(self, digest: Digest, path: str, info: os.stat_result) -> str | None:
        if self._dry_run:
            return None
        target = self._away(digest.removeprefix(PREFIX))
        try:
            if os.stat(path, follow_symlinks=False).st_ino == info.st_ino:  # else somebody mended it
                os.rename(path, f"{self._root}/{target}")
        except FileNotFoundError:
            return None
        except OSError:
            return None
        return target

    def _away(self, name: str) -> str:
        with suppress(OSError):
            os.makedirs(f"{self._root}/quarantine", exist_ok=True)
        return f"quarantine/{name}.{os.urandom(4).hex()}"

    def _count(self, size: int) -> None:
        self._objects += 1
        self._bytes += size

    # Packs -----------------------------------------------------------------------------------------------------------

    def _check_pack(self, unit: _Unit) -> None:
        name = unit.name.removeprefix("packs/").removesuffix(SUFFIX)
        try:
            data = Path(self._root, unit.name).read_bytes()
        except FileNotFoundError:  # gathered into another one meanwhile, which was read for it
            return
        except OSError as error:
            self._files.append(DamagedFile(unit.name, (error.strerror or str(error)).lower(), rebuilt=False))
            return
        bad = self._check_records(name, data)
        why = _fault(name, data, bad)
        if why:
            target = self._replace(name, set(bad))
            self._damaged += [DamagedObject(digest, reason, target or None) for digest, reason in bad.items()]
            self._files.append(DamagedFile(unit.name, why, rebuilt=target is not None))
        self._reporter.advance(unit.size)

    def _check_records(self, name: str, data: bytes) -> dict[Digest, str]:
        """Count the good records of a pack and return its damaged ones, as far as any table knows of them."""
        good: set[Digest] = set()
        bad: dict[Digest, str] = {}
        for _, record in scan_records(memoryview(data)):
            digest = digest_from_raw(record.raw)
            self._count(record.length)
            try:
                found = hash_bytes(unpacked(record))
            except PackError as error:
                bad[digest] = str(error)
                continue
            if found == digest:
                good.add(digest)
            else:
                bad[digest] = f"its bytes hash to `{cut(found)}`"
        for digest in self._listed_in(name, data):
            if digest not in good and digest not in bad:
                bad[digest] = "its record is not what was written"
        return {digest: why for digest, why in bad.items() if digest not in good}

    def _listed_in(self, name: str, data: bytes) -> Collection[Digest]:
        """Return the objects that a pack should hold: by its footer if that is whole, else by the index."""
        try:
            return [digest_from_raw(raw) for raw, _ in footer_table(data, name, whole=True).rows()]
        except PackError:
            return [
                digest_from_raw(raw) for table in self._segments() for raw, place in table.rows() if place.pack == name
            ]

    def _segments(self) -> Iterator[Table]:
        for file in _listed(f"{self._root}/index"):
            with suppress(PackError, FileNotFoundError):
                yield segment_table(mapped(f"{self._root}/index/{file}"), whole=True)

    def _replace(self, name: str, bad: Collection[Digest]) -> str | None:
        """Put the good objects of a pack into a new one; returns where the old file is (empty: another process did it).

        None when it could not be.
        """
        if self._dry_run:
            return None
        target = self._away(f"{name}{SUFFIX}")
        packs = self._store.packs
        try:
            with self._store.scratch() as scratch, packs.replacing(wait=True):
                if name not in packs.names():
                    return ""
                packs.rewrite(
                    [name],
                    scratch.next_path,
                    durable=self._store.durability is not Durability.NONE,
                    keep=lambda digest: digest not in bad,
                    dispose=lambda path: os.rename(path, f"{self._root}/{target}"),
                )
        except OSError:
            return None
        return target

    # Segments --------------------------------------------------------------------------------------------------------

    def _check_segments(self) -> None:
        found: dict[str, str] = {}
        for file in _listed(f"{self._root}/index"):
            if file.endswith(SEGMENT_SUFFIX) and (why := self._segment_fault(file)):
                found[file] = why
        rebuilt = bool(found) and self._reindex(found)
        self._files += [DamagedFile(f"index/{file}", why, rebuilt) for file, why in found.items()]

    def _segment_fault(self, file: str) -> str | None:
        try:
            data = mapped(f"{self._root}/index/{file}")
            segment_table(data, whole=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            return (error.strerror or str(error)).lower()
        except PackError as error:
            return str(error)
        named = file.removesuffix(SEGMENT_SUFFIX)
        return None if hash_bytes(memoryview(data)) == f"{PREFIX}{named}" else "it is not what was written"

    def _reindex(self, files: Collection[str]) -> bool:
        if self._dry_run:
            return False
        packs = self._store.packs
        try:
            with self._store.scratch() as scratch, packs.replacing(wait=True):
                for file in files:
                    with suppress(FileNotFoundError):
                        os.unlink(f"{self._root}/index/{file}")
                packs.look_again()
                if packs.names():
                    packs.reindex(scratch.next_path)
        except OSError:
            return False
        return True


def peek(store: PackedStore, digest: Digest) -> bytes:
    """Return the verified bytes of a tree, moving nothing; MissingObject, or DamagedObjects."""
    try:
        data = store.packs.read(digest)
    except PackError as error:
        raise DamagedObjects([digest], f"object `{cut(digest)}` is damaged: {error}") from error
    if data is None:
        try:
            with open(store.object_path(digest), "rb") as stream:
                data = stream.read(TREE_LIMIT + 1)
        except FileNotFoundError:
            raise MissingObject(f"object `{cut(digest)}` is not in {store.label}") from None
        except OSError as error:
            raise store.trouble(error, f"read object `{digest}`") from error
    found = hash_bytes(data)
    if found != digest:
        raise DamagedObjects([digest], f"its bytes hash to `{cut(found)}`")
    return data


def _fault(name: str, data: bytes, bad: Collection[Digest]) -> str | None:
    """Return what is wrong with a pack, None when it is as it was written and its objects are too."""
    count = f"{len(bad):,} of its objects {'is' if len(bad) == 1 else 'are'} damaged"
    if hash_bytes(data) == f"{PREFIX}{name}":
        return count if bad else None
    try:
        start, _ = find_footer(memoryview(data), whole=True)
    except PackError as error:
        return str(error)
    end = len(FILE_HEADER)
    for offset, record in scan_records(memoryview(data)[:start]):
        if offset != end:
            break
        end = offset + RECORD_SIZE + len(record.data)
    return count if bad else "it has bytes that belong to no object" if end != start else "it is not what was written"


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size_below(folder: str) -> int:
    total = 0
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            total += _size_below(entry.path)
        else:
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total
