"""Reading packs and the segments of their index to find what is damaged in them.

A pack is read to its end and judged by its own bytes. Its good objects move to a new one before the old file goes to
`quarantine/`; nothing is deleted but segments, which say nothing that the packs do not.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from mlops_cli.hashing import PREFIX, Digest, digest_from_raw, hash_bytes, hash_descriptor
from mlops_cli.store.damage import DamagedFile, DamagedObject, Findings, quarantine_place
from mlops_cli.store.loose import READ_FLAGS
from mlops_cli.store.objects import Durability, cut
from mlops_cli.store.pack_folder import SEGMENT_SUFFIX, SUFFIX, OpenFile
from mlops_cli.store.pack_format import FILE_HEADER, LARGEST_PACK, RECORD_SIZE, PackError, find_footer, scan_records
from mlops_cli.store.pack_index import Table, footer_table
from mlops_cli.store.pack_segment import read_segment
from mlops_cli.store.pack_writer import unpacked
from mlops_cli.store.packed import PackedStore


def check_pack(store: PackedStore, name: str, *, dry_run: bool) -> Findings:
    """Read a pack; what is damaged in it is put away, unless `dry_run`."""
    file = f"packs/{name}{SUFFIX}"
    try:
        data = _read(store.packs.path_of(name))
    except FileNotFoundError:  # gathered into another one meanwhile, which was read for it
        return Findings()
    except OSError as error:
        return Findings(files=(DamagedFile(file, (error.strerror or str(error)).lower(), rebuilt=False),))
    except PackError as error:
        return Findings(files=(DamagedFile(file, str(error), rebuilt=False),))
    count, size, bad = _check_records(store, name, data)
    why = _fault(name, data, bad)
    if not why:
        return Findings(count, size)
    target = None if dry_run else _replace(store, name, set(bad))
    damaged = tuple(DamagedObject(digest, reason, target or None) for digest, reason in bad.items())
    return Findings(count, size, damaged, (DamagedFile(file, why, rebuilt=target is not None),))


def _read(path: str) -> bytes:
    """Return the bytes of a pack, read and not mapped: a disk that fails is an error then, and no signal."""
    descriptor = os.open(path, READ_FLAGS | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if os.fstat(descriptor).st_size > LARGEST_PACK:
            raise PackError("it is larger than a pack can be")
        return stream.read()


def _check_records(store: PackedStore, name: str, data: bytes) -> tuple[int, int, dict[Digest, str]]:
    """Return the number and the bytes of a pack's records, and the damaged ones, as far as any table knows of them."""
    good: set[Digest] = set()
    bad: dict[Digest, str] = {}
    count = size = 0
    for _, record in scan_records(memoryview(data)):
        digest = digest_from_raw(record.raw)
        count, size = count + 1, size + record.length
        try:
            found = hash_bytes(unpacked(record))
        except PackError as error:
            bad[digest] = str(error)
            continue
        if found == digest:
            good.add(digest)
        else:
            bad[digest] = f"its bytes hash to `{cut(found)}`"
    for digest in _listed_in(store, name, data):
        if digest not in good and digest not in bad:
            bad[digest] = "its record is not what was written"
    return count, size, {digest: why for digest, why in bad.items() if digest not in good}


def _listed_in(store: PackedStore, name: str, data: bytes) -> Collection[Digest]:
    """Return the objects that a pack should hold: by its footer if that is whole, else by the index."""
    try:
        return [digest_from_raw(raw) for raw, _ in footer_table(data, name, whole=True).rows()]
    except PackError:
        known = (row for table in _segments(store) for row in table.rows())
        return [digest_from_raw(raw) for raw, place in known if place.pack == name]


def _segments(store: PackedStore) -> Iterator[Table]:
    for file in _segment_files(store):
        with suppress(PackError, FileNotFoundError):
            segment = read_segment(OpenFile(f"{store.packs.index}/{file}"))
            segment.verify()
            yield segment


def _replace(store: PackedStore, name: str, bad: Collection[Digest]) -> str | None:
    """Put the good objects of a pack into a new one; returns where the old file is (empty: another process did it).

    None when it could not be.
    """
    packs = store.packs
    try:
        target = quarantine_place(store.root, name + SUFFIX)
        with store.scratch() as scratch, packs.replacing(wait=True):
            if name not in packs.names():
                return ""
            packs.rewrite(
                [name],
                scratch.next_path,
                durable=store.durability is not Durability.NONE,
                keep=lambda digest: digest not in bad,
                dispose=lambda path: os.rename(path, f"{store.root}/{target}"),
            )
    except OSError:
        return None
    return target


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


def check_segments(store: PackedStore, *, dry_run: bool) -> tuple[DamagedFile, ...]:
    """Read the index of a store's packs; damaged segments are made anew, unless `dry_run`."""
    found = {file: why for file in _segment_files(store) if (why := _segment_fault(store, file))}
    rebuilt = bool(found) and not dry_run and _reindex(store, found)
    return tuple(DamagedFile(f"index/{file}", why, rebuilt) for file, why in found.items())


def _segment_files(store: PackedStore) -> list[str]:
    try:
        return sorted(file for file in os.listdir(store.packs.index) if file.endswith(SEGMENT_SUFFIX))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _segment_fault(store: PackedStore, file: str) -> str | None:
    try:
        opened = OpenFile(f"{store.packs.index}/{file}")
        read_segment(opened).verify()
        found = hash_descriptor(opened.descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except PackError as error:
        return str(error)
    named = file.removesuffix(SEGMENT_SUFFIX)
    return None if found == f"{PREFIX}{named}" else "it is not what was written"


def _reindex(store: PackedStore, files: Collection[str]) -> bool:
    packs = store.packs
    try:
        with store.scratch() as scratch, packs.replacing(wait=True):
            for file in files:
                with suppress(FileNotFoundError):
                    os.unlink(f"{packs.index}/{file}")
            packs.look_again()
            if packs.names():
                packs.reindex(scratch.next_path)
    except OSError:
        return False
    return True
