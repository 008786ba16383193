"""What a merge is made of: a base, and two sides that came from it.

The one idea: what only one side changed is that side's, and what both made alike is that. `ours` and `theirs` are Git's
words, and in a rebase they are not who one thinks: `unmerged` says who is meant.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Side(StrEnum):
    """One of the two versions that are merged."""

    OURS = "ours"
    THEIRS = "theirs"


class Sides(NamedTuple, Generic[T]):
    """What something was, and what each side made of it; None where it is not."""

    base: T | None
    ours: T | None
    theirs: T | None

    def of(self, side: Side) -> T | None:
        """Return what it is on one side."""
        return self.ours if side is Side.OURS else self.theirs

    def settled(self) -> Side | None:
        """Return the side that is the merge of both, or None when both made something else of it."""
        if self.ours == self.theirs or self.theirs == self.base:
            return Side.OURS
        return Side.THEIRS if self.ours == self.base else None


class Clash(NamedTuple):
    """A project path that both sides changed in ways that do not go together, and how."""

    path: str
    what: str


class Outcome(NamedTuple):
    """What two versions of a file come to: its bytes (None: it goes), unless there are clashes.

    `side` is whose version that is; None when it is made of both. `note` is what one should know.
    """

    data: bytes | None
    side: Side | None = None
    clashes: tuple[Clash, ...] = ()
    note: str = ""
