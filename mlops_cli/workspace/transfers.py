"""What transfers are asked for, and what they came to: with one remote, and with all that a command had to do with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from mlops_cli.progress import SILENT, Reporter
from mlops_cli.workspace.reach import NOTHING_UNLISTED, Unlisted
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.versions import THE_WORKSPACE, Versions


class Fetching(NamedTuple):
    """How to fetch: data of which `versions`, from which `remote` (None: where it belongs), how many things at once."""

    versions: Versions = THE_WORKSPACE
    remote: str | None = None
    jobs: int = 0
    dry_run: bool = False
    reporter: Reporter = SILENT


PLAINLY = Fetching()


class Trust(Enum):
    """What a push believes of what is on a remote already: its index, the names and sizes of its files, or nothing."""

    INDEX = "index"
    FILES = "files"
    NOTHING = "nothing"


class Runs(Enum):
    """Which run records a push sends: those of the locks of what it pushes, all that stages could use, or none."""

    CURRENT = "current"
    ALL = "all"
    NONE = "none"


class Pushing(NamedTuple):
    """How to push: data of which `versions`, to which `remote` (None: where it belongs), how many things at once.

    What a remote lacks, its index tells; `trust` says whether that is believed. `runs` are the run records that go too.
    """

    versions: Versions = THE_WORKSPACE
    remote: str | None = None
    jobs: int = 0
    dry_run: bool = False
    trust: Trust = Trust.INDEX
    reporter: Reporter = SILENT
    runs: Runs = Runs.CURRENT


class Lacking(NamedTuple):
    """A tracked path of which a remote lacks something: how many objects, and their bytes as far as they are known."""

    path: str
    objects: int
    size: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What was (or, in a dry run, would be) transferred to or from one remote.

    `size` in bytes is None when only a transfer would tell it. `requests` is how often the remote was asked for
    something, `transferred` how many bytes went to it and came from it; `repaired` how many objects its index named
    that it did not have as they were written.
    `unread` are tracked paths with a folder whose listing only the remote has: what it lists was not looked for there.
    `unlisted` is what a dry run cannot count among the objects, and `known` their bytes as far as they are known.
    `remedies` say what stores again what the cache behind a URL has lost, where it was to be repaired. `runs` is how
    many run records went.
    """

    name: str
    url: str
    paths: tuple[str, ...]
    objects: int = 0
    size: int | None = 0
    requests: int = 0
    transferred: int = 0
    repaired: int = 0
    unread: tuple[str, ...] = ()
    unlisted: Unlisted = NOTHING_UNLISTED
    known: int = 0
    remedies: tuple[str, ...] = ()
    runs: int = 0

    def plus(self, other: Moved) -> Moved:
        """Return what two fetches from the same remote came to."""
        return replace(
            self,
            paths=(*self.paths, *other.paths),
            objects=self.objects + other.objects,
            size=None if self.size is None or other.size is None else self.size + other.size,
            requests=self.requests + other.requests,
            transferred=self.transferred + other.transferred,
        )


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What was transferred with each remote; `left` are tracked paths that belong to others than the one asked for."""

    remotes: tuple[Moved, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def remote(self) -> str:
        """The name of the remote, empty when there were none or several."""
        return self.remotes[0].name if len(self.remotes) == 1 else ""

    @property
    def url(self) -> str:
        """The URL of the remote, empty when there were none or several."""
        return self.remotes[0].url if len(self.remotes) == 1 else ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The tracked paths that were meant, sorted."""
        return tuple(sorted({path for each in self.remotes for path in each.paths}))

    @property
    def objects(self) -> int:
        """The number of objects, one that went to two remotes counted twice."""
        return sum(each.objects for each in self.remotes)

    @property
    def size(self) -> int | None:
        """The bytes of the objects; None when only a transfer would tell."""
        sizes = [each.size for each in self.remotes]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def requests(self) -> int:
        """How often remotes were asked for something."""
        return sum(each.requests for each in self.remotes)

    @property
    def transferred(self) -> int:
        """How many bytes went to remotes and came from them."""
        return sum(each.transferred for each in self.remotes)

    @property
    def repaired(self) -> int:
        """How many objects were named by an index and not there as they were written."""
        return sum(each.repaired for each in self.remotes)

    @property
    def runs(self) -> int:
        """How many run records went."""
        return sum(each.runs for each in self.remotes)

    @property
    def unread(self) -> tuple[str, ...]:
        """Tracked paths with a folder whose listing only a remote has."""
        return tuple(path for each in self.remotes for path in each.unread)

    @property
    def unlisted(self) -> Unlisted:
        """What a dry run cannot count among the objects."""
        below = (NOTHING_UNLISTED, *(each.unlisted for each in self.remotes))
        return Unlisted(*(sum(column) for column in zip(*below, strict=True)))

    @property
    def known(self) -> int:
        """The bytes of the objects, as far as they are known."""
        return sum(each.known for each in self.remotes)


def paths_of(chosen: Iterable[tuple[Tracked, str]]) -> tuple[str, ...]:
    """Return the tracked paths of some that are chosen, sorted."""
    return tuple(sorted({entry.path for entry, _ in chosen}))
