"""Adding again: what is as it was is passed over, unless the cache may have lost some of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mlops_cli.store.batch import Batch
from mlops_cli.store.sources import Stat
from mlops_cli.workspace import collect, reading
from mlops_cli.workspace.state import Clock
from tests.objects import large, lose_all
from tests.workspace.projects import Sandbox, listing, wait_for

pytestmark = pytest.mark.usefixtures("crew")


def settled(box: Sandbox) -> None:
    """Wait until the file system's clock has moved on, so that what was written is no longer too young to be known."""
    newest = max(
        os.lstat(os.path.join(folder, name)).st_ctime_ns
        for folder, _, names in os.walk(box.root / "data")
        for name in names
    )
    wait_for(lambda: Clock.read(box.project().local).is_settled(Stat(0, 0, newest, 0, os.stat(box.root).st_dev)))


class Asked:
    """The files that any process has looked at one by one since the last `clear`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clear()

    def clear(self) -> None:
        self.path.write_bytes(b"")

    def names(self) -> list[str]:
        return sorted(self.path.read_text().split())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    found = Asked(tmp_path / "asked")
    real = reading.FileReader.look_at

    def noting(self: reading.FileReader, place: bytes, *args: object, **options: object) -> object:
        with found.path.open("ab") as stream:
            stream.write(place.rpartition(b"/")[2] + b"\n")
        return real(self, place, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(reading.FileReader, "look_at", noting)
    return found


@pytest.fixture
def stored(box: Sandbox, asked: Asked) -> Sandbox:
    """Return a project with two folders of small files, stored and committed."""
    for number in range(6):
        box.write(f"data/{'ab'[number % 2]}/f{number}", f"content {number}")
    settled(box)
    box.add("data")
    box.commit()
    asked.clear()
    return box


def test_unchanged_folders_are_passed_over(stored: Sandbox, asked: Asked):
    settled(stored)
    stored.write("data/a/new", "new")
    settled(stored)
    stored.add("data")
    assert asked.names() == ["f0", "f2", "f4", "new"]
    asked.clear()
    stored.add("data")
    assert asked.names() == []


def test_what_the_cache_lost_is_stored_again(stored: Sandbox, asked: Asked):
    before = listing(stored.root / "data")
    lose_all(stored.project().cache.root)
    stored.add("data")
    assert len(asked.names()) == 6
    stored.git("clean", "-fdxq", "data")
    stored.checkout()
    assert listing(stored.root / "data") == before


def test_one_lost_pack_is_noticed(stored: Sandbox, asked: Asked):
    before = listing(stored.root / "data")
    stored.write("data/a/later", "another pack")
    settled(stored)
    stored.add("data")
    packs = stored.project().cache.packs
    oldest = min(packs.names(), key=lambda name: os.stat(packs.path_of(name)).st_mtime_ns)
    os.unlink(packs.path_of(oldest))
    asked.clear()
    stored.add("data")
    assert len(asked.names()) == 7
    stored.git("clean", "-fdxq", "data")
    stored.checkout()
    (stored.root / "data/a/later").unlink()
    assert listing(stored.root / "data") == before


def test_what_somebody_else_adds_costs_nothing(stored: Sandbox, asked: Asked):
    """A pack more is no reason to doubt the others."""
    stored.write("other/x", "somebody else's")
    settled(stored)
    stored.add("other")
    asked.clear()
    stored.add("data")
    assert asked.names() == []


def test_files_of_their_own_are_asked_for(stored: Sandbox, asked: Asked):
    """No pack holds a large file: its own is looked at each time, whatever else is known."""
    stored.write("data/a/large", large("x"))
    settled(stored)
    stored.add("data")
    objects = Path(stored.project().cache.root, "objects")
    for shard in objects.iterdir():
        os.utime(shard, (0, 0))  # long ago, as far as its look goes
    stored.add("data")
    asked.clear()
    stored.add("data")
    assert asked.names() == ["f0", "f2", "f4", "large"]
    (loose,) = (path for path in objects.rglob("*") if path.is_file())
    loose.unlink()
    stored.add("data")
    assert loose.exists()


def test_collection_between_two_adds(box: Sandbox, asked: Asked):
    """What was stored, and collected since, is stored again."""
    box.write("data/f", "content")
    settled(box)
    box.add("data")
    (box.root / "data.mlx").unlink()
    collect.collect(box.project(), now=time.time() + 1, grace=0)
    collect.empty_trash(box.project())
    assert not list(box.project().cache.list())
    asked.clear()
    box.add("data")
    assert asked.names() == ["f"]
    box.git("clean", "-fdxq", "data")
    box.checkout()
    assert box.read("data/f") == "content"


def test_batch_that_was_not_published_is_not_believed(box: Sandbox, asked: Asked, monkeypatch: pytest.MonkeyPatch):
    box.write("data/a", "a")
    box.settle("data")

    def broken(self: Batch) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "publish", broken)
        with pytest.raises(OSError, match="gone"):
            box.add("data")
    asked.clear()
    box.add("data")
    assert asked.names() == ["a"]
    box.git("clean", "-fdxq", "data")
    box.checkout()
    assert box.read("data/a") == "a"


def test_folder_that_hides_something_later_keeps_its_files(box: Sandbox):
    """A folder that the index knows as a whole, and in which a left-out folder appears, is still there."""
    for name in ("data/sub/x", "data/y"):
        box.write(name, name)
    settled(box)
    box.add("data")
    assert box.clean()
    box.write("data/sub/.mlx-tmp-1-x/half", "half-written")
    assert box.clean()
