"""Copying a set of objects from one store to another.

Only what the target lacks is moved. What was moved stays, even when the rest fails; failures are told once, at the end.
Which objects a command wants is decided above.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import Digest
from mlops_cli.progress import Reporter
from mlops_cli.store.objects import DamagedObjects, ObjectStore


@dataclass(frozen=True, slots=True)
class Transferred:
    """What a transfer moved: how many objects, how many bytes."""

    objects: int
    bytes: int


def copy_objects(
    digests: Iterable[Digest], source: ObjectStore, target: ObjectStore, *, jobs: int, reporter: Reporter
) -> Transferred:
    """Make every object of `digests` present in `target`, verified and durable, in the given order where it matters.

    `jobs` 0 lets the stores choose. One MissingObject names what `source` lacks; one CorruptObject what is damaged
    there (the cache has moved such an object to quarantine by then) or was damaged on the way. The rest is copied. The
    reporter advances by bytes; starting it is the caller's.
    """
    wanted = list(dict.fromkeys(digests))
    lacking = target.missing(wanted)
    chosen = [digest for digest in wanted if digest in lacking]
    if not chosen:
        return Transferred(0, 0)
    try:
        size = target.write(
            ((digest, partial(source.open, digest)) for digest in chosen),
            reporter=reporter,
            jobs=jobs or max(source.parallel, target.parallel),
        )
    except DamagedObjects as error:
        raise _blame(error, source) from error
    return Transferred(len(chosen), size)


def _blame(error: DamagedObjects, source: ObjectStore) -> DamagedObjects:
    """Find out whether the source's own bytes are wrong; its error says more than what the target saw."""
    found: DamagedObjects | None = None
    for digest in error.digests:
        try:
            source.check(digest)
        except CorruptObject as its:
            found = found or (its if isinstance(its, DamagedObjects) else None)
    if found is None:
        return error
    if len(error.digests) == 1:
        return found
    message = f"{len(error.digests)} objects from {source.label} are damaged; the first: {found.message}"
    return DamagedObjects(error.digests, message, hint=found.hint)
