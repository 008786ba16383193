"""What the tests of collecting share: a far future in which everything is old, and a look at what is left."""

from __future__ import annotations

import time
from typing import Any

from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.workspace.collect import Collected, collect
from tests.workspace.projects import Sandbox

YEAR = 365 * 24 * 3600.0
LARGE = 100_000  # bytes: an object of its own


def later() -> float:
    """Return a time at which all that is there now is older than any grace age."""
    return time.time() + YEAR


def gc(box: Sandbox, **options: Any) -> Collected:
    """Collect in a year from now."""
    return collect(box.project(), now=options.pop("now", later()), reporter=box.heard, **options)


def content(name: str, size: int = 40) -> str:
    """Return a text of its own for each name and size."""
    return (f"{name}\n" * size)[:size].ljust(size, ".")


def add_new(box: Sandbox, path: str, text: str) -> Digest:
    box.write(path, text)
    box.add(path)
    return hash_bytes(text.encode())


def held(box: Sandbox, digest: Digest) -> bool:
    """Say whether the cache has an object, as a new process sees it."""
    return not box.project().cache.missing([digest])


def in_trash(box: Sandbox) -> list[str]:
    root = box.project().cache.root / "trash"
    return sorted(path.name for path in root.rglob("*") if path.is_file())
