"""Changing what a remote holds already, in steps of which each leaves all that is needed in the index.

What is to go is condemned first: taken out of the index and put into the trash, which is an index as well, while the
files stay. They are deleted by a later collection, when the grace age has passed again since; what is needed by then
goes back into the index. Packs of which part is kept are written anew before that. The order is: new packs, the trash,
the new index, the old segments, and at last files that have been in the trash for long enough.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import NamedTuple

from mlops_cli.errors import MlxError
from mlops_cli.hashing import Digest, digest_from_raw, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.download import Span, records_in, spans_of
from mlops_cli.store.pack_format import Record
from mlops_cli.store.pack_index import Place, read_footer
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.parcels import pack_key
from mlops_cli.store.remote_checkup import absent_file, check_bytes
from mlops_cli.store.remote_contents import RemoteContents, Rows, digest_of, is_there, read_names, written
from mlops_cli.store.remote_index import CHUNKED, RemoteIndex, tables_of
from mlops_cli.store.remote_lease import Lease
from mlops_cli.store.remote_sweep import file_of, sweep
from mlops_cli.store.repacker import Repacker
from mlops_cli.store.scratch import Scratch

LITTER = "tmp"
_OURS = re.compile(r"packs/[0-9a-f]{64}\.pack|(objects|recipes)/[0-9a-f]{2}/[0-9a-f]{62}")
_UPLOADS = f"{LITTER}/uploads/"  # uploads in parts that were not ended: `ID/KEY`
_ABANDONED = 24 * 3600.0  # s
_READERS = 4  # spans of packs (up to 16 MiB) at once: twice as many are in memory


class Change(NamedTuple):
    """What is to become of the files that the index names.

    `dead` go; of those in `anew` the rows that are given are copied, then they go; of `reduced` only objects that are
    needed stay in the index. `twins` are needed objects in files that go, each with the place elsewhere where it stays,
    which had better be good. `restored` are rows of the trash that go back into the index.
    """

    dead: frozenset[str] = frozenset()
    anew: Mapping[str, Rows] = {}
    reduced: frozenset[str] = frozenset()
    twins: Mapping[bytes, Place] = {}
    restored: Rows = ()


class Collector:
    """Carries changes out on one remote, under a lease."""

    def __init__(
        self, bucket: Bucket, index: RemoteIndex, trash: RemoteIndex, lease: Lease, reporter: Reporter = SILENT
    ) -> None:
        self._bucket = bucket
        self._index = index
        self._trash = trash
        self._lease = lease
        self._reporter = reporter

    def condemn(
        self,
        contents: RemoteContents,
        change: Change,
        needed: Collection[bytes],
        scratch: Scratch,
        *,
        merge: bool = False,
    ) -> None:
        """Write the index anew, without what is to go or is gone, and put that into the trash; or `merge` it only.

        What is gone may be sent again then.
        """
        copied, bad = self._copy(change.anew, scratch)
        bad |= self._bad_twins(change.twins)
        only, spared = _what_stays_for(bad, contents)
        going = (change.dead | change.anew.keys() | contents.gone) - spared

        def stays(raw: bytes, place: Place, key: str) -> bool:
            if (raw, place.pack) in bad:
                return raw in only
            return key not in going and (key not in change.reduced or raw in needed)

        def rows(staying: bool) -> Iterator[tuple[bytes, Place]]:
            for table in contents.tables:
                yield from (row for row in table.rows() if stays(*row, file_of(*row)) is staying)

        condemned = tables_of(rows(staying=False))
        if not (condemned or copied or change.restored or (merge and len(contents.segments) > 1)):
            return
        self._lease.check()
        if condemned:
            self._trash.add(condemned)
        kept = tables_of(chain(copied, change.restored, rows(staying=True)))
        self._index.replace(contents.segments, kept, self._lease.check)

    def _copy(
        self, anew: Mapping[str, Rows], scratch: Scratch
    ) -> tuple[list[tuple[bytes, Place]], set[tuple[bytes, str]]]:
        """Copy objects into new packs; return where they are now, and which are damaged in which pack."""
        objects = [(digest_from_raw(raw), place) for rows in anew.values() for raw, place in rows]
        copied: list[tuple[bytes, Place]] = []
        bad: set[tuple[bytes, str]] = set()
        if not objects:
            return copied, bad
        repacker = Repacker(scratch.next_path, durable=False)
        self._reporter.start("writing packs anew", sum(place.length for _, place in objects), "bytes")
        try:
            for pack, records in map_bounded(self._read, spans_of(objects), min(_READERS, self._bucket.parallel)):
                for digest, record in records:
                    if isinstance(record, MlxError):
                        bad.add((raw_digest(digest), pack))
                        self._reporter.note(record.message)
                        continue
                    repacker.add(record)
                    self._reporter.advance(record.length)
                    copied += self._put(repacker.full())
            copied += self._put(repacker.seal())
        finally:
            repacker.close()
        return copied, bad

    def _read(self, span: Span) -> tuple[str, list[tuple[Digest, Record | MlxError]]]:
        """Return the pack of a span, and each object in it with its record or with what is wrong with it."""
        try:
            data = self._bucket.get(pack_key(span.pack), span.start, span.end)
        except AbsentKey as error:
            return span.pack, [(digest, absent_file(digest, self._bucket, error.key)) for digest, _ in span.objects]
        return span.pack, list(records_in(data, span, self._bucket.label))

    def _bad_twins(self, twins: Mapping[bytes, Place]) -> set[tuple[bytes, str]]:
        """Return those of the objects whose place is not known to be good, after reading them there."""
        places = {digest_from_raw(raw): place for raw, place in twins.items() if place.pack != CHUNKED}
        bad = {(raw, place.pack) for raw, place in twins.items() if place.pack == CHUNKED}
        for fault in check_bytes(self._bucket, places, min(_READERS, self._bucket.parallel), SILENT):
            bad.add((raw_digest(fault.digest), places[fault.digest].pack))
            self._reporter.note(fault.error.message)
        return bad

    def _put(self, sealed: list[tuple[str, str]]) -> Iterator[tuple[bytes, Place]]:
        for path, name in sealed:
            self._bucket.put_file(pack_key(name), path)
            yield from read_footer(path, name).rows()
            os.unlink(path)

    def delete(self, contents: RemoteContents, keys: Collection[str], before: float) -> set[str]:
        """Delete those files of `keys` that no index names by now, and return them.

        Then nothing in the trash that was condemned before `before` (s) is in question any more.
        """
        deleted = sweep(self._bucket, self._index, keys, self._lease) if keys else set()
        if expired := [condemned.name for condemned in contents.trash if condemned.time < before]:
            self._lease.check()
            self._trash.drop(expired)
        return deleted

    def tidy(self, keys: Collection[str]) -> None:
        """Delete files that are no objects."""
        self._lease.check()
        self._bucket.delete(sorted(keys))


def _what_stays_for(bad: Collection[tuple[bytes, str]], contents: RemoteContents) -> tuple[set[bytes], set[str]]:
    """Return which of the damaged objects are in no other place, and the files that must stay for any of them."""
    raws = {raw for raw, _ in bad}
    others: dict[bytes, set[str]] = {raw: set() for raw in raws}
    same: dict[bytes, set[str]] = {raw: set() for raw in raws}
    for held in contents.files if raws else ():
        for raw, place in held.rows:
            if raw in raws:
                (same if (raw, place.pack) in bad else others)[raw].add(held.key)
    only = {raw for raw in raws if not others[raw]}
    return only, {key for raw in raws for key in (same if raw in only else others)[raw]}


def find_litter(bucket: Bucket, now: float) -> list[str]:
    """Return the temporary files that are older than a day at the time `now` (s).

    Unfinished uploads are told of the whole bucket: those that are not of this remote are somebody else's.
    """
    old = (stored.key for stored in bucket.list(LITTER) if written(stored) < now - _ABANDONED)
    return sorted(key for key in old if _is_ours(key))


def _is_ours(key: str) -> bool:
    goal = key.removeprefix(_UPLOADS).partition("/")[2]
    return not key.startswith(_UPLOADS) or _OURS.fullmatch(goal) is not None


def find_spared(bucket: Bucket, contents: RemoteContents, keys: Collection[str], needed: Collection[bytes]) -> set[str]:
    """Return those of `keys` that no index ever named and that have `needed` objects which none names now.

    An index was lost, or a push was cut short: what they have may be nowhere else.
    """
    condemned = {key for found in contents.trash for key in found.files}
    strays = [contents.listed[key] for key in sorted(keys) if key not in condemned]
    if not strays:
        return set()
    lacking = set(needed)
    for held in contents.files:
        lacking.difference_update(raw for raw, _ in held.rows)
    packs = [stray for stray in strays if stray.key.startswith("packs/")]
    named = {stray.key: digest_of(stray.key) for stray in strays if not stray.key.startswith("packs/")}
    spared = {key for key, digest in named.items() if digest and raw_digest(digest) in lacking}
    found = zip(packs, map_bounded(partial(read_names, bucket), packs, bucket.parallel), strict=True)
    return spared | {pack.key for pack, raws in found if raws is None or not lacking.isdisjoint(raws)}


def find_restored(contents: RemoteContents, needed: Collection[bytes]) -> Rows:
    """Return the rows of the trash that lead to `needed` objects which the index does not name."""
    waiting: dict[bytes, Place] = {}
    for condemned in contents.trash:
        for raw, place in condemned.rows:
            if raw in needed and is_there(contents, raw, place):
                waiting.setdefault(raw, place)
    for held in contents.files if waiting else ():
        for raw, _ in held.rows:
            waiting.pop(raw, None)
    return tuple(waiting.items())


def find_deletable(contents: RemoteContents, before: float, restored: Rows = ()) -> set[str]:
    """Return the files that may go for good: condemned before `before` (s), or in no index and written before that."""
    named = {held.key for held in contents.files} | contents.short | {file_of(*row) for row in restored}
    condemned = {key for found in contents.trash for key in found.files}
    waiting = {key for found in contents.trash if found.time >= before for key in found.files}
    unnamed = {key for key in contents.listed.keys() - condemned if _OURS.fullmatch(key)}
    keys = (condemned - waiting | unnamed) - named
    return {key for key in keys if key in contents.listed and written(contents.listed[key]) < before}
