"""Reading a store to find what is damaged in it: every object against its digest, every pack and segment as a whole.

The one idea: a unit (a pack, or one folder of loose objects) is read to its end, in memory that does not grow with the
store, and judged by its own bytes alone. Units know when they were read last, so that a part of the store a day comes
round to all of it. Damaged objects go to `quarantine/`. Whom an object belongs to is known above.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol, TypeVar

from mlops_cli.files import list_folder
from mlops_cli.hashing import PREFIX, Digest, hash_descriptor, parse_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.damage import DamagedFile, DamagedObject, Findings, quarantine_place
from mlops_cli.store.loose import READ_FLAGS
from mlops_cli.store.objects import cut
from mlops_cli.store.pack_checkup import check_pack, check_segments
from mlops_cli.store.pack_folder import SUFFIX
from mlops_cli.store.packed import PackedStore
from mlops_cli.store.partial import find_leftovers, remove_leftovers
from mlops_cli.store.scratch import find_abandoned, remove_abandoned

CHECKED = "checked.json"  # when each unit was read last: seconds since 1970 by its name


class Sized(Protocol):
    """Something to read, of so many bytes."""

    @property
    def size(self) -> int:
        """How many bytes there are."""


U = TypeVar("U", bound=Sized)


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

    def choose(self, units: Sequence[U], read_at: Callable[[U], float]) -> list[U]:
        """Return what to read, in order: all of it, or first what was not read for the longest time."""
        if self.percent >= 100 and self.seconds is None:
            return list(units)
        order = sorted(units, key=lambda unit: (read_at(unit), self.random.random()))
        wanted = sum(unit.size for unit in units) * self.percent / 100
        chosen: list[U] = []
        for unit in order:
            if wanted <= 0:
                break
            chosen.append(unit)
            wanted -= unit.size
        return chosen


@dataclass(frozen=True, slots=True)
class Checkup:
    """What reading a store found; `units` of `of_units` were read, `objects` and `bytes` in them.

    `leftovers` are temporary files of processes that are gone (bytes); they are removed. `strays` are no objects.
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
        self._strays: list[str] = []

    def run(self) -> Checkup:
        units = list(self._units())
        leftovers = self._sweep()
        found = Findings(files=check_segments(self._store, dry_run=self._dry_run))
        checked = self._checked()
        chosen = self._scope.choose(units, lambda unit: checked.get(unit.name, 0))
        self._reporter.start("checking", sum(unit.size for unit in chosen), "bytes")
        begun = self._scope.clock()
        read: list[str] = []
        for unit in chosen:
            if self._scope.seconds is not None and self._scope.clock() - begun >= self._scope.seconds:
                break
            if unit.name.endswith(SUFFIX):
                name = unit.name.removeprefix("packs/").removesuffix(SUFFIX)
                found += check_pack(self._store, name, dry_run=self._dry_run)
                self._reporter.advance(unit.size)
            else:
                found += self._check_folder(unit.name)
            read.append(unit.name)
        self._remember(units, read)
        return Checkup(
            len(read),
            len(units),
            found.objects,
            found.bytes,
            found.damaged,
            found.files,
            leftovers,
            tuple(self._strays),
        )

    # What there is ---------------------------------------------------------------------------------------------------

    def _units(self) -> Iterator[_Unit]:
        for name in self._store.packs.names():
            with suppress(FileNotFoundError):
                yield _Unit(f"packs/{name}{SUFFIX}", os.stat(self._store.packs.path_of(name)).st_size)
        for shard in list_folder(f"{self._root}/objects"):
            size = 0
            for entry in list_folder(shard.path):
                with suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
            yield _Unit(f"objects/{shard.name}", size)

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
        """Remove what is left of writers that are gone; returns its bytes, in a dry run those that would go."""
        folder = f"{self._root}/tmp"  # noqa: S108 - in the store, not the system's folder
        sizes = {path: _size_below(path) for path in find_abandoned(folder)}
        for path in find_leftovers(self._store):
            with suppress(FileNotFoundError):
                sizes[path] = os.stat(path, follow_symlinks=False).st_size
        if not self._dry_run and sizes:
            remove_leftovers(self._store)
            with suppress(OSError):
                remove_abandoned(folder)
        return sum(size for path, size in sizes.items() if self._dry_run or not os.path.lexists(path))

    # Loose objects ---------------------------------------------------------------------------------------------------

    def _check_folder(self, name: str) -> Findings:
        count = size = 0
        damaged: list[DamagedObject] = []
        for entry in list_folder(f"{self._root}/{name}"):
            try:
                digest = parse_digest(f"{PREFIX}{name.rpartition('/')[2]}{entry.name}")
            except ValueError:
                self._strays.append(f"{name}/{entry.name}")
                continue
            if not entry.is_file(follow_symlinks=False):  # a pipe would be waited for
                self._strays.append(f"{name}/{entry.name}")
                continue
            length, fault = self._check_loose(digest, f"{name}/{entry.name}")
            count, size = count + 1, size + length
            damaged.extend(fault)
            self._reporter.advance(length)
        return Findings(count, size, tuple(damaged))

    def _check_loose(self, digest: Digest, name: str) -> tuple[int, list[DamagedObject]]:
        """Return an object's bytes, and what is wrong with it, if anything."""
        path = f"{self._root}/{name}"
        try:
            descriptor = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            return 0, []
        except OSError as error:  # nobody can say that it is damaged: it stays
            return 0, [DamagedObject(digest, _unreadable(error), None)]
        try:
            info = os.fstat(descriptor)
            try:
                found = hash_descriptor(descriptor)
                why = "" if found == digest else f"its bytes hash to `{cut(found)}`"
            except OSError as error:
                why = _unreadable(error)
        finally:
            os.close(descriptor)
        return info.st_size, [DamagedObject(digest, why, self._put_away(digest, path, info))] if why else []

    def _put_away(self, digest: Digest, path: str, info: os.stat_result) -> str | None:
        if self._dry_run:
            return None
        try:
            target = quarantine_place(self._root, digest.removeprefix(PREFIX))
            if os.stat(path, follow_symlinks=False).st_ino == info.st_ino:  # else somebody mended it
                os.rename(path, f"{self._root}/{target}")
        except OSError:
            return None
        return target


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {(error.strerror or str(error)).lower()}"


def _size_below(folder: str) -> int:
    total = 0
    for entry in list_folder(folder):
        if entry.is_dir(follow_symlinks=False):
            total += _size_below(entry.path)
        else:
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total
