"""Reading a remote to find what is damaged in it: its index, whether its files are there, and what is in them.

The one idea: what the index names is cut into units (the objects of a pack, an object that lies alone, a file in
chunks), of which as many are read as is asked for, and nothing is changed. A file in chunks is put together in the
order that its recipe says, without being kept, and must have its own digest; its chunks are not read once more with
their packs. Units know when this clone read them last, so that a part of a remote a day comes round to all of it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import Digest, digest_from_raw
from mlops_cli.progress import Reporter
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.checkup import Scope
from mlops_cli.store.damage import DamagedFile
from mlops_cli.store.download import REPAIR, spans_of
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, cut
from mlops_cli.store.pack_index import Place
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.parcels import object_key, pack_key, recipe_key
from mlops_cli.store.recipe import RECIPE_LIMIT, Recipe, RecipeError, decode_recipe
from mlops_cli.store.remote_checkup import Fault, absent_file, check_loose, check_span, fault_of_size, sizes_of
from mlops_cli.store.remote_chunks import check_chunked, fault_of_part
from mlops_cli.store.remote_index import CHUNKED, LOOSE, RemoteIndex

CHECKED = "checked.json"  # when each unit was read last: seconds since 1970 by its key

Located = tuple[Digest, Place]


class Survey(NamedTuple):
    """What was found: `units` of `of_units` were read, with so many objects and bytes.

    `faults` are objects that are not on the remote as they were written, `chunks` the parts of these that are damaged
    themselves; `files` are damaged segments of the index, and packs with an object that is good in another one.
    """

    units: int = 0
    of_units: int = 0
    objects: int = 0
    bytes: int = 0
    faults: tuple[Fault, ...] = ()
    chunks: tuple[Fault, ...] = ()
    files: tuple[DamagedFile, ...] = ()


class _Read(NamedTuple):
    """What reading a unit came to: how many objects and bytes, and what was not right, each with the file it is in."""

    objects: int
    size: int
    wrong: Sequence[tuple[str, Fault]]
    chunks: Sequence[Fault] = ()


class _Unit(NamedTuple):
    key: str
    size: int
    read: Callable[[], _Read]


def survey(
    bucket: Bucket,
    index: RemoteIndex,
    trash: RemoteIndex,
    kept: str,
    scope: Scope,
    *,
    jobs: int,
    reporter: Reporter,
) -> Survey:
    """Examine all that the index of a remote names, reading as much of it as `scope` says; RemoteError.

    Of the `trash` the index alone is. `kept` is the folder of this clone for what it knows of the remote. The reporter
    advances by bytes.
    """
    unsound = [*index.unsound(), *trash.unsound()]
    files = [DamagedFile(key, "its bytes are not those it was named for", rebuilt=False) for key in unsound]
    try:
        rows = [(digest_from_raw(raw), place) for raw, place in index.rows()]
    except CorruptObject:
        if not files:
            raise
        return Survey(files=tuple(files))
    found = _Found(Counter(digest for digest, _ in rows))
    units = list(_units(bucket, index, rows, found, jobs))
    checked = _checked(kept)
    chosen = scope.choose(units, lambda unit: checked.get(unit.key, 0))
    reporter.start("checking", sum(unit.size for unit in chosen), "bytes")
    begun = scope.clock()

    def due() -> Iterator[_Unit]:
        for unit in chosen:
            if scope.seconds is not None and scope.clock() - begun >= scope.seconds:
                return
            yield unit

    read, objects, size = [], 0, 0
    for unit, done in map_bounded(lambda unit: (unit, unit.read()), due(), jobs):
        read.append(unit.key)
        objects, size = objects + done.objects, size + done.size
        found.take(done)
        reporter.advance(unit.size)
    _remember(kept, [unit.key for unit in units], read, scope)
    faults, spoilt = found.judge()
    return Survey(len(read), len(units), objects, size, faults, tuple(found.chunks), (*files, *spoilt))


class _Found:
    """What is wrong, place by place: an object of which another place may be good is not lost."""

    def __init__(self, places: Counter[Digest]) -> None:
        self.chunks: list[Fault] = []
        self._places = places
        self._wrong: dict[Digest, dict[str, Fault]] = {}

    def add(self, key: str, fault: Fault) -> None:
        self._wrong.setdefault(fault.digest, {})[key] = fault

    def take(self, done: _Read) -> None:
        for key, fault in done.wrong:
            self.add(key, fault)
        self.chunks += done.chunks

    def judge(self) -> tuple[tuple[Fault, ...], tuple[DamagedFile, ...]]:
        lost, spoilt = [], {}
        for digest, wrong in self._wrong.items():
            key, fault = next(iter(wrong.items()))
            if len(wrong) >= self._places[digest]:
                lost.append(next((each for each in wrong.values() if isinstance(each.error, DamagedObjects)), fault))
            else:
                spoilt[key] = DamagedFile(key, f"`{cut(digest)}` is not good in it, and in another pack", rebuilt=False)
        return tuple(lost), tuple(spoilt.values())


def _units(bucket: Bucket, index: RemoteIndex, rows: Sequence[Located], found: _Found, jobs: int) -> Iterator[_Unit]:
    """Yield what there is to read; what is wrong by names and sizes alone goes to `found`."""
    packs: dict[str, list[Located]] = {}
    chunked = {digest: place for digest, place in rows if place.pack == CHUNKED}
    recipes = list(_recipes(bucket, index, chunked, found, jobs))
    inside = {digest_from_raw(chunk.raw) for recipe in recipes for chunk in recipe.chunks()}
    stored = [(digest, place) for digest, place in rows if place.pack != CHUNKED]
    sizes = sizes_of(bucket, (place_key(digest, place) for digest, place in stored))
    lost: dict[Digest, Fault] = {}
    for digest, place in stored:
        key = place_key(digest, place)
        fault = fault_of_size(bucket, digest, place, key, sizes)
        if digest in inside:
            lost |= {digest: fault} if fault else {}
        elif fault:
            found.add(key, fault)
        elif place.pack == LOOSE:
            yield _Unit(key, place.length, partial(_read_loose, bucket, digest, place))
        else:
            packs.setdefault(place.pack, []).append((digest, place))
    found.chunks += lost.values()
    for name, objects in packs.items():
        size = sum(place.stored for _, place in objects)
        yield _Unit(pack_key(name), size, partial(_read_pack, bucket, name, objects))
    for recipe in recipes:
        key = recipe_key(recipe.digest)
        missed = next((lost[name] for chunk in recipe.chunks() if (name := digest_from_raw(chunk.raw)) in lost), None)
        if missed is not None:
            found.add(key, fault_of_part(bucket, recipe.digest, missed))
        else:
            yield _Unit(key, recipe.size, partial(_read_chunked, bucket, index, recipe))


def _recipes(
    bucket: Bucket, index: RemoteIndex, chunked: Iterable[Digest], found: _Found, jobs: int
) -> Iterator[Recipe]:
    """Yield the recipes that are there and whose chunks the index names; the others go to `found`."""

    def bring(digest: Digest) -> Recipe | Fault:
        key = recipe_key(digest)
        try:
            return decode_recipe(bucket.get(key, 0, RECIPE_LIMIT + 1), digest)
        except AbsentKey:
            return Fault(digest, absent_file(digest, bucket, key))
        except RecipeError as error:
            message = f"object `{cut(digest)}` in {bucket.label} is damaged (`{key}`): {error.message}"
            return Fault(digest, DamagedObjects([digest], message, hint=REPAIR))

    for brought in map_bounded(bring, chunked, jobs):
        if isinstance(brought, Fault):
            found.add(recipe_key(brought.digest), brought)
            continue
        chunks = {digest_from_raw(chunk.raw) for chunk in brought.chunks()}
        lost = len(chunks) - len(index.find(chunks))
        if lost:
            where = f"{bucket.label}: {lost:,} of its chunks {'is' if lost == 1 else 'are'} in no pack"
            fault = Fault(brought.digest, AbsentObjects([brought.digest], where, hint=REPAIR))
            found.add(recipe_key(brought.digest), fault)
        else:
            yield brought


def place_key(digest: Digest, place: Place) -> str:
    """Return the file of a remote that an object, which is not there in chunks, is in."""
    return object_key(digest) if place.pack == LOOSE else pack_key(place.pack)


# Reading -------------------------------------------------------------------------------------------------------------


def _read_loose(bucket: Bucket, digest: Digest, place: Place) -> _Read:
    size, faults = check_loose(bucket, digest, place)
    return _Read(1, size, [(object_key(digest), fault) for fault in faults])


def _read_pack(bucket: Bucket, name: str, objects: Sequence[Located]) -> _Read:
    size, wrong = 0, []
    for span in spans_of(objects):
        read, faults = check_span(bucket, span)
        size += read
        wrong += [(pack_key(name), fault) for fault in faults]
    return _Read(len(objects), size, wrong)


def _read_chunked(bucket: Bucket, index: RemoteIndex, recipe: Recipe) -> _Read:
    done = check_chunked(bucket, index, recipe)
    key = recipe_key(recipe.digest)
    return _Read(1, done.size, [(key, fault) for fault in done.whole], done.parts)


# How much ------------------------------------------------------------------------------------------------------------


def _checked(kept: str) -> dict[str, float]:
    try:
        with open(f"{kept}/{CHECKED}", "rb") as stream:
            value = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    times = value.items() if isinstance(value, dict) else ()
    return {key: when for key, when in times if isinstance(when, int | float)}


def _remember(kept: str, keys: Iterable[str], read: Sequence[str], scope: Scope) -> None:
    known = _checked(kept)
    times = {key: known[key] for key in keys if key in known} | dict.fromkeys(read, int(scope.now()))
    temporary = f"{kept}/{CHECKED}.{os.getpid()}"
    with suppress(OSError):  # a clone that is only to read: then nobody knows when it was read
        os.makedirs(kept, exist_ok=True)
        with open(temporary, "wb") as stream:
            stream.write(json.dumps(times, sort_keys=True).encode())
        os.replace(temporary, f"{kept}/{CHECKED}")
