"""One flipped bit anywhere in a cache, and a cache that cannot be written to: told, and the rest works."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, OutsideError
from mlops_cli.store.checkup import Scope
from mlops_cli.workspace.integrity import Examination, examine
from tests.disks import read_only
from tests.workspace.collecting import content
from tests.workspace.projects import Sandbox
from tests.workspace.verbs import reindex

PLACES = 50  # in each file of the cache
FOLDERS = ("objects", "packs", "index")


def fsck(box: Sandbox) -> Examination:
    return examine(box.project(), Scope())


@pytest.fixture
def filled(box: Sandbox) -> Sandbox:
    """Return a project with two files and a folder, all in one pack but a large one, and an index."""
    box.write("one", "one and only one")
    box.write("large", content("large", 70_000))
    box.write("data/a", content("a", 300))
    box.write("data/sub/b", "b")
    box.add("one", "large", "data")
    box.commit()
    reindex(box)
    return box


def files_of(cache: Path) -> list[Path]:
    return [path for folder in FOLDERS for path in (cache / folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_one_flipped_bit_costs_one_object_at_most(folder: str, filled: Sandbox, tmp_path: Path) -> None:
    cache = filled.project().cache.root
    shutil.copytree(cache, tmp_path / "saved")
    (name,) = (path.relative_to(cache) for path in files_of(cache) if path.is_relative_to(cache / folder))
    data = (cache / name).read_bytes()
    for at in sorted({*range(0, len(data), len(data) // PLACES), *range(len(data) - 12, len(data))}):
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "saved", cache)
        (cache / name).chmod(0o644)
        (cache / name).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])

        found = fsck(filled)

        assert found.exit_code == 5, at
        told = {file.file for file in found.checkup.files} | {str(name) for fault in found.damaged if fault.moved}
        assert told == {str(name)}, at
        assert len(found.damaged) <= (0 if folder == "index" else 1), at
        owners = {path for fault in found.damaged for path in fault.paths}
        assert all(fault.paths for fault in found.damaged), at
        again = fsck(filled)
        assert (again.damaged, again.checkup.files, again.exit_code) == ((), (), 4 if owners else 0), at
        for path in {"one", "large", "data"} - owners:
            shutil.rmtree(filled.root / path) if path == "data" else (filled.root / path).unlink()
            filled.checkout(path)
        filled.write("one", "one and only one")
        filled.write("large", content("large", 70_000))
        filled.write("data/a", content("a", 300))
        filled.write("data/sub/b", "b")
        filled.add("one", "large", "data")  # what is in the workspace mends all
        assert fsck(filled).exit_code == 0, at


def test_a_cache_that_cannot_be_written_to_can_be_used(filled: Sandbox) -> None:
    cache = filled.project().cache.root
    with read_only(cache):
        (filled.root / "one").unlink()
        shutil.rmtree(filled.root / "data")

        filled.checkout()

        assert filled.states() == {"one": "ok", "large": "ok", "data": "ok"}
        assert fsck(filled).exit_code == 0
        filled.write("new", "new")
        with pytest.raises(OutsideError, match="the file system is read-only") as caught:
            filled.add("new")
        assert str(cache) in caught.value.message
        assert not filled.exists("new.mlx")
    filled.add("new")
    assert fsck(filled).exit_code == 0


def test_damage_in_a_cache_that_cannot_be_written_to_is_told(filled: Sandbox) -> None:
    cache = filled.project().cache.root
    (pack,) = (cache / "packs").iterdir()
    data = pack.read_bytes()
    at = data.index(b"one and only one")
    pack.chmod(0o644)
    pack.write_bytes(data[:at] + b"ONE" + data[at + 3 :])
    with read_only(cache):
        found = fsck(filled)

        assert [(fault.paths, fault.moved) for fault in found.damaged] == [(("one",), None)]
        assert [(file.file, file.rebuilt) for file in found.checkup.files] == [(f"packs/{pack.name}", False)]
        assert found.exit_code == 5
        (filled.root / "one").unlink()
        shutil.rmtree(filled.root / "data")
        with pytest.raises(CorruptObject, match="`one`"):
            filled.checkout()
        assert os.listdir(filled.root / "data/sub") == ["b"]
