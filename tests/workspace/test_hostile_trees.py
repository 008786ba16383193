"""Trees that somebody has prepared: refused before the workspace, or this machine's memory, is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store import tree_reading, trees
from mlops_cli.store.batches import open_batch
from mlops_cli.store.tree_format import TREE_LIMIT, Entry, Kind, encode_entries, totals
from mlops_cli.store.trees import EMPTY_TREE
from mlops_cli.workspace import scan
from tests.workspace.projects import Sandbox

pytestmark = pytest.mark.usefixtures("crew")

GOOD = b"good"


def plant(box: Sandbox, *objects: bytes) -> None:
    with open_batch(box.project().cache) as batch:
        for data in objects:
            batch.add_bytes(data)


def point(box: Sandbox, digest: str, size: int, files: int) -> None:
    box.write("data.mlx", f"mlx: 1\npath: data\ntree: {digest}\nsize: {size}\nfiles: {files}\n")


def record(box: Sandbox, *entries: Entry) -> None:
    """Track a folder of a good file and `entries`, whatever they are."""
    good = Entry(b"a", Kind.FILE, len(GOOD), 1, hash_bytes(GOOD))
    tree = encode_entries([good, *entries])
    plant(box, GOOD, tree)
    point(box, hash_bytes(tree), *totals([good, *entries]))


def refused(box: Sandbox) -> str:
    with pytest.raises(CorruptObject) as caught:
        box.checkout()
    assert caught.value.hint
    assert not box.exists("data")
    return caught.value.message


@pytest.mark.parametrize("target", [b"", b"a\0b", b"x" * 4096], ids=["empty", "NUL", "long"])
@pytest.mark.parametrize("honest", [True, False])
def test_link_that_cannot_be_made(box: Sandbox, target: bytes, honest: bool):
    plant(box, target)
    size = len(target) if honest else 4
    record(box, Entry(b"link", Kind.SYMLINK, size, 1, hash_bytes(target)))
    assert "symbolic link" in refused(box)


def test_link_that_can_be_made(box: Sandbox):
    target = b"x/" * 2047 + b"x"
    plant(box, target)
    record(box, Entry(b"link", Kind.SYMLINK, len(target), 1, hash_bytes(target)))
    box.checkout()
    assert os.readlink(os.fsencode(box.root / "data/link")) == target
    assert box.states() == {"data": "ok"}


def test_link_whose_target_is_not_here(box: Sandbox):
    record(box, Entry(b"link", Kind.SYMLINK, 3, 1, hash_bytes(b"abc")))
    assert box.states() == {"data": "not_cached"}


def test_name_that_no_file_can_have(box: Sandbox):
    record(box, Entry(b"n" * 256, Kind.FILE, len(GOOD), 1, hash_bytes(GOOD)))
    assert "more than 255 bytes" in refused(box)


@pytest.mark.parametrize(("size", "files"), [(len(GOOD), 2), (len(GOOD) + 1, 1), (0, 0)])
def test_record_that_lies_about_its_tree(box: Sandbox, size: int, files: int):
    record(box)
    point(box, hash_bytes(encode_entries([Entry(b"a", Kind.FILE, len(GOOD), 1, hash_bytes(GOOD))])), size, files)
    assert "what names it says" in refused(box)


def test_folder_that_lies_about_its_tree(box: Sandbox):
    below = encode_entries([Entry(b"x", Kind.FILE, len(GOOD), 1, hash_bytes(GOOD))])
    plant(box, below)
    record(box, Entry(b"sub", Kind.FOLDER, 999, 7, hash_bytes(below)))
    assert "what names it says" in refused(box)


def test_few_objects_that_stand_for_many_folders(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree_reading, "MOST_WITHOUT_FILES", 100)
    digest = EMPTY_TREE
    for _ in range(9):
        tree = encode_entries([Entry(b"%d" % number, Kind.FOLDER, 0, 0, digest) for number in range(10)])
        plant(box, tree)
        digest = hash_bytes(tree)
    plant(box, encode_entries(()))
    record(box, Entry(b"sub", Kind.FOLDER, 0, 0, digest))
    assert "folders without files" in refused(box)


def test_no_more_folders_are_added_than_can_come_back(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    for module in (trees, scan):
        monkeypatch.setattr(module, "MOST_WITHOUT_FILES", 4)
    for path in ("a/b", "c/d"):
        (box.root / "data" / path).mkdir(parents=True)
    box.write("data/file/file", "x")
    box.add("data")
    shutil.rmtree(box.root / "data")
    box.checkout()
    (box.root / "data/e").mkdir()
    with pytest.raises(UsageError, match="`data` holds more than 4 folders without files") as caught:
        box.add("data")
    assert caught.value.hint


MEMORY = """
import resource, sys
from mlops_cli.cli.main import main
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", [["status"], ["checkout"], ["ls", "data"], ["ls", "-R", "data"]], ids=" ".join)
def test_large_object_that_is_named_as_a_tree(box: Sandbox, command: list[str]):
    digest = hash_bytes(b"stands for three gigabytes")
    place = Path(box.project().cache.object_path(digest))
    place.parent.mkdir(parents=True)
    place.touch()
    os.truncate(place, 3 << 30)
    point(box, digest, 3 << 30, 1)
    box.write("data/a", "a")
    program = [sys.executable, "-c", MEMORY, *command]
    done = subprocess.run(program, cwd=box.root, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert f"more than {TREE_LIMIT:,} bytes" in done.stderr
    assert box.read("data/a") == "a"
    assert place.exists(), "nothing is known to be wrong with the object itself"
