"""What may go wrong only since several processes read and write, or since folders appear as a whole."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from mlops_cli.hashing import MANY_THREADS_FROM, hash_file
from mlops_cli.store import batch as batches
from tests.workspace.projects import Sandbox, listing, wait_for

pytestmark = pytest.mark.usefixtures("crew")


def test_large_files_are_hashed_by_workers_too(box: Sandbox):
    """The hashing library has threads of its own, which a copy of this process does not have."""
    large = box.write("large", os.urandom(MANY_THREADS_FROM))
    hash_file(large)
    box.configure("cache.link", "hardlink")
    shutil.copy(large, box.root / "another")
    for number in range(4):
        box.write(f"data/{number}", os.urandom(MANY_THREADS_FROM + number))

    def give_up(*_: object) -> None:
        raise AssertionError("a worker does not come back")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        box.add("data")
        (box.project().local / "state.db").unlink()
        assert box.clean()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_interrupted_checkout_leaves_nothing_half_done(box: Sandbox, crew: str, monkeypatch: pytest.MonkeyPatch):
    for number in range(5):
        box.write(f"data/a/f{number}", f"content {number}")
    box.add("data")
    before = listing(box.root / "data")
    shutil.rmtree(box.root / "data")
    real = os.open

    def interrupted(path: str, flags: int, *args: int, **options: int) -> int:
        if path == "f3":
            real(path, flags, *args, **options)
            raise KeyboardInterrupt
        return real(path, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            box.checkout()
    assert not (box.root / "data/a").exists()
    assert not list(box.root.rglob(".mlx-tmp-*"))
    box.checkout()
    assert listing(box.root / "data") == before
    assert crew


def test_leftovers_beside_what_is_tracked_are_removed(box: Sandbox):
    """A new folder is filled beside its place, which is where no scan of tracked data looks."""
    box.write("flat/f", "content")
    box.add("flat")
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    box.write(f".mlx-tmp-{gone}-abc-0/f", "half")
    box.write(f".mlx-tmp-{os.getppid()}-abc-0/f", "being written")
    box.checkout()
    assert sorted(path.name for path in box.root.glob(".mlx-tmp-*")) == [f".mlx-tmp-{os.getppid()}-abc-0"]


def test_file_that_was_swapped_while_it_was_read_is_not_known(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    """What was looked at and what was read are two files: the digest of one must not be taken for the other's."""
    box.write("data/a/f", "AAAA")
    box.write("other/f", "BBBB")
    newest = max(os.stat(box.root / name).st_ctime_ns for name in ("data/a/f", "other/f"))
    wait_for(lambda: box.write("tick").stat().st_ctime_ns > newest + 50_000_000)
    real = batches.read_stable

    def swapped(path: str, *args: object) -> object:
        if not path.endswith("data/a/f"):
            return real(path, *args)  # type: ignore[arg-type]
        folder = Path(path).parent
        root = folder.parent.parent
        folder.rename(root / "aside")
        (root / "other").rename(folder)
        try:
            return real(path, *args)  # type: ignore[arg-type]
        finally:
            folder.rename(root / "other")
            (root / "aside").rename(folder)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "read_stable", swapped)
        box.add("data")
    assert box.states()["data"] == "modified"
    box.add("data")
    shutil.rmtree(box.root / "data")
    box.checkout()
    assert box.read("data/a/f") == "AAAA"
