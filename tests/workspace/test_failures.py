"""What can go wrong with data, seen from whole commands; `docs/explanation/failures.md` says where the rest is tested."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.errors import CorruptObject, MissingObject, OutsideError, RecordError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.checkup import Scope
from mlops_cli.store.pack_format import FILE_HEADER
from mlops_cli.store.trash import Trash
from mlops_cli.workspace import checkout as checkout_module
from mlops_cli.workspace import writing
from mlops_cli.workspace.collect import collect
from mlops_cli.workspace.integrity import examine
from mlops_cli.workspace.reading import Filler
from mlops_cli.workspace.relink import unprotect
from mlops_cli.workspace.twins import refuse_twins
from tests.disks import small_disk
from tests.objects import LARGE, large, lose_all, stored
from tests.workspace.collecting import YEAR, add_new, content, held
from tests.workspace.projects import Sandbox, listing, make_project, wait_for

DAY = 24 * 3600.0


def drop(box: Sandbox, path: str) -> None:
    """Forget a path, in all of history."""
    (box.root / path).unlink()
    (box.root / f"{path}.mlx").unlink()


def picture(root: Path) -> dict[bytes, tuple[str, bytes, int]]:
    """Return everything in a cache with the mode of each file; locks and the note of a look at it aside."""
    found = {}
    for name, (kind, data) in listing(root).items():
        if not name.endswith(b".lock") and name != b"tmp":
            found[name] = (kind, data, os.lstat(os.path.join(os.fsencode(root), name)).st_mode)
    return found


def fill_up(disk: Path) -> None:
    """Leave no room on a disk."""
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


# Full and separate disks ---------------------------------------------------------------------------------------------


def test_a_collection_makes_room_on_a_full_disk(box: Sandbox, tmp_path: Path):
    with small_disk(tmp_path) as disk:
        box.configure("cache.dir", str(disk / "cache"))
        digest = add_new(box, "large.bin", content("large", 300_000))
        drop(box, "large.bin")
        fill_up(disk)

        for now in (time.time() + YEAR, time.time() + 2 * YEAR):
            collect(box.project(), now=now, reporter=box.heard)

        assert not held(box, digest)
        assert shutil.disk_usage(disk).free >= 300_000


@pytest.mark.parametrize("link", ["reflink", "copy", "hardlink", "symlink"])
def test_a_cache_on_another_disk(box: Sandbox, tmp_path: Path, link: str):
    with small_disk(tmp_path) as disk:
        box.configure("cache.dir", str(disk / "cache"))
        box.configure("cache.link", link)
        box.write("data/large", large("large"))
        box.write("data/small", "small")
        box.add("data")
        shutil.rmtree(box.root / "data")
        box.checkout()

        assert (box.read("data/large"), box.read("data/small")) == (large("large"), "small")
        assert box.clean()


def test_a_cache_that_moved_to_a_disk_without_clones(box: Sandbox, tmp_path: Path):
    """What was cloned, linked or copied before stays as it is, and comes back as a copy."""
    box.configure("cache.link", "hardlink")
    box.write("data/large", large("large"))
    box.add("data")
    with small_disk(tmp_path) as disk:
        box.project().cache.root.rename(box.root.parent / "away")
        shutil.copytree(box.root.parent / "away", disk / "cache")
        box.configure("cache.dir", str(disk / "cache"))

        assert box.clean()
        (box.root / "data/large").unlink()
        box.checkout()

        assert box.read("data/large") == large("large")
        assert (box.root / "data/large").stat().st_nlink == 1


# Clocks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-YEAR, -DAY, -3600.0, 3600.0, DAY], ids=lambda s: f"{s / DAY:+.2f} days")
def test_a_clock_that_is_off_collects_nothing_young(box: Sandbox, skew: float):
    digests = [add_new(box, "small", content("small")), add_new(box, "large", content("large", LARGE))]
    drop(box, "small")
    drop(box, "large")

    found = collect(box.project(), now=time.time() + skew, reporter=box.heard)

    assert found.plan.empty
    assert all(held(box, digest) for digest in digests)


def test_trash_that_was_filled_by_a_fast_clock_is_kept_longer(box: Sandbox):
    digest = add_new(box, "large", content("large", LARGE))
    drop(box, "large")
    collect(box.project(), now=time.time() + YEAR, reporter=box.heard)

    collect(box.project(), now=time.time(), reporter=box.heard)
    Trash(box.project().cache).restore()

    assert held(box, digest)


@pytest.mark.parametrize("shift", [-400, -1, 1, 400], ids=lambda days: f"{days:+} days")
def test_files_of_another_clock(box: Sandbox, shift: int):
    """A file server's clock, daylight saving, or a restored backup: any time of a file may be any."""
    then = time.time_ns() + shift * int(DAY) * 10**9
    place = box.write("data/file", "one")
    os.utime(place, ns=(then, then))
    box.add("data")
    assert box.clean()

    place.write_text("two")
    os.utime(place, ns=(then, then))

    assert box.states() == {"data": "modified"}
    box.add("data")
    assert box.clean()


