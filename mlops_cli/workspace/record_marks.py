"""What records need: each is read once, from its bytes alone, and the objects that it names are marked.

What cannot be read might name anything, so it is an error, never a gap: only `salvage` passes over it, and keeps every
digest that its bytes spell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from mlops_cli.errors import RecordError
from mlops_cli.hashing import Digest, hash_bytes, parse_digest, raw_digest
from mlops_cli.records.locks import Input, OutputRecord
from mlops_cli.records.pointers import ObjectKind, is_meant, read_pointer
from mlops_cli.workspace.marks import Doubts, Marks
from mlops_cli.workspace.run_records import read_run_record

_DIGEST = re.compile(rb"blake3:[0-9a-f]{64}(?![0-9a-f])")
_CONFLICT = re.compile(rb"^<{7} ", re.MULTILINE)
_Roots = list[tuple[Digest, bool | None]]


class Source(StrEnum):
    """Where a record was found."""

    HISTORY = "history"
    INDEX = "index"
    WORKSPACE = "workspace"
    JOURNAL = "journal"
    RUNS = "runs"


@dataclass(slots=True)
class Needed:
    """The objects that must stay, as 32-byte digests; `records` counts, per source, the records that were read.

    `locks` are digests of whole lock records, to recognise run records.
    """

    objects: set[bytes]
    records: Counter[Source] = field(default_factory=Counter)
    locks: set[bytes] = field(default_factory=set)


class RecordMarks:
    """Marks what records name, and counts them in `needed`; what was read once is not read twice."""

    def __init__(self, marks: Marks, doubts: Doubts) -> None:
        self.needed = Needed(marks.objects)
        self._marks = marks
        self._doubts = doubts
        self._read: set[tuple[str, bytes]] = set()

    def take(self, source: Source, name: str, data: bytes, *, is_lock: bool) -> None:
        """Keep what one record names; `name` is for messages, and not that of a file, which need not fit it here."""
        if not data and source is not Source.WORKSPACE:
            return  # in the index, a file that is to be added later; in the workspace, one that was cut short
        kind = "run" if source is Source.RUNS else "lock" if is_lock else "pointer"
        if not self._is_new(kind, data):
            return
        if is_lock:
            self.needed.locks.add(_mark(data))
        elif data and not is_meant(data) and not _DIGEST.search(data):
            return  # another program's file
        self.needed.records[source] += 1
        try:
            roots, promised = _in_lock(data, name) if is_lock else _in_pointer(data, name)
        except RecordError as error:
            if not (source is Source.RUNS or self._doubts.salvage or _CONFLICT.search(data)):
                self._read.discard((kind, _mark(data)))  # so that it is an error the next time, too
                raise RecordError(
                    f"nobody can tell what a record needs: {error.message}",
                    hint="nothing was collected; mend it, or `--salvage` keeps what it spells and goes on",
                ) from error
            self.take_spelled(data, name)
            return
        self._marks.mark(roots, name, optional=source is Source.RUNS, promised=promised)

    def take_journal(self, roots: Iterable[tuple[Digest, bool | None]], name: str, data: bytes) -> None:
        """Keep what the journal of a run, `data`, names: its `roots`."""
        self.needed.records[Source.JOURNAL] += self._is_new("journal", data)
        self._marks.mark(roots, name)

    def take_spelled(self, data: bytes, name: str) -> None:
        """Keep every digest that is spelled in what cannot be read."""
        self._marks.mark([(parse_digest(found.decode()), None) for found in _DIGEST.findall(data)], name)

    def is_lock(self, data: bytes) -> bool:
        """Say whether these are the bytes of a lock that was taken."""
        return _mark(data) in self.needed.locks

    def _is_new(self, kind: str, data: bytes) -> bool:
        key = (kind, _mark(data))
        if key in self._read:
            return False
        self._read.add(key)
        return True


def _in_pointer(data: bytes, name: str) -> tuple[_Roots, set[Digest]]:
    """Return what a pointer needs, and what of that remotes are to have."""
    pointer = read_pointer(data, name)
    return [(pointer.digest, pointer.kind is ObjectKind.TREE)], {pointer.digest}


def _in_lock(data: bytes, name: str) -> tuple[_Roots, set[Digest]]:
    """Return what a lock needs, and what of that remotes are to have: a dependency may be in no store at all."""
    lock = read_run_record(data, name)
    entries: list[Input | OutputRecord] = [*lock.deps, *lock.started_from, *lock.outs]
    roots: _Roots = [(entry.digest, entry.kind is ObjectKind.TREE) for entry in entries]
    return roots, {entry.digest for entry in lock.outs if entry.push and not entry.git}


def _mark(data: bytes) -> bytes:
    return raw_digest(hash_bytes(data))
