"""`kill -9` of a command and of its workers: the next command finds a state that one process could have left."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_cli.workspace import scan, writing
from tests.crashing import arm
from tests.workspace.projects import Sandbox, listing

FILES = 60
STEP = 7  # the points are many and alike: every seventh, which is another call each time, will do


@pytest.fixture
def box(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Return a project with files in several folders, which two workers handle whatever the machine is."""
    for module in (scan, writing):
        monkeypatch.setattr(module, "crew_size", lambda: 2)
    monkeypatch.setattr(scan, "READ_BY_MANY", 0)
    monkeypatch.setattr(writing, "WRITTEN_BY_MANY", 0)
    for number in range(FILES):
        box.write(f"data/{number % 3}/f{number}", f"content {number}" * 50)
        box.write(f"flat/f{number}", f"flat {number}")
    box.write("data/large", os.urandom(200_000))
    return box


def goes_wrong(work: Callable[[], object], at: int) -> bool:
    """Run `work` in a process that dies before its call number `at`, as do its workers; return whether any died.

    None of them runs any more: the pipe ends when nobody has its other end.
    """
    alive, held = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.set_inheritable(held, True)
            arm(at)
            work()
            code = 0
        finally:
            os._exit(code)
    os.close(held)
    _, status = os.waitpid(child, 0)
    assert os.read(alive, 1) == b""
    os.close(alive)
    return status != 0


def points(work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    for at in range(0, 900, STEP):
        prepare()
        wrong = goes_wrong(work, at)
        yield at
        if not wrong:
            return
    raise AssertionError("still not through")


def test_checkout(box: Sandbox):
    before = listing(box.root / "data")
    box.add("data", "flat")

    def prepare() -> None:
        shutil.rmtree(box.root / "data")
        shutil.rmtree(box.root / "flat")

    crashed = 0
    for _ in points(box.checkout, prepare):
        crashed += 1
        found = listing(box.root / "data") if box.exists("data") else {}
        whole = {name: file for name, file in found.items() if b".mlx-tmp-" not in name}
        assert whole.items() <= before.items(), "a file that is not what was stored"
        box.checkout()
        assert listing(box.root / "data") == before, "nothing is missing, and nothing is left over"
        assert len(listing(box.root / "flat")) == FILES
        assert not list(box.root.rglob(".mlx-tmp-*"))
    assert crashed > 3


def test_add(box: Sandbox):
    before = listing(box.root / "data")
    cache: Path = box.project().cache.root

    def prepare() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        (box.root / "data.mlx").unlink(missing_ok=True)

    crashed = 0
    for _ in points(lambda: box.add("data"), prepare):
        crashed += 1
        box.add("data")
        assert list((cache / "tmp").iterdir()) == []
        shutil.rmtree(box.root / "data")
        box.checkout()
        assert listing(box.root / "data") == before
    assert crashed > 3