# Edits through links -------------------------------------------------------------------------------------------------


def append(place: Path) -> None:
    with place.open("a") as file:
        file.write("more")


def same_size(place: Path) -> None:
    before = place.stat()
    with place.open("r+") as file:
        file.write("X")
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write to a read-only file")
@pytest.mark.parametrize("link", ["hardlink", "symlink"])
@pytest.mark.parametrize("how", [append, same_size])
def test_an_edit_through_a_link_is_found_and_the_object_put_away(box: Sandbox, how: Callable[[Path], None], link: str):
    box.configure("cache.link", link)
    text = large("text")
    place = box.write("file", text)
    box.add("file")
    digest = hash_bytes(text.encode())

    how(place)

    assert box.states() == {"file": "modified"}
    found = examine(box.project(), Scope(), repair=False, dry_run=False, reporter=box.heard)
    assert [each.digest for each in found.checkup.damaged] == [digest]
    assert not held(box, digest)
    place.unlink(missing_ok=True)
    box.write("file", text)
    box.add("file")
    assert held(box, digest)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write to a read-only file")
@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_an_edit_through_a_link_is_added_as_what_it_is(box: Sandbox, link: str):
    box.configure("cache.link", link)
    place = box.write("file", large("text"))
    box.add("file")

    with place.open("r+") as file:
        file.write("X")
    box.add("file")

    edited = hash_bytes(("X" + large("text")[1:]).encode())
    pointer = box.snapshot().pointer("file")
    assert pointer is not None
    assert pointer.digest == edited
    assert held(box, edited)
    assert box.read("file").startswith("Xext")
    assert box.clean()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write to a read-only file")
@pytest.mark.parametrize("crowd", [0, 1500])
@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_an_object_that_was_edited_is_not_linked_again(box: Sandbox, link: str, crowd: int):
    for number in range(crowd):  # so many that the file is old by the time that all are checked out
        box.write(f"data/{number + 1}", str(number))
    box.configure("cache.link", link)
    place = box.write("data/0", large("text"))
    box.add("data")
    shutil.rmtree(box.root / "data")
    box.checkout()

    with place.open("r+") as file:
        file.write("X")
    place.unlink()

    with pytest.raises(CorruptObject, match="`data/0`"):
        box.checkout()
    assert not held(box, hash_bytes(large("text").encode()))


def test_a_file_whose_object_is_gone_is_not_taken_out_of_its_record(box: Sandbox):
    box.configure("cache.link", "symlink")
    box.write("data/large", large("text"))
    box.write("data/small", "small")
    box.write("lone", large("lone"))
    box.add("data", "lone")
    box.commit()
    shutil.rmtree(box.project().cache.root)

    for path in ("data", "lone", "data/large"):
        with pytest.raises(MissingObject):
            box.add(path)

    assert box.changed_in_git() == []
    assert not box.clean()
    (box.root / "data/large").unlink()
    assert box.add("data").added[0].files == 1


