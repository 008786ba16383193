"""What every store of objects can do, and how its failures are told.

`ObjectStore` is the seam between the engine and the places bytes live in: verbs over many digests at once, so that a
store may group objects as it likes. Bytes are verified on the way in, and `write` publishes only what is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import BinaryIO, Protocol

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.tree_format import TREE_LIMIT

NAMED_IN_MESSAGE = 3

Opener = Callable[[], BinaryIO]


class Durability(StrEnum):
    """What survives a power cut: `batch` and `strict` all that was published, `none` what the system happened to write.

    `batch` syncs the file system once for many objects; `strict` syncs each file, for systems where that one sync does
    not report every failure (Linux before 5.8, some network file systems).
    """

    BATCH = "batch"
    STRICT = "strict"
    NONE = "none"


class AbsentObjects(MissingObject):
    """Objects that a store does not hold; `digests` says which, `where` what the store is called."""

    def __init__(self, digests: Sequence[Digest], where: str, *, hint: str | None = None) -> None:
        super().__init__(f"{_named(digests)} not in {where}", hint=hint)
        self.digests = tuple(digests)
        self.where = where


class DamagedObjects(CorruptObject):
    """Objects whose bytes do not hash to their digest; `digests` says which."""

    def __init__(self, digests: Sequence[Digest], message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.digests = tuple(digests)


class ObjectStore(Protocol):
    """A set of objects, and the run cache beside it.

    `label` is what messages call the store ("the cache", "remote `storage`"); `parallel` how many objects in flight at
    once pay off here.
    """

    @property
    def label(self) -> str: ...

    @property
    def parallel(self) -> int: ...

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not here; what is here is not read."""

    def read(self, digest: Digest, *, limit: int | None = TREE_LIMIT) -> bytes:
        """Return an object's bytes, verified; MissingObject or CorruptObject.

        CorruptObject, before it is in memory, for one of more than `limit` bytes: what is asked for whole is a tree or
        a link's target, unless the caller says otherwise.
        """

    def open(self, digest: Digest) -> BinaryIO:
        """Return a stream of an object's bytes, NOT verified; MissingObject."""

    def check(self, digest: Digest) -> None:
        """Read an object to its end; MissingObject or CorruptObject unless its bytes hash to `digest`."""

    def write(self, objects: Iterable[tuple[Digest, Opener]], *, reporter: Reporter = SILENT, jobs: int = 0) -> int:
        """Store objects and return how many bytes came in; each is durable and visible when this returns.

        Bytes are hashed in flight and never visible before they are found right. An object whose bytes are wrong, or
        whose opener raises MissingObject or CorruptObject, is left out while the others are written; then one
        DamagedObjects or AbsentObjects names them all. `jobs` 0 means `parallel`. The reporter
        advances by bytes; starting it is the caller's.
        """

    def list(self) -> Iterator[Digest]:
        """Yield every digest here, in no order."""

    def delete(self, digests: Iterable[Digest]) -> None:
        """Remove objects; those that are not here already are no error."""

    def read_run(self, key: str) -> bytes | None:
        """Return the run record stored under a fingerprint, or None."""

    def write_run(self, key: str, data: bytes) -> None:
        """Store a run record under its fingerprint, replacing what was there."""

    def list_runs(self) -> Iterator[str]:
        """Yield the fingerprints that have a run record."""


class Failures:
    """The objects a `write` left out, raised as one error at its end."""

    def __init__(self) -> None:
        self._absent: dict[Digest, MissingObject] = {}
        self._damaged: dict[Digest, CorruptObject] = {}

    def add(self, digest: Digest, error: MissingObject | CorruptObject) -> None:
        """Remember one object and why."""
        if isinstance(error, MissingObject):
            self._absent[digest] = error
        else:
            self._damaged[digest] = error

    @property
    def any(self) -> bool:
        """Whether there was one."""
        return bool(self._absent or self._damaged)

    def raise_any(self) -> None:
        """Raise DamagedObjects if any was damaged, else AbsentObjects if any was absent."""
        if self._damaged:
            damaged = next(iter(self._damaged.values()))
            message = damaged.message if len(self._damaged) == 1 else f"{_named(list(self._damaged))} damaged"
            raise DamagedObjects(list(self._damaged), message, hint=damaged.marked_hint) from damaged
        if self._absent:
            absent = next(iter(self._absent.values()))
            where = absent.where if isinstance(absent, AbsentObjects) else "the store they were to be copied from"
            raise AbsentObjects(list(self._absent), where, hint=absent.marked_hint) from absent


def cut(digest: Digest) -> str:
    """Return the start of a digest, enough to tell objects apart where people read it."""
    return digest[: len("blake3:") + 12]


def too_large(digest: Digest, limit: int) -> CorruptObject:
    """The error for an object that is larger than what it is asked for as can be."""
    message = f"object `{cut(digest)}` is no tree and no link: it has more than {limit:,} bytes"
    return CorruptObject(message, hint="the record that names it is wrong; `git log` tells who wrote it")


def damaged_in_flight(digest: Digest, found: Digest) -> DamagedObjects:
    """The error for bytes that arrived under a digest that is not theirs."""
    message = f"the bytes that came for object `{cut(digest)}` are not its own: they hash to `{cut(found)}`"
    return DamagedObjects(
        [digest], message, hint="run the command again; if it stays so, `mlx push` from a clone that has good bytes"
    )


def _named(digests: Sequence[Digest]) -> str:
    if len(digests) == 1:
        return f"object `{cut(digests[0])}` is"
    listed = ", ".join(f"`{cut(digest)}`" for digest in digests[:NAMED_IN_MESSAGE])
    more = ", …" if len(digests) > NAMED_IN_MESSAGE else ""
    return f"{len(digests)} objects ({listed}{more}) are"
