"""What is damaged or absent is named by whom it belongs to, and a remote mends it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlops_cli.errors import LockedError, RemoteError, UsageError
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.progress import Silent
from mlops_cli.store.checkup import Scope
from mlops_cli.store.guard import alone
from mlops_cli.workspace.integrity import Examination, examine
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.run_records import RunRecords
from mlops_cli.workspace.snapshot import workspace_snapshot
from tests.workspace.collecting import gc
from tests.workspace.projects import Sandbox

LARGE = os.urandom(100_000)
OTHER = os.urandom(120_000)


def fsck(box: Sandbox, *, repair: bool = False, dry_run: bool = False, scope: Scope | None = None) -> Examination:
    return examine(box.project(), scope or Scope(), repair=repair, dry_run=dry_run, reporter=box.heard)


def damage(box: Sandbox, content: bytes) -> Digest:
    """Change the bytes of a stored object, wherever it is, and return its name."""
    project = box.project()
    digest = hash_bytes(content)
    place = project.cache.packs.find(digest)
    path = Path(project.cache.packs.path_of(place.pack) if place else project.cache.object_path(digest))
    data = bytearray(path.read_bytes())
    data[place.offset + 60 if place else 7] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return digest


def tree_of(box: Sandbox, path: str) -> Digest:
    return next(entry.digest for entry in workspace_snapshot(box.project()).tracked() if entry.path == path)


@pytest.fixture
def filled(box: Sandbox) -> Sandbox:
    """Return a project with a file and a folder, committed."""
    box.write("large.bin", LARGE)
    box.write("data/a.txt", "first a of some length")
    box.write("data/sub/b.txt", "b, and more")
    box.add("large.bin", "data")
    box.commit()
    return box


def test_all_is_well(filled: Sandbox) -> None:
    found = fsck(filled)

    assert (found.exit_code, found.damaged, found.absent) == (0, (), ())
    assert found.checkup.objects == 5


def test_a_project_without_data_is_well(box: Sandbox) -> None:
    assert fsck(box).exit_code == 0


def test_a_damaged_object_is_named_by_its_path(filled: Sandbox) -> None:
    digest = damage(filled, LARGE)

    found = fsck(filled)

    (fault,) = found.damaged
    assert (fault.digest, fault.path, fault.revision, fault.mended) == (digest, "large.bin", None, False)
    assert fault.moved is not None
    assert found.exit_code == 5
    later = fsck(filled)
    assert (later.exit_code, [fault.path for fault in later.absent]) == (4, ["large.bin"])


def test_an_object_that_several_paths_need_is_named_by_all(filled: Sandbox) -> None:
    filled.write("data/same.bin", LARGE)
    filled.add("data")
    damage(filled, LARGE)

    (fault,) = fsck(filled).damaged
    assert fault.paths == ("data", "large.bin")
    assert fault.files == ("data/same.bin", "large.bin")


def test_a_damaged_tree_does_not_hide_the_rest(filled: Sandbox) -> None:
    cache = filled.project().cache
    digest = damage(filled, cache.read(tree_of(filled, "data")))
    other = damage(filled, LARGE)

    found = fsck(filled)

    assert {(fault.digest, fault.path) for fault in found.damaged} == {(digest, "data"), (other, "large.bin")}


def test_an_object_of_an_older_version_is_named_by_its_commit(filled: Sandbox) -> None:
    first = filled.git("rev-parse", "HEAD")[:12]
    filled.write("large.bin", OTHER)
    filled.write("data/a.txt", "second")
    filled.add("large.bin", "data")
    filled.commit()
    filled.commit("nothing new")
    damage(filled, LARGE)
    damage(filled, b"first a of some length")

    found = fsck(filled)

    assert {(fault.path, fault.revision) for fault in found.damaged} == {("large.bin", first), ("data", first)}


def test_a_history_that_git_cannot_read_keeps_nothing_from_being_told(filled: Sandbox) -> None:
    filled.write("large.bin", OTHER)
    filled.add("large.bin")
    filled.commit()
    filled.write(".git/refs/heads/broken", "0" * 39 + "1\n")
    digest = damage(filled, LARGE)

    found = fsck(filled)

    assert [fault.digest for fault in found.damaged] == [digest]
    assert found.damaged[0].moved
    assert any("older versions were not looked at" in note for note in filled.heard.notes)


def test_an_object_of_head_is_named_by_it(filled: Sandbox) -> None:
    filled.write("large.bin", OTHER)
    filled.add("large.bin")
    damage(filled, LARGE)

    assert [(fault.path, fault.revision) for fault in fsck(filled).damaged] == [("large.bin", "HEAD")]


def test_an_object_that_no_record_names_says_so(filled: Sandbox) -> None:
    filled.write("large.bin", OTHER)
    filled.add("large.bin")
    filled.write("large.bin", b"third" * 40_000)
    filled.add("large.bin")
    damage(filled, OTHER)

    found = fsck(filled)

    assert [(fault.path, fault.revision) for fault in found.damaged] == [("", None)]
    assert found.exit_code == 5


def test_an_output_is_named_with_its_stage(box: Sandbox) -> None:
    box.pipeline("stages:\n  make:\n    cmd: head -c 100000 /dev/zero > out.bin\n    outs: [out.bin]\n")
    box.run()
    damage(box, bytes(100_000))

    assert [(fault.path, fault.stage) for fault in fsck(box).damaged] == [("out.bin", "make")]


def test_what_is_absent_is_named(filled: Sandbox) -> None:
    shutil.rmtree(filled.project().cache.root)

    found = fsck(filled)

    assert found.exit_code == 4
    assert [fault.path for fault in found.absent] == ["data", "large.bin"]


def test_an_output_that_stays_where_it_was_made_is_not_absent(box: Sandbox) -> None:
    box.pipeline("stages:\n  make:\n    cmd: echo 1 > out\n    outs: [{out: {push: false}}]\n")
    box.run()
    shutil.rmtree(box.project().cache.root)

    assert fsck(box).exit_code == 0


def test_a_dry_run_tells_the_same_and_moves_nothing(filled: Sandbox) -> None:
    tree = damage(filled, filled.project().cache.read(tree_of(filled, "data")))
    damage(filled, LARGE)
    cache = filled.project().cache.root
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}

    found = fsck(filled, dry_run=True)

    assert {fault.path for fault in found.damaged} == {"data", "large.bin"}
    assert tree in {fault.digest for fault in found.damaged}
    assert found.exit_code == 5
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before


def test_a_tree_that_the_sample_left_out_is_found_by_the_records(filled: Sandbox) -> None:
    tree = damage(filled, filled.project().cache.read(tree_of(filled, "data")))

    found = fsck(filled, scope=Scope(seconds=0))

    assert not found.checkup.complete
    assert [(fault.digest, fault.path) for fault in found.damaged] == [(tree, "data")]
    assert fsck(filled, scope=Scope(seconds=0)).exit_code == 4


@pytest.mark.parametrize("lost", ["damaged", "absent", "both"])
def test_a_remote_mends_what_is_damaged_or_absent(lost: str, filled: Sandbox) -> None:
    filled.remote()
    push(filled.project())
    if lost != "absent":
        damage(filled, LARGE)
        damage(filled, filled.project().cache.read(tree_of(filled, "data")))
    if lost != "damaged":
        shutil.rmtree(filled.project().cache.root / "packs")

    found = fsck(filled, repair=True)

    assert found.exit_code == 0
    assert found.repaired == (2 if lost == "damaged" else 4 + (lost == "both"))
    assert all(fault.mended for fault in (*found.damaged, *found.absent))
    assert fsck(filled).damaged == fsck(filled).absent == ()


def test_what_the_remote_lacks_stays_lost(filled: Sandbox) -> None:
    filled.remote()
    push(filled.project(), ["data"])
    damage(filled, LARGE)
    damage(filled, b"b, and more")

    found = fsck(filled, repair=True)

    assert found.exit_code == 5
    assert {(fault.path, fault.mended) for fault in found.damaged} == {("large.bin", False), ("data", True)}


def test_a_remote_that_is_away_is_told(filled: Sandbox) -> None:
    filled.remote(url="../nowhere")
    damage(filled, LARGE)

    with pytest.raises(RemoteError):
        fsck(filled, repair=True)


@pytest.mark.parametrize("again", [False, True])
def test_the_trash_mends_before_a_remote_is_asked(again: bool, filled: Sandbox) -> None:
    """All that was recorded went to the trash, and is needed again; once, a copy that came again is damaged by now."""
    pointers = {name: filled.read(name) for name in ("large.bin.mlx", "data.mlx")}
    for name in pointers:
        (filled.root / name).unlink()
    filled.git("checkout", "--quiet", "--orphan", "other")
    filled.git("rm", "-r", "--quiet", "--cached", ".")
    filled.git("branch", "-D", "main")
    filled.git("reflog", "expire", "--expire=now", "--all")
    gc(filled)
    for name, text in pointers.items():
        filled.write(name, text)
    if again:
        filled.add("large.bin")
        damage(filled, LARGE)

    offered = fsck(filled)
    found = fsck(filled, repair=True)

    faults = (*offered.damaged, *offered.absent)
    assert {fault.path for fault in faults} == {"data", "large.bin"}
    assert all(fault.in_trash for fault in faults)
    assert (found.exit_code, found.remotes, found.returned) == (0, (), 2)
    assert all(fault.mended and not fault.in_trash for fault in (*found.damaged, *found.absent))
    assert fsck(filled).exit_code == 0


def test_a_damaged_copy_in_the_trash_mends_nothing(filled: Sandbox) -> None:
    pointer = filled.read("large.bin.mlx")
    filled.git("rm", "--quiet", "large.bin.mlx")
    filled.git("commit", "--quiet", "--amend", "-m", "without")
    filled.git("reflog", "expire", "--expire=now", "--all")
    (filled.root / ".git" / "ORIG_HEAD").unlink(missing_ok=True)
    gc(filled)
    (path,) = (path for path in (filled.project().cache.root / "trash").rglob("*") if path.is_file())
    path.chmod(0o644)
    path.write_bytes(OTHER)
    filled.write("large.bin.mlx", pointer)

    found = fsck(filled, repair=True)

    assert [(fault.path, fault.mended) for fault in found.absent] == [("large.bin", False)]
    assert found.exit_code == 4
    assert list((filled.project().cache.root / "quarantine").iterdir())


def test_a_collection_waits_for_a_repair(filled: Sandbox) -> None:
    """While `--repair` works, what it brings cannot go again."""
    filled.remote()
    push(filled.project())
    damage(filled, LARGE)
    filled.configure("core.lock_timeout", "0")
    refused: list[bool] = []

    class Trying(Silent):
        def start(self, label: str, total: int | None, unit: str) -> None:
            with pytest.raises(LockedError), alone(filled.project().cache.root, doing="mlx gc", timeout=0):
                pass
            refused.append(True)

    assert examine(filled.project(), Scope(), repair=True, reporter=Trying()).repaired == 1
    assert len(refused) >= 2


def test_damaged_run_records_are_put_away(box: Sandbox) -> None:
    box.pipeline("stages:\n  make:\n    cmd: echo 1 > out\n    outs: [out]\n")
    box.run()
    (record,) = (box.project().cache.root / "runs").iterdir()
    data = record.read_bytes()
    record.chmod(0o644)
    record.write_bytes(data[: len(data) // 2])
    (record.parent / "0ther.yaml").write_bytes(data.replace(b"mlx: 1\n", b"mlx: 2\n"))

    told = fsck(box, dry_run=True)
    assert record.exists()
    found = fsck(box)

    assert [(file.file, file.rebuilt) for file in told.checkup.files] == [(f"runs/{record.name}", False)]
    assert [(file.file, file.rebuilt) for file in found.checkup.files] == [(f"runs/{record.name}", True)]
    assert found.exit_code == 5
    assert not record.exists()
    assert (fsck(box).exit_code, fsck(box).runs.count) == (0, 1)


def test_runs_whose_outputs_are_gone_are_counted(box: Sandbox) -> None:
    box.pipeline("stages:\n  make:\n    cmd: echo 1 > out\n    outs: [out]\n")
    box.run()
    assert fsck(box).runs == RunRecords(1, 0, ())
    shutil.rmtree(box.project().cache.root / "packs")

    assert fsck(box).runs == RunRecords(1, 1, ())


def test_without_a_remote_nothing_can_be_repaired(filled: Sandbox) -> None:
    with pytest.raises(UsageError, match="no remote"):
        fsck(filled, repair=True)
