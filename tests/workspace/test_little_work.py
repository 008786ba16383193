"""Commands about a part of the data look at that part: what they read, write and list is counted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlops_cli.hashing import Digest
from mlops_cli.store.packed import PackedStore
from mlops_cli.store.trees import Index, decode_tree, find
from mlops_cli.workspace import scan
from mlops_cli.workspace.browse import list_tracked
from mlops_cli.workspace.differences import diff_data, diff_workspace
from mlops_cli.workspace.snapshot import open_snapshot
from tests.objects import stored
from tests.workspace.projects import Sandbox, make_project

MANY = 9000  # files; a folder of so many is cut into leaves


@dataclass(frozen=True, slots=True)
class Seen:
    """What a block of code did: objects read, one by one; folders listed and files stat-ed, below `data`."""

    reads: list[Digest] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    stats: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a project with a large folder, deep ones, and a lone file, all tracked as `data`."""
    project = make_project(tmp_path_factory.mktemp("little") / "repo")
    for number in range(MANY):
        project.write(f"data/flat/{number:05}", f"{number}")
    for letter in "abcdefgh":
        project.write(f"data/deep/{letter}/1/2/3/file", letter)
        project.write(f"data/deep/{letter}/other", letter)
    project.write("data/lone", "lone")
    project.add("data")
    project.commit("first")
    assert isinstance(decode_tree(*tree_at(project, "flat")), Index)
    return project


def tree_at(project: Sandbox, part: str) -> tuple[bytes, Digest]:
    cache = project.project().cache
    (tracked,) = project.snapshot().tracked()
    entry = find(cache, tracked.digest, [os.fsencode(name) for name in part.split("/")])
    assert entry is not None
    return cache.read(entry.digest), entry.digest


