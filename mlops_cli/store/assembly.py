"""Making a large file from its chunks: those that lie in objects of the cache, and the rest from where it comes.

The one idea: nothing is believed that was not read back from the new file. Chunks are copied by the system, which
shares blocks where the file system can, and then the file's own bytes are hashed. A source that was damaged, edited or
removed, before or meanwhile, therefore costs its chunks and no more: they are found in the file and fetched like those
that were never here. What comes back is a file with the right bytes, to be published. Or there is none; but what had to
be fetched may stay in a partial file, where it is looked for the next time, chunk by chunk, by its own digests.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Self

from mlops_cli.errors import CorruptObject, MissingObject, OutsideError
from mlops_cli.hashing import RAW_SIZE, Digest, Hasher, digest_from_raw, hash_raw
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.loose import LooseStore
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, cut, damaged_in_flight
from mlops_cli.store.partial import Partial
from mlops_cli.store.ranges import copy_range, read_at, write_at
from mlops_cli.store.recipe import Recipe
from mlops_cli.store.recipes import Place
from mlops_cli.store.scratch import OBJECT_MODE

if TYPE_CHECKING:
    from concurrent.futures import Future

AT_ONCE = 256 << 20  # bytes of chunks that are asked for together, each written as it comes
_UNKNOWN, _WRONG, _RIGHT = range(3)  # what is known of a chunk in its place
_STRETCH = 8 << 20  # bytes that are copied while those before them are hashed
_OPEN = 16  # sources that are open at once
_UNREADABLE = frozenset({errno.EIO, errno.ESTALE})  # if that was the new file, what is written next fails again
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW

# Given 32-byte digests, each once, what brings the chunks, in any order, as pairs of digest and bytes.
Fetch = Callable[[list[bytes]], Iterable[tuple[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class Assembled:
    """A file that has been made: where it is, and how many of its bytes had to be fetched.

    `suspects` are the objects that had not the bytes that their recipe says, or were gone: `check` tells more.
    """

    path: str
    fetched: int
    suspects: tuple[Digest, ...]


class _Stretch(NamedTuple):
    """Some chunks that follow one another: the numbers of the first and of the one after the last, and their offset."""

    first: int
    end: int
    offset: int


def assemble(
    recipe: Recipe,
    places: Sequence[Place | None],
    fetch: Fetch,
    store: LooseStore,
    next_path: Callable[[], str],
    *,
    partial: Partial | None = None,
    reporter: Reporter = SILENT,
) -> Assembled:
    """Make the file of `recipe` under a temporary name that `next_path` gives, and verify it; then it can be published.

    With a `partial` it is made there, from what is in it already, and stays the caller's to publish and close.

    `places` says where in `store` each chunk may be, or None; `fetch` is called for those that are not, or no longer,
    there, with at most `AT_ONCE` bytes of them at a time, and may bring what comes next while others are written. The
    reporter advances by the bytes of the file. What this
    holds are a few chunks, and what `fetch` does.

    CorruptObject when chunks come wrong or make another file than the recipe says, AbsentObjects when some do not come;
    what `fetch` raises passes through, and OSError becomes what a user can act on. Nothing is left behind then, but for
    a partial file with bytes that came and may be right; a disk that is full gets them back as well.
    """
    path = next_path() if partial is None else partial.path
    assembly = _Assembly(recipe, places, fetch, store, path, reporter, resume=partial is not None)
    try:
        with assembly:
            assembly.run()
        if partial is not None:
            partial.finish()
    except BaseException as error:
        if partial is None or isinstance(error, OSError) or not assembly.worth_keeping:
            with suppress(OSError):
                os.unlink(path)
        if isinstance(error, OSError):
            raise store.trouble(error, f"write object `{cut(recipe.digest)}`") from error
        raise
    return Assembled(path, assembly.fetched, tuple(assembly.suspects))


class _Assembly:
    """One file in the making."""

    def __init__(
        self,
        recipe: Recipe,
        places: Sequence[Place | None],
        fetch: Fetch,
        store: LooseStore,
        path: str,
        reporter: Reporter,
        *,
        resume: bool,
    ) -> None:
        self.fetched = 0
        self.worth_keeping = resume
        self.suspects: dict[Digest, None] = {}
        self._recipe = recipe
        self._places = places
        self._fetch = fetch
        self._path = path
        self._reporter = reporter
        self._sources = _Sources(store)
        self._target = -1
        self._flags = _FLAGS if resume else _FLAGS | os.O_CREAT | os.O_EXCL
        self._before = 0  # bytes that were in the file already, some of which may be right
        self._looked = bytearray(len(recipe))  # which chunks are in their places, as far as is known
        self._repeated = _repeated(recipe)
        self._written: dict[bytes, int] = {}  # where chunks are that came once and are there more often
        self._coming = self._receive({})  # what was asked for and has not been taken
        self._goals: dict[bytes, tuple[int, int]] = {}  # the number and the offset of each of these chunks
        self._buffer = memoryview(bytearray(max(recipe.lengths, default=0)))

    def __enter__(self) -> Self:
        self._target = os.open(self._path, self._flags, OBJECT_MODE)
        self._before = os.fstat(self._target).st_size
        if self._before > self._recipe.size:
            os.ftruncate(self._target, self._recipe.size)
        return self

    def __exit__(self, *_: object) -> None:
        self._coming.close()
        self._sources.close()
        if self._target >= 0:
            self.worth_keeping = self.worth_keeping and (self.fetched > 0 or _RIGHT in self._looked)
            os.close(self._target)

    def run(self) -> None:
        """Write and verify everything."""
        # One digest for all, in the time that one for each chunk would take as well. Only when it is not the right one,
        # chunks are looked at one by one.
        found = self._write_all()
        if found != self._recipe.digest:
            found = self._mend_all()
        if found != self._recipe.digest:
            self.worth_keeping = False
            hint = "`mlx push` from a clone that has the file writes its recipe anew"
            message = f"the chunks of object `{cut(self._recipe.digest)}` make another one: `{cut(found)}`"
            raise DamagedObjects([self._recipe.digest], message, hint=hint)

    def _write_all(self) -> Digest:
        """Write one stretch after the other; return the digest of what can be read then."""
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - 18 ms that only who assembles needs

        hasher = Hasher()
        before: Future[None] | None = None
        with ThreadPoolExecutor(1) as pool:
            for stretch in self._stretches():
                self._write(stretch)
                if before is not None:
                    before.result()
                before = pool.submit(self._hash, stretch, hasher)
                self._reporter.advance(sum(self._recipe.lengths[stretch.first : stretch.end]))
            if before is not None:
                before.result()
        return hasher.digest()

    def _hash(self, stretch: _Stretch, hasher: Hasher) -> None:
        offset = stretch.offset
        for length in self._recipe.lengths[stretch.first : stretch.end]:
            hasher.update(self._buffer[: read_at(self._target, self._buffer[:length], offset)])
            offset += length

    def _mend_all(self) -> Digest:
        """Fetch what is wrong; return the digest of what can be read then."""
        hasher = Hasher()
        for stretch in self._stretches():
            wrong = self._wrong_in(stretch)
            if wrong:
                self._mend(wrong)
                if still := self._wrong_in(stretch):
                    self.worth_keeping = False
                    name = cut(self._recipe.digest)
                    message = (
                        f"what was written of object `{name}` is not what is read back, {len(still):,} of its chunks"
                    )
                    raise CorruptObject(message, hint="the disk may be failing; look at the system's log")
            self._hash(stretch, hasher)
        return hasher.digest()

    def _stretches(self) -> Iterator[_Stretch]:
        lengths = self._recipe.lengths
        first = offset = size = 0
        for number, length in enumerate(lengths, 1):
            size += length
            if size >= _STRETCH or number == len(lengths):
                yield _Stretch(first, number, offset)
                first, offset, size = number, offset + size, 0

    # Writing ---------------------------------------------------------------------------------------------------------

    def _write(self, stretch: _Stretch) -> None:
        """Put chunks where they belong, unverified; where a source fails, other bytes or none are there."""
        recipe = self._recipe
        number, offset = stretch.first, stretch.offset
        while number < stretch.end:
            place = self._places[number]
            if self._is_there(number, offset):
                offset += recipe.lengths[number]
                number += 1
            elif place is not None and not self._sources.lacks(place.digest):
                end, size = self._run_of(number, stretch.end, place)
                self._sources.copy(place.digest, place.offset, self._target, offset, size)
                number, offset = end, offset + size
            else:
                self._put(number, offset)
                offset += recipe.lengths[number]
                number += 1

    def _is_there(self, number: int, offset: int) -> bool:
        """Say whether a chunk has come, or was in its place from the beginning."""
        if self._looked[number] == _UNKNOWN:
            recipe = self._recipe
            length = recipe.lengths[number]
            if offset + length > self._before:
                return False
            raw, data = recipe.raw(number), memoryview(bytearray(length))
            right = read_at(self._target, data, offset) == length and hash_raw(data) == raw
            self._note(number, offset, right=right)
        return self._looked[number] == _RIGHT

    def _note(self, number: int, offset: int, *, right: bool) -> None:
        """Remember of a chunk whether it is in its place."""
        self._looked[number] = _RIGHT if right else _WRONG
        if right and (raw := self._recipe.raw(number)) in self._repeated:
            self._written.setdefault(raw, offset)

    def _run_of(self, number: int, end: int, place: Place) -> tuple[int, int]:
        """Return how far the chunks from `number` on, and before `end`, follow one another, and their bytes."""
        size = place.length
        number += 1
        while number < end and self._places[number] == (
            place.digest,
            place.offset + size,
            self._recipe.lengths[number],
        ):
            size += self._recipe.lengths[number]
            number += 1
        return number, size

    def _put(self, number: int, offset: int) -> None:
        """Put a chunk that is in no source to its place."""
        raw = self._recipe.raw(number)
        while self._looked[number] != _RIGHT and raw not in self._written:
            if raw not in self._goals:
                self._take(len(self._goals))
                self._ask_from(number, offset)
            self._take(1)
        if self._looked[number] != _RIGHT:
            copy_range(self._target, self._written[raw], self._target, offset, self._recipe.lengths[number])

    def _take(self, count: int) -> None:
        """Write so many of the chunks that were asked for to their places, as they come."""
        for raw, data in islice(self._coming, count):
            goal = self._goals.pop(raw)
            write_at(self._target, data, goal[1])
            self._note(*goal, right=True)

    def _ask_from(self, number: int, offset: int) -> None:
        """Ask for chunks from `number` on that are in no source."""
        recipe = self._recipe
        wanted: dict[bytes, int] = {}
        size = 0
        for at in range(number, len(recipe)):
            raw, place, length = recipe.raw(at), self._places[at], recipe.lengths[at]
            offset += length
            if place is not None and not self._sources.lacks(place.digest):
                continue
            if raw in wanted or raw in self._written or self._is_there(at, offset - length):
                continue
            size += length
            if wanted and size > AT_ONCE:
                break
            wanted[raw] = length
            self._goals[raw] = at, offset - length
        self._coming = self._receive(wanted)

    def _receive(self, wanted: dict[bytes, int]) -> Generator[tuple[bytes, bytes], None, None]:
        """Yield chunks (digest and length), each once and verified."""
        digest = self._recipe.digest
        waiting = dict(wanted)
        for raw, data in self._fetch(list(wanted)):
            length = waiting.pop(raw, None)
            if length is None:
                continue
            found = hash_raw(data)
            if found != raw or len(data) != length:
                error = damaged_in_flight(digest_from_raw(raw), digest_from_raw(found))
                raise DamagedObjects([digest], error.message, hint=error.marked_hint)
            self.fetched += length
            yield raw, data
        if waiting:
            where = f"its store as a whole: {len(waiting):,} of its chunks did not come"
            raise AbsentObjects([digest], where, hint="`mlx push --repair` from a clone that has the file brings them")

    # Mending ---------------------------------------------------------------------------------------------------------

    def _wrong_in(self, stretch: _Stretch) -> list[tuple[int, int]]:
        """Return the number and the offset of each chunk that is not what it should be."""
        wrong = []
        offset = stretch.offset
        for number in range(stretch.first, stretch.end):
            length = self._recipe.lengths[number]
            data = self._buffer[:length]
            if read_at(self._target, data, offset) < length or hash_raw(data) != self._recipe.raw(number):
                wrong.append((number, offset))
            offset += length
        return wrong

    def _mend(self, wrong: list[tuple[int, int]]) -> None:
        """Fetch the wrong chunks of a stretch, all at once, and write them to their places."""
        recipe = self._recipe
        places = (self._places[number] for number, _ in wrong)
        self.suspects.update((place.digest, None) for place in places if place is not None)
        wanted = {recipe.raw(number): recipe.lengths[number] for number, _ in wrong}
        for raw, data in self._receive(wanted):
            for number, offset in wrong:
                if recipe.raw(number) == raw:
                    write_at(self._target, data, offset)


class _Sources:
    """Objects that chunks are copied from, a few of them open at once."""

    def __init__(self, store: LooseStore) -> None:
        self._store = store
        self._open: dict[Digest, int] = {}
        self._lacking: set[Digest] = set()

    def lacks(self, digest: Digest) -> bool:
        """Say whether an object is known to be gone."""
        return digest in self._lacking

    def copy(self, digest: Digest, start: int, target: int, offset: int, size: int) -> None:
        """Copy bytes of an object, as many as there are."""
        descriptor = self._open.pop(digest, None)
        if descriptor is None:
            try:
                descriptor = self._store.open_descriptor(digest)
            except (MissingObject, OutsideError):
                self._lacking.add(digest)
                return
        self._open[digest] = descriptor  # it is the last now
        if len(self._open) > _OPEN:
            os.close(self._open.pop(next(iter(self._open))))
        try:
            copy_range(descriptor, start, target, offset, size)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            self._lacking.add(digest)

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _repeated(recipe: Recipe) -> frozenset[bytes]:
    """Return the chunks that a file has more than once, and perhaps a few that only begin alike."""
    import numpy as np

    keys = np.frombuffer(recipe.raws, np.uint64)[:: RAW_SIZE // 8]
    ordered = np.sort(keys)
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return frozenset(map(recipe.raw, np.flatnonzero(np.isin(keys, again)).tolist()))