def test_nobody_but_root_can_edit_through_a_link(box: Sandbox):
    box.configure("cache.link", "hardlink")
    place = box.write("file", large("text"))
    box.add("file")

    assert stat.S_IMODE(place.stat().st_mode) == 0o444
    unprotect(box.project(), ["file"])
    place.write_text("mine")

    assert held(box, hash_bytes(large("text").encode()))


# Links that move while mlx works -------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the folder is made", "once the folder is made"])
def test_a_folder_that_becomes_a_link_while_it_is_checked_out(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    """All was decided already; the folder is swapped at the last moment before it is opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    box.write("data/sub/deep/file", "ours")
    box.write("data/kept", "ours")
    box.add("data")
    shutil.rmtree(box.root / "data/sub")
    mkdir = os.mkdir

    def swapping(name: object, *args: int, **options: int) -> None:
        if name != b"sub":
            mkdir(name, *args, **options)
            return
        if when == "once the folder is made":
            mkdir(name, *args, **options)
            (box.root / "data/sub").rename(box.root / "moved")
        (box.root / "data/sub").symlink_to(outside)
        if when == "before the folder is made":
            mkdir(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", swapping)
        with pytest.raises(UsageError, match="`data/sub` is not a folder but a link or a file"):
            box.checkout()

    assert list(outside.iterdir()) == []
    assert box.read("data/kept") == "ours"


@pytest.mark.parametrize("swapped", ["data", "data/sub", "data/sub/deep"])
def test_a_folder_that_becomes_a_link_while_it_is_added(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
):
    """Its names are known; their bytes must not be those of files elsewhere."""
    box.write("data/sub/deep/file", "ours")
    outside = tmp_path / "outside"
    shutil.copytree(box.root / swapped, outside)
    fill = Filler.do

    def swapping(filler: Filler, task: int) -> object:
        shutil.rmtree(box.root / swapped)
        (box.root / swapped).symlink_to(outside)
        return fill(filler, task)

    with monkeypatch.context() as patch:
        patch.setattr(Filler, "do", swapping)
        with pytest.raises(UsageError, match=f"`{swapped}` became a symbolic link while it was read"):
            box.add("data")

    assert not box.exists("data.mlx")
    assert list(box.project().cache.list()) == []


def test_a_link_that_comes_where_a_new_folder_is_to_get_its_name(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outside = tmp_path / "outside"
    outside.mkdir()
    box.write("data/sub/file", "ours")
    box.add("data")
    shutil.rmtree(box.root / "data/sub")
    real = writing.rename_new

    def swapping(source: str, target: str, *, dir_fd: int | None = None) -> None:
        (box.root / "data/sub").symlink_to(outside)
        real(source, target, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "rename_new", swapping)
        with pytest.raises(UsageError, match="`data/sub` is in the way, and nothing tracks it"):
            box.checkout()

    assert list(outside.iterdir()) == []
    assert [path.name for path in (box.root / "data").iterdir()] == ["sub"]


def test_a_file_that_becomes_a_link_while_it_is_checked_out(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    box.write("data/file", large("one"))
    box.add("data")
    box.commit()
    box.write("data/file", large("two"))
    box.add("data")
    box.git("checkout", "--quiet", "data.mlx")
    rename = os.rename

    def swapping(source: str, target: str, **folders: int) -> None:
        if target == "file":
            (box.root / "data/file").unlink()
            (box.root / "data/file").symlink_to(outside)
        rename(source, target, **folders)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", swapping)
        box.checkout()

    assert outside.read_text() == "theirs"
    assert not (box.root / "data/file").is_symlink()
    assert box.read("data/file") == large("one")


# Edits while mlx works -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [lambda place: place.write_text("edit"), lambda place: place.write_text("two!")])
@pytest.mark.parametrize("crowd", [0, 3000], ids=["few", "many"])
@pytest.mark.parametrize("deleted", [False, True], ids=["replaced", "deleted"])
def test_a_file_that_is_edited_while_others_are_checked_out_stays(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Path], object], crowd: int, *, deleted: bool
):
    for number in range(crowd):
        box.write(f"data/many/{number}", f"{number} one")
    box.write("data/other", "one")
    if not deleted:
        box.write("data/file", "one")
    box.add("data")
    box.commit()
    for number in range(crowd):
        box.write(f"data/many/{number}", f"{number} two")
    box.write("data/other", "two")
    box.write("data/file", "two")
    box.add("data")
    box.git("checkout", "--quiet", "HEAD", "--", "data.mlx")
    apply = checkout_module.apply_changes

    def edited(*args: Any, **options: Any) -> None:
        edit(box.root / "data/file")
        apply(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkout_module, "apply_changes", edited)
        with pytest.raises(UsageError, match="`data/file` was changed while mlx was about to replace it"):
            box.checkout()

    assert box.read("data/file") in ("edit", "two!")
    with pytest.raises(UsageError, match="`data/file` would be overwritten or deleted"):
        box.checkout()
    box.checkout(force=True)
    assert box.clean()


def test_a_file_that_is_touched_while_others_are_checked_out_is_replaced(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    box.write("data/file", "one")
    box.add("data")
    box.commit()
    box.write("data/file", "two")
    box.add("data")
    box.git("checkout", "--quiet", "HEAD", "--", "data.mlx")
    apply = checkout_module.apply_changes

    def touched(*args: Any, **options: Any) -> None:
        (box.root / "data/file").touch()
        apply(*args, **options)

    monkeypatch.setattr(checkout_module, "apply_changes", touched)
    box.checkout()

    assert box.read("data/file") == "one"


@pytest.mark.parametrize("target", ["loop", ".", "..", "/", "../..", "nowhere", "../.git", "/etc/passwd", "a/b\nc"])
def test_links_are_kept_as_links_whatever_they_lead_to(box: Sandbox, target: str):
    (box.root / "data").mkdir()
    (box.root / "data/loop").symlink_to(target)
    box.add("data")
    shutil.rmtree(box.root / "data")
    before = listing(box.root / ".git" / "refs")

    box.checkout()

    assert os.readlink(box.root / "data/loop") == target
    assert box.clean()
    assert listing(box.root / ".git" / "refs") == before


# Names ---------------------------------------------------------------------------------------------------------------


def test_names_that_other_systems_fold_or_refuse_come_back(box: Sandbox):
    names = ["caf\u00e9", "cafe\u0301", "A.txt", "a.txt", "CON", "nul.txt", "dot.", "space ", "new\nline", "\u200bzero"]
    names += ["n" * 255, "\U0001f388" * 63]
    for name in names:
        box.write(f"data/{name}", name)
    box.write(b"data/\xff\xfe".decode("utf-8", "surrogateescape"), "bytes")
    before = listing(box.root / "data")
    box.add("data")
    shutil.rmtree(box.root / "data")

    box.checkout()

    assert listing(box.root / "data") == before
    assert len(before) == len(names) + 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A.txt", "a.txt"),
        ("caf\u00e9", "cafe\u0301"),
        ("Sub/one", "sub/two"),
        ("stra\u00dfe", "STRASSE"),
        ("deep/Er/x", "deep/er/x"),
    ],
)
def test_names_that_a_file_system_folds_are_refused_before_anything_is_written(box: Sandbox, first: str, second: str):
    """Where case counts, a second name for `.mlx` makes the project look as if it did not."""
    for name in (first, second, "other"):
        box.write(f"data/{name}", name)
    box.add("data")
    shutil.rmtree(box.root / "data")
    (box.root / ".MLX").mkdir(exist_ok=True)

    with pytest.raises(UsageError, match=r"this file system takes `data/.*` and `data/.*` for the same file") as caught:
        box.checkout()

    assert caught.value.hint
    assert not box.exists("data")
    box.checkout(f"data/{first}")
    assert box.read(f"data/{first}") == first


def test_names_that_no_file_system_folds_are_no_twins():
    refuse_twins([b"a", b"b", b"sub/a", b"sub/b", b"sub", b"\xff", b"\xfe"])


# Special files -------------------------------------------------------------------------------------------------------


def test_a_device_is_refused_and_never_opened(box: Sandbox):
    (box.root / "data").mkdir()
    try:
        os.mknod(box.root / "data/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")

    with pytest.raises(UsageError, match="`data/null` is a device, which holds no bytes to store"):
        box.add("data")

    assert not box.exists("data.mlx")


@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_another_name_of_an_added_file_stays_writable_and_its_own(box: Sandbox, link: str):
    box.configure("cache.link", link)
    other = box.write("elsewhere", large("text"))
    (box.root / "data").mkdir()
    (box.root / "data/file").hardlink_to(other)

    box.add("data")
    other.write_text("edited")

    assert held(box, hash_bytes(large("text").encode()))
    examined = examine(box.project(), Scope(), repair=False, dry_run=False, reporter=box.heard)
    assert examined.checkup.damaged == ()


def test_a_sparse_file_takes_no_room(box: Sandbox):
    box.configure("cache.link", "copy")
    (box.root / "data").mkdir()
    with (box.root / "data/sparse").open("wb") as file:
        file.truncate(256 << 20)
        file.seek(100 << 20)
        file.write(b"island")
    if (box.root / "data/sparse").stat().st_blocks > 1 << 12:
        pytest.skip("this file system has no sparse files")
    box.add("data")
    (box.root / "data/sparse").unlink()

    box.checkout()

    info = (box.root / "data/sparse").stat()
    assert (info.st_size, info.st_blocks * 512 < 8 << 20) == (256 << 20, True)
    (path,) = (path for path in (box.project().cache.root / "objects").rglob("*") if path.is_file())
    assert path.stat().st_blocks * 512 < 8 << 20


# Many ----------------------------------------------------------------------------------------------------------------


def test_thousands_of_folders(box: Sandbox):
    for number in range(10_000):
        (box.root / f"data/{number % 100}/{number}").mkdir(parents=True)
    box.write("data/99/9999/file", "file")

    box.add("data")
    assert box.clean()
    assert len(stored(box.project().cache.root)) < 210  # equal folders are one object
    shutil.rmtree(box.root / "data")
    (restored,) = box.checkout().restored

    assert restored.added == 10_000
    assert box.clean()


def test_a_path_as_long_as_the_system_takes(box: Sandbox):
    """The path itself, not only the names, is near the limit: folders are opened one name at a time."""
    here = os.open(box.root, os.O_RDONLY)
    folder = here
    os.mkdir("data", dir_fd=here)
    names = ["data", *(["d"] * 500)]
    for depth, name in enumerate(names):
        if depth:
            os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)

    box.add("data")
    assert box.clean()
    shutil.rmtree(box.root / "data")
    box.checkout()

    assert box.clean()


# Formats to come -----------------------------------------------------------------------------------------------------


def test_a_pack_of_a_later_version_is_refused_and_left_alone(box: Sandbox):
    box.write("data/file", "file")
    box.add("data")
    box.commit()
    root = box.project().cache.root
    (pack,) = (root / "packs").iterdir()
    later = bytearray(pack.read_bytes())
    later[len(b"MLXP")] = later[-4] = 2
    name = hash_bytes(bytes(later)).removeprefix("blake3:")
    pack.unlink()
    (root / "packs" / f"{name}.pack").write_bytes(later)
    assert bytes(later[:4]) == FILE_HEADER[:4]
    (box.root / "data/file").unlink()
    box.write("data/other", "other")
    before, records = picture(root), listing(box.root / "data")

    for command in (
        lambda: box.checkout(force=True),
        lambda: box.add("data"),
        lambda: collect(box.project(), now=time.time() + YEAR, reporter=box.heard),
        lambda: examine(box.project(), Scope(), repair=False, dry_run=False, reporter=box.heard),
    ):
        with pytest.raises(
            OutsideError, match="a pack of version 2 in the store, and this mlx understands 1"
        ) as caught:
            command()
        assert caught.value.hint == "upgrade mlx: `pip install --upgrade mlops-cli`"

    assert picture(root) == before
    assert listing(box.root / "data") == records


def test_a_flipped_bit_in_a_version_is_damage_and_no_later_version(box: Sandbox):
    box.write("data/file", "file")
    box.add("data")
    (pack,) = (box.project().cache.root / "packs").iterdir()
    for at in (len(b"MLXP"), -4):
        data = bytearray(pack.read_bytes())
        data[at] ^= 2
        pack.chmod(0o644)
        pack.write_bytes(data)

        (box.root / "data/file").unlink()
        box.checkout()

        assert box.read("data/file") == "file"
        data[at] ^= 2
        pack.write_bytes(data)


def test_a_record_of_a_later_version_stops_every_command_that_needs_it(box: Sandbox):
    box.write("file", "file")
    box.add("file")
    pointer = box.root / "file.mlx"
    pointer.write_text(pointer.read_text().replace("mlx: 1", "mlx: 2"))
    root = box.project().cache.root
    before = picture(root), listing(box.root / ".mlx"), pointer.read_bytes()
    box.write("file", "edited")

    for command in (
        box.checkout,
        lambda: box.add("file"),
        box.states,
        lambda: collect(box.project(), now=time.time() + YEAR, reporter=box.heard),
    ):
        with pytest.raises(RecordError, match="format version 2 is newer than this mlx understands"):
            command()

    assert (picture(root), listing(box.root / ".mlx"), pointer.read_bytes()) == before
    assert box.read("file") == "edited"


def test_a_tree_of_a_later_version_is_refused(box: Sandbox):
    box.write("data/file", "file")
    box.add("data")
    tracked = box.snapshot().tracked()[0]
    cache = box.project().cache
    later = bytearray(cache.read(tracked.digest))
    later[len(b"MLXT")] = 2
    box.write("later", bytes(later))
    box.add("later")
    stale = hash_bytes(bytes(later))
    pointer = box.root / "data.mlx"
    pointer.write_text(pointer.read_text().replace(tracked.digest, stale))
    (box.root / "data/file").unlink()

    with pytest.raises(CorruptObject, match="has version 2, which this mlx does not understand"):
        box.checkout("data")

    assert held(box, stale)
    assert not box.exists("data/file")


# Signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP]], ids=str)
def test_an_add_that_is_interrupted(box: Sandbox, signals: list[signal.Signals]):
    """The file is all hole: it takes seconds to hash, and no room."""
    box.configure("cache.link", "copy")
    (box.root / "data").mkdir()
    with (box.root / "data/sparse").open("wb") as file:
        file.truncate(200 << 30)
    tmp = box.project().cache.root / "tmp"
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_cli", "add", "data"],
        cwd=box.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for(lambda: list(tmp.glob("*/*")))
        for number in signals:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()

    assert (process.returncode, out) == (130, b"")
    assert err == b"error: interrupted\nhint: the same command again goes on from here\n"
    assert not box.exists("data.mlx")
    (box.root / "data/sparse").write_text("small")
    box.add("data")
    assert list(tmp.iterdir()) == []
    assert box.clean()


# What the machine may do to a read -----------------------------------------------------------------------------------


def test_a_disk_that_fails_is_a_sentence_and_costs_nothing(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    box.write("data/file", large("text"))
    box.write("data/small", "small")
    box.add("data")
    shutil.rmtree(box.root / "data")
    readv = os.readv

    def failing(descriptor: int, buffers: list[memoryview]) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", failing)
        box.write("new", large("new") * 20)
        with pytest.raises(OutsideError, match=r"cannot read `.*new`: input/output error") as caught:
            box.add("new")
        assert caught.value.hint == "the disk may be failing; look at the system's log"
    assert os.readv is readv
    assert not box.exists("new.mlx")

    box.checkout()

    assert box.read("data/file") == large("text")


def test_a_lost_cache_is_told_with_the_way_back(tmp_path: Path):
    box = make_project(tmp_path / "project")
    box.write("data/file", "file")
    box.add("data")
    lose_all(box.project().cache.root)
    shutil.rmtree(box.root / "data")

    assert box.states() == {"data": "not_cached"}