@pytest.fixture(autouse=True)
def crew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a crew, whatever threads the tests of some library have left in this process."""
    monkeypatch.setattr(scan, "crew_size", lambda: 2)


@pytest.fixture
def project(made: Sandbox) -> Iterator[Sandbox]:
    """Return the project as it was made; changes to it are taken back."""
    yield made
    made.git("checkout", "--quiet", "main")
    made.git("reset", "--quiet", "--hard")
    made.checkout(force=True)


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch, project: Sandbox) -> Iterator[Seen]:
    seen = Seen()
    read, scandir, stat = PackedStore.read, os.scandir, os.stat
    data = os.fsencode(project.root / "data")

    def note(notes: list[str], path: object) -> None:
        if isinstance(path, str | bytes | Path) and os.fsencode(path).startswith(data):
            notes.append(os.fsdecode(os.fsencode(path)[len(data) + 1 :]))

    def read_noted(store: PackedStore, digest: Digest, **options: int | None) -> bytes:
        seen.reads.append(digest)
        return read(store, digest, **options)

    def scandir_noted(path: str | bytes) -> Iterator[os.DirEntry[bytes]]:
        note(seen.listed, path)
        return scandir(path)

    def stat_noted(path: str, **options: bool) -> os.stat_result:
        note(seen.stats, path)
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PackedStore, "read", read_noted)
        patch.setattr(os, "scandir", scandir_noted)
        patch.setattr(os, "stat", stat_noted)
        yield seen


def listed(project: Sandbox, target: str, *, recursive: bool = False) -> list[str]:
    now = project.project()
    with open_snapshot(now, None) as snapshot:
        return [item.path for item in list_tracked(now.cache, snapshot, target, recursive=recursive)]


def changed(project: Sandbox, *targets: str, old: str = "HEAD", new: str | None = None) -> list[tuple[str, str]]:
    now = project.project()
    with open_snapshot(now, old) as before:
        if new is None:
            found = diff_workspace(now, before, targets)
        else:
            with open_snapshot(now, new) as after:
                found = diff_data(now.cache, before, after, targets)
    return [(change.path, change.change) for change in found]


BELOW_A = ["deep/a", "deep/a/1", "deep/a/1/2", "deep/a/1/2/3"]
# What a command asks of paths that it names: is there a link on the way, is it left out, what is it.
FEW_STATS = 50


def check_little(seen: Seen, *, reads: int, lists: list[str] | None = None, way: bool = False) -> None:
    """See that so much was done; with `way`, that and what leads to the first file that is here as recorded."""
    assert len(seen.reads) <= reads + (5 if way else 0)
    listed = sorted(seen.listed)
    if way:
        assert len(listed) <= len(lists or []) + 12
        assert {*listed} >= {*(lists or [])}
    else:
        assert listed == (lists or [])
    assert len(seen.stats) <= FEW_STATS


@pytest.mark.parametrize(
    ("target", "recursive", "reads", "names"),
    [
        ("data/lone", False, 1, 1),
        ("data/deep/a", False, 3, 2),
        ("data/deep/a", True, 6, 2),
        ("data/flat/00007", False, 3, 1),  # two folders and the leaf that has the name
    ],
)
def test_listing_a_part(
    project: Sandbox, monkeypatch: pytest.MonkeyPatch, target: str, recursive: bool, reads: int, names: int
) -> None:
    with watching(monkeypatch, project) as seen:
        assert len(listed(project, target, recursive=recursive)) == names

    check_little(seen, reads=reads)


@pytest.mark.parametrize(
    ("target", "reads", "lists"),
    [("data/lone", 1, []), ("data/deep/a", 3, BELOW_A), ("data/flat/00007", 3, [])],
)
def test_comparing_a_part_with_the_workspace(
    project: Sandbox, monkeypatch: pytest.MonkeyPatch, target: str, reads: int, lists: list[str]
) -> None:
    with watching(monkeypatch, project) as seen:
        assert changed(project, target) == []
    check_little(seen, reads=reads, lists=lists)

    for path in ("data/lone", "data/deep/a/other", "data/flat/00007"):
        project.write(path, "changed")
    with watching(monkeypatch, project) as seen:
        assert [path for path, _ in changed(project, target)] == [
            path for path in ("data/lone", "data/deep/a/other", "data/flat/00007") if path.startswith(target)
        ]
    check_little(seen, reads=reads, lists=lists)


@pytest.mark.parametrize(
    ("target", "reads", "lists"),
    [("data/lone", 1, []), ("data/deep/a", 5, BELOW_A), ("data/flat/00007", 3, [])],
)
def test_bringing_a_part_back(
    project: Sandbox, monkeypatch: pytest.MonkeyPatch, target: str, reads: int, lists: list[str]
) -> None:
    with watching(monkeypatch, project) as seen:
        assert project.checkout(target).restored == ()
    check_little(seen, reads=reads, lists=lists, way=True)

    for path in ("data/lone", "data/deep/a/other", "data/flat/00007"):
        (project.root / path).unlink()
    with watching(monkeypatch, project) as seen:
        (restored,) = project.checkout(target).restored
    assert restored.added == 1
    check_little(seen, reads=reads, lists=lists, way=True)


@pytest.mark.parametrize(
    ("targets", "reads", "lists", "written"),
    [
        (["data/lone"], 1, [], 1 + 1),  # the file and the one folder above it
        (["data/deep/a/other"], 3, [], 1 + 3),
        (["data/deep/a"], 3, BELOW_A, 1 + 3),
        (["data/flat/00007"], 4, [], 1 + 3),  # a leaf, the index and the folder above
        (["data/flat/00007", "data/flat/00007a"], 5, [], 2 + 3),  # the same leaf
    ],
)
def test_adding_a_part(
    project: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    targets: list[str],
    reads: int,
    lists: list[str],
    written: int,
) -> None:
    for number, path in enumerate(("data/lone", "data/deep/a/other", "data/flat/00007", "data/flat/00007a")):
        project.write(path, f"{targets} {number}")
    before = stored(project.project().cache.root)

    with watching(monkeypatch, project) as seen:
        project.add(*targets)

    check_little(seen, reads=reads, lists=lists, way=True)
    assert len(stored(project.project().cache.root) - before) == written


def test_comparing_and_switching_versions(project: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("data/flat/00007", "another version")
    project.write("data/deep/a/other", "another version")
    project.add("data/flat/00007", "data/deep/a/other")
    project.commit("second")
    expected = [("data/deep/a/other", "modified"), ("data/flat/00007", "modified")]

    with watching(monkeypatch, project) as seen:
        assert changed(project, old="HEAD~1", new="HEAD") == expected
    check_little(seen, reads=2 * 4 + 2)  # four folders and one leaf on each side
    with watching(monkeypatch, project) as seen:
        assert changed(project, "data/deep/a", old="HEAD~1", new="HEAD") == expected[:1]
    check_little(seen, reads=2 * 3)
    project.git("checkout", "--quiet", "HEAD~1")
    with watching(monkeypatch, project) as seen:
        (restored,) = project.checkout().restored
    assert (restored.added, restored.modified, restored.deleted) == (0, 2, 0)
    # Only the old side is read: the new one is what the scan has just built. The record's tree is checked on top.
    assert len(set(seen.reads)) <= 4 + 1
    assert len(seen.stats) <= FEW_STATS
    project.git("checkout", "--quiet", "main")


def test_a_part_is_compared_as_in_the_whole(box: Sandbox) -> None:
    """What a scan of the whole leaves out, or never comes to, a look at the part does not meet either."""
    box.write(".mlxignore", "*.tmp\n/data/skip/\n")
    for path in ("data/a", "data/sub/b", "data/link/c", "data/gone/d", "data/hidden/e"):
        box.write(path, path)
    box.add("data")
    box.commit()
    shutil.rmtree(box.root / "data/link")
    shutil.rmtree(box.root / "data/gone")
    (box.root / "data/link").symlink_to("sub")
    (box.root / "data/hidden/e").rename(box.root / "data/hidden/e.tmp")
    for path in ("data/a", "data/sub/b", "data/sub/new", "data/x.tmp", "data/skip/f", "data/only/x.tmp"):
        box.write(path, "changed")
    (box.root / "data/empty").mkdir()

    whole = changed(box)

    parts = ["a", "sub", "sub/b", "sub/new", "link", "link/c", "link/b", "gone", "gone/d", "hidden", "hidden/e"]
    for part in [*parts, "hidden/e.tmp", "x.tmp", "skip", "skip/f", "only", "only/x.tmp", "empty", "a/b"]:
        path = f"data/{part}"
        expected = [change for change in whole if change[0] == path or change[0].startswith(path + "/")]
        assert changed(box, path) == expected, path
