"""What was put away because it is damaged: `<store>/quarantine/<64 hex>.<random>`, a pack with `.pack` in its name.

The digits are the digest of the object that was found damaged, or the name of the pack it was in. Nothing is served
from there; what matters is which objects may be gone: a damaged tree is gone with all it named. `peek` is for who wants
to decide about that by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import PREFIX, Digest, hash_bytes
from mlops_cli.store.contents import read_pack
from mlops_cli.store.objects import DamagedObjects, cut
from mlops_cli.store.pack_folder import SUFFIX
from mlops_cli.store.pack_format import FILE_HEADER, RECORD_SIZE, ROW_SIZE, TRAILER_SIZE, PackError, scan_records
from mlops_cli.store.packed import PackedStore
from mlops_cli.store.tree_format import TREE_LIMIT

_NAME = re.compile(r"([0-9a-f]{64})\..+")


class Lost(NamedTuple):
    """The objects that may be gone, as 32-byte digests, and the packs (paths) that had nobody knows which."""

    objects: frozenset[bytes]
    unreadable: tuple[str, ...]


def read_lost(store: PackedStore) -> Lost:
    """Return what a store may have lost to damage; OSError passes through."""
    objects: set[bytes] = set()
    unreadable: list[str] = []
    for path, digits in _put_away(f"{store.root}/quarantine"):
        objects.add(bytes.fromhex(digits))
        if _is_pack(path):
            with suppress(FileNotFoundError):
                held = read_pack(path, digits)
                whole = _scanned(path) if held is None else {raw for raw, _ in held}
                if whole is None:
                    unreadable.append(path)
                else:
                    objects.update(whole)
    return Lost(frozenset(objects), tuple(unreadable))


def find_quarantined(store: PackedStore, digest: Digest) -> str | None:
    """Return where the bytes are that were found in place of an object of its own file, the newest; None when nowhere.

    OSError passes through.
    """
    digits = digest.removeprefix(PREFIX)
    places = [path for path, name in _put_away(f"{store.root}/quarantine") if name == digits and not _is_pack(path)]
    return max(places, key=lambda path: os.lstat(path).st_ctime, default=None)


def _is_pack(path: str) -> bool:
    return SUFFIX in path.rpartition("/")[2]


def _put_away(folder: str) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        found = _NAME.fullmatch(name)
        if found:
            yield f"{folder}/{name}", found[1]


def _scanned(path: str) -> set[bytes] | None:
    """Return the objects of a pack without a good footer, if its records are all there, with room for no more."""
    found: set[bytes] = set()
    count, end = 0, len(FILE_HEADER)
    try:
        data = memoryview(Path(path).read_bytes())
    except OSError:
        return None
    for offset, record in scan_records(data):
        if offset != end:
            return None
        found.add(record.raw)
        count, end = count + 1, offset + RECORD_SIZE + len(record.data)
    return found if len(data) == end + count * ROW_SIZE + TRAILER_SIZE else None


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
