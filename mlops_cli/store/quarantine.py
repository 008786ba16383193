"""What was put away because it is damaged: `<store>/quarantine/<64 hex>.<random>`, a pack with `.pack` in its name.

The digits are the digest of the object that was found damaged, or the name of the pack it was in. Nothing is served
from there; what matters is which objects may be gone: a damaged tree is gone with all it named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from mlops_cli.store.contents import read_pack
from mlops_cli.store.pack_folder import SUFFIX
from mlops_cli.store.packed import PackedStore

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
        if SUFFIX in path.rpartition("/")[2]:
            with suppress(FileNotFoundError):
                held = read_pack(path, digits)
                if held is None:
                    unreadable.append(path)
                else:
                    objects.update(raw for raw, _ in held)
    return Lost(frozenset(objects), tuple(unreadable))


def _put_away(folder: str) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        found = _NAME.fullmatch(name)
        if found:
            yield f"{folder}/{name}", found[1]
