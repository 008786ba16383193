"""A transfer tells how many bytes it is as soon as that is known, and comes to exactly so many."""

from __future__ import annotations

import os
import random
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlops_cli.cli import bars
from mlops_cli.progress import Silent
from mlops_cli.store import url_cache
from mlops_cli.store.checkup import Scope
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.getting import get_data
from mlops_cli.workspace.importing import Manner, import_data
from mlops_cli.workspace.integrity import examine
from mlops_cli.workspace.origins import RepoOrigin
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.transfers import Fetching, Pushing, Trust
from mlops_cli.workspace.versions import Versions
from tests.objects import lose
from tests.workspace.projects import Sandbox, clone

BIG = random.Random(11).randbytes(17 << 20)  # large enough for chunks


@dataclass(slots=True)
class Work:
    label: str
    total: int | None
    done: int = 0


@dataclass(slots=True)
class Told(Silent):
    """Keeps every piece of work in order, with what was expected of it and what it came to."""

    works: list[Work] = field(default_factory=list)

    def start(self, label: str, total: int | None, unit: str) -> None:
        self.works.append(Work(label, total))

    def advance(self, amount: int) -> None:
        work = self.works[-1]
        work.done += amount
        assert amount >= 0
        assert work.total is None or work.done <= work.total, f"more than all of it: {work}"

    def last(self, label: str) -> Work:
        return [work for work in self.works if work.label == label][-1]


def fetched(box: Sandbox, *targets: str, versions: Versions | None = None) -> Work:
    """Fetch, and return how the part that is not listings went."""
    told = Told()
    how = Fetching(reporter=told)
    fetch(box.project(), targets, how if versions is None else how._replace(versions=versions))
    listings = told.works[0]
    assert (listings.label, listings.total) == ("fetching listings", None)
    return told.last("fetching")


@pytest.fixture
def shared(box: Sandbox) -> Sandbox:
    """Return a project with a remote, and a folder in which equal files and equal folders are."""
    box.remote()
    for name in ("a", "b", "same/b", "sub/c", "sub/deep/d", "again/c", "again/deep/d"):
        box.write(f"data/{name}", f"content of {name.rpartition('/')[2]}" * 100)
    box.write("lone", "lone")
    box.add("data", "lone")
    box.commit()
    return box


@pytest.fixture
def other(shared: Sandbox, tmp_path: Path) -> Sandbox:
    """Return a fresh clone, the data being on the remote."""
    push(shared.project())
    return clone(shared, tmp_path / "clone")


ONE = len("content of a") * 100  # bytes of each file of `data`; there are four different ones


def test_the_first_fetch_is_told_in_full(other: Sandbox) -> None:
    work = fetched(other)
    assert work.total == work.done == 4 * ONE + len("lone")


def test_only_what_is_lacking_counts(other: Sandbox) -> None:
    assert fetched(other, "data/sub").total == 2 * ONE
    work = fetched(other)
    assert work.total == work.done == 2 * ONE + len("lone")


def test_all_branches_are_one_total(shared: Sandbox, other: Sandbox) -> None:
    shared.git("switch", "--quiet", "-c", "more")
    shared.write("data/new", "content of e" * 100)
    shared.add("data/new")
    shared.commit()
    push(shared.project())
    other.git("fetch", "--quiet", "origin", "more:more")
    work = fetched(other, versions=Versions(branches=True))
    assert work.total == work.done == 5 * ONE + len("lone")


def test_chunks_that_are_here_count_like_those_that_come(box: Sandbox, tmp_path: Path) -> None:
    box.remote()
    box.write("big", BIG)
    box.add("big")
    box.commit()
    push(box.project())
    other = clone(box, tmp_path / "clone")
    assert fetched(other).done == len(BIG)
    box.write("big", BIG[: 9 << 20] + b"one more" + BIG[9 << 20 :])
    box.add("big")
    box.commit()
    told = Told()
    push(box.project(), how=Pushing(reporter=told))
    assert told.last("pushing").total == told.last("pushing").done == len(BIG) + 8
    other.git("pull", "--quiet")
    work = fetched(other)
    assert work.total == work.done == len(BIG) + 8


def test_a_cache_behind_a_url_is_there_when_all_is_stored(other: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_cache, "ROUND", ONE)  # one file at a time
    other.configure("cache.dir", "file://../far")
    told = Told()
    fetch(other.project(), how=Fetching(reporter=told))
    work = told.last("fetching")
    assert work.total is not None
    assert work.total > 4 * ONE + len("lone")  # the listings are stored too
    assert work.done in (work.total, work.total - 1)  # half a byte may be over


@pytest.mark.parametrize(("path", "size"), [("data", 4 * ONE), ("data/sub", 2 * ONE), ("lone", 4)])
def test_importing_and_getting(path: str, size: int, shared: Sandbox, other: Sandbox, tmp_path: Path) -> None:
    del shared
    other.write("mine", "mine")
    origin = RepoOrigin((tmp_path / "project").as_uri(), path)
    for work in (
        lambda told: import_data(other.project(), origin, "theirs", Manner(reporter=told)),
        lambda told: get_data(origin, tmp_path / "got", reporter=told),
    ):
        told = Told()
        work(told)
        assert told.last("importing").total == told.last("importing").done == size


def test_a_repair_reads_and_sends_what_it_says(shared: Sandbox) -> None:
    push(shared.project(), ["data"])
    told = Told()
    push(shared.project(), how=Pushing(trust=Trust.NOTHING, reporter=told))
    verifying = told.last("verifying")
    assert verifying.total == verifying.done
    assert verifying.total is not None
    assert verifying.total > 4 * ONE  # `lone` was never there, and is not read
    assert told.last("pushing").total == told.last("pushing").done == len("lone")


def test_a_repair_of_the_cache_says_how_much_comes(shared: Sandbox) -> None:
    push(shared.project())
    project = shared.project()
    lose(project.cache, next(entry.digest for entry in shared.snapshot().tracked() if entry.path == "lone"))
    told = Told()
    examine(project, Scope(), repair=True, reporter=told)
    assert told.last("fetching").total == told.last("fetching").done == len("lone")


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Let standard error be a terminal for the length of the block; yields what reads all that it was sent."""
    master, slave = os.openpty()
    with open(slave, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)

        def read() -> str:
            stream.flush()
            text = b""
            while select.select([master], [], [], 0)[0]:
                text += os.read(master, 1 << 16)
            return text.decode()

        try:
            yield read
        finally:
            monkeypatch.undo()
            os.close(master)


def test_the_bar_of_a_first_fetch_has_an_end(other: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "_DRAW_AFTER_SECONDS", 0.0)
    with terminal(monkeypatch) as read:
        reporter = bars.TerminalReporter(print, silent=False, color=False)
        fetch(other.project(), how=Fetching(reporter=reporter))
        reporter.close()
        shown = read()
    assert "fetching listings" in shown
    assert "4.8/4.8 kB" in shown
