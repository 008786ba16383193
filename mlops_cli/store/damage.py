"""What can be wrong with a store, as values: damaged objects, and damaged files that hold several or none.

Where they are put away is `quarantine/`, from which nothing is served.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from mlops_cli.hashing import Digest
from mlops_cli.store.sharing import make_folder


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


def quarantine_place(root: str | os.PathLike[str], name: str) -> str:
    """Return an unused path, relative to the store at `root`, for what is damaged; its folder is there by then.

    OSError passes through.
    """
    make_folder(f"{os.fspath(root)}/quarantine", root)
    return f"quarantine/{name}.{os.urandom(4).hex()}"
