"""What can be wrong with a store, as values: damaged objects, and damaged files that hold several or none."""

from __future__ import annotations

from dataclasses import dataclass

from mlops_cli.hashing import Digest


@dataclass(frozen=True, slots=True)
class DamagedObject:
    """An object whose bytes are not its own, and where they were moved (relative to the store; None: not moved)."""

    digest: Digest
    why: str
    moved: str | None


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A pack, a segment or a run record that is not as it was written (relative to the store).

    `rebuilt` says that what is good in it was kept: of a segment or a run record, which can be made again, nothing.
    """

    file: str
    why: str
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What reading a part of a store found: so many objects with so many bytes, and what is damaged."""

    objects: int = 0
    bytes: int = 0
    damaged: tuple[DamagedObject, ...] = ()
    files: tuple[DamagedFile, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        """Return both together."""
        return Findings(
            self.objects + other.objects,
            self.bytes + other.bytes,
            self.damaged + other.damaged,
            self.files + other.files,
        )
