"""The state index: a file is not read again while nothing about it changed, and never believed when something may have."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mlops_cli.workspace.reading as scanning
from mlops_cli.hashing import Digest, hash_bytes, raw_digest
from mlops_cli.store.sources import is_open_for_writing
from mlops_cli.workspace.scan import open_scanner
from mlops_cli.workspace.state import COARSE_GRAIN_NS, GRAIN_NS, Clock, Row, State
from tests.disks import read_only
from tests.objects import large
from tests.workspace.projects import OLD, Sandbox, clone

DAY = 86_400_000_000_000


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that a scan has read since, in order."""
    names: list[str] = []
    real = scanning.hash_file

    def counting(path: str) -> Digest:
        names.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(scanning, "hash_file", counting)
    return names


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows be kept at once: as if the clock's grain had passed since the last write."""
    monkeypatch.setattr(Clock, "is_settled", lambda self, stat: True)


@pytest.fixture
def tracked(box: Sandbox) -> Sandbox:
    for name in ("a", "b", "sub/c"):
        box.write(f"data/{name}", name)
    box.write("lone", "lone")
    box.add("data", "lone")
    return box


@pytest.mark.usefixtures("trusting")
def test_what_is_left_out_of_a_known_folder_takes_nothing_else_along(box: Sandbox) -> None:
    box.write("src/a.py", "a")
    box.write("src/sub/b.py", "b")

    def look() -> object:
        with open_scanner(box.project(), as_code=True) as scanner:
            return scanner.look("src")

    before = look()
    for name in ("src/__pycache__/a.pyc", "src/sub/__pycache__/b.pyc"):
        box.write(name, "bytecode")

    assert look() == before
    assert look() == before


def states(box: Sandbox) -> set[str]:
    return set(box.states().values())


@pytest.mark.usefixtures("trusting")
def test_unchanged_files_are_not_read(tracked: Sandbox, hashed: list[str]):
    assert states(tracked) == {"ok"}
    hashed.clear()
    assert states(tracked) == {"ok"}
    assert hashed == []
    tracked.write("data/b", "B")
    assert tracked.states()["data"] == "modified"
    assert hashed == ["b"]


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_checked_out_files_are_not_read(tracked: Sandbox, hashed: list[str], link: str):
    tracked.write("data/large", large(""))
    tracked.add("data")
    tracked.configure("cache.link", link)
    shutil.rmtree(tracked.root / "data")
    tracked.checkout()
    assert states(tracked) == {"ok"}
    hashed.clear()
    assert states(tracked) == {"ok"}
    assert hashed == []


def test_same_size_edit_right_after_a_look(tracked: Sandbox):
    """No sleep in between: the edit may fall into the same tick of the clock as the look."""
    for number in range(50):
        tracked.write("lone", f"{number:04}")
        assert tracked.states()["lone"] == "modified"
        tracked.add("lone")
        tracked.write("lone", f"{number + 1:04}")
        assert tracked.states()["lone"] == "modified", f"edit {number} was not seen"


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_file_that_is_written_between_its_checkout_and_the_look_at_it(
    tracked: Sandbox, monkeypatch: pytest.MonkeyPatch, link: str
):
    tracked.write("lone", large("lone"))
    tracked.add("lone")
    tracked.configure("cache.link", link)
    place = tracked.root / "lone"
    real = os.rename

    def rename(source: str, target: str, **options: int) -> None:
        real(source, target, **options)
        if target == "lone":
            place.unlink()
            place.write_bytes(b"LONE")

    tracked.write("lone", "other")
    monkeypatch.setattr(os, "rename", rename)
    tracked.checkout("lone", force=True)
    monkeypatch.undo()
    monkeypatch.setattr(Clock, "is_settled", lambda self, stat: True)
    assert tracked.read("lone") == "LONE"
    assert tracked.states()["lone"] == "modified"


def test_what_is_judged_is_the_look_at_the_bytes(tracked: Sandbox, hashed: list[str], monkeypatch: pytest.MonkeyPatch):
    """The file is old when the folder is listed, and young when it is read."""
    monkeypatch.setattr(Clock, "is_settled", lambda self, stat: stat.st_mtime_ns == OLD)
    spied = scanning.hash_file

    def written_meanwhile(path: str) -> Digest:
        if not hashed:
            tracked.write("lone", "LONE")
        return spied(path)

    (tracked.root / "data.mlx").unlink()
    tracked.write("lone", "2222")
    os.utime(tracked.root / "lone", ns=(OLD, OLD))
    monkeypatch.setattr(scanning, "hash_file", written_meanwhile)
    hashed.clear()
    assert tracked.states() == {"lone": "modified"}
    assert hashed == ["lone", "lone"]
    assert tracked.states() == {"lone": "modified"}
    assert hashed == ["lone"] * 3, "a row was kept of a file as young as the scan"


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("learn", ["add", "status"])
@pytest.mark.parametrize("size", [4, 70_000, 2 << 20])
def test_file_that_is_written_through_a_mapping(tracked: Sandbox, learn: str, size: int):
    """A page that is dirty already is written without any change of the file's times."""
    place = tracked.write("lone", b"0" * size)
    _require_leases(place)
    tracked.add("lone")
    with place.open("r+b") as stream:
        pages = mmap.mmap(stream.fileno(), 0)
    pages[0:1] = b"1"
    if learn == "add":
        tracked.add("lone")
    else:
        assert tracked.states()["lone"] == "modified"
    pages[0:1] = b"0" if learn == "status" else b"2"
    assert tracked.states()["lone"] == ("ok" if learn == "status" else "modified")
    pages.close()


@pytest.mark.usefixtures("trusting")
def test_file_that_is_only_read_elsewhere_is_not_read_again(tracked: Sandbox, hashed: list[str]):
    with (tracked.root / "lone").open("rb"):
        states(tracked)
        hashed.clear()
        assert states(tracked) == {"ok"}
    assert hashed == []


def _require_leases(place: Path) -> None:
    with place.open("rb") as stream:
        try:
            fcntl.fcntl(stream, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except (OSError, AttributeError):
            pytest.skip("nobody can be asked here who has a file open for writing")


def test_who_cannot_be_asked_about_is_nobody(tmp_path: Path):
    assert not is_open_for_writing(str(tmp_path)), "folders are not leased"
    assert not is_open_for_writing(str(tmp_path / "absent"))


def test_asking_who_writes_disturbs_nobody_who_does(tmp_path: Path):
    """Opening a file while the question is asked would end the asker by SIGIO, were that not seen to."""
    place = tmp_path / "file"
    place.write_bytes(b"x")
    _require_leases(place)
    code = f"while True: open({str(place)!r}, 'r+b').close()"
    asking = (
        "from mlops_cli.store.sources import is_open_for_writing\n"
        f"for _ in range(3000): is_open_for_writing({str(place)!r})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert subprocess.run([sys.executable, "-c", asking], check=False).returncode == 0
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def edit(place: Path) -> None:
    before = place.stat()
    place.write_bytes(bytes(reversed(place.read_bytes())))
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(place: Path) -> None:
    before = place.stat()
    other = place.with_name("other")
    other.write_bytes(bytes(reversed(place.read_bytes())))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(place)


def swap(place: Path) -> None:
    other = place.with_name("b")
    place.rename(place.with_name("x"))
    other.rename(place)
    place.with_name("x").rename(other)


@pytest.mark.parametrize("how", [edit, replace, swap])
@pytest.mark.parametrize("mtime", [OLD, 0, 4_000_000_000 * 10**9, -DAY, OLD + 1], ids=lambda ns: f"mtime {ns}")
def test_times_that_were_set_back(tracked: Sandbox, how: Callable[[Path], None], mtime: int):
    for name in ("a", "b"):
        tracked.write(f"data/{name}", f"{name}2")
        os.utime(tracked.root / "data" / name, ns=(mtime, mtime))
    tracked.add("data")
    assert tracked.states()["data"] == "ok"
    how(tracked.root / "data/a")
    assert tracked.states()["data"] == "modified"


def test_clock_rules(tmp_path: Path):
    clock = Clock.read(tmp_path / "new")
    fresh = os.stat(tmp_path / "new" / "clock")
    assert not clock.is_settled(fresh)

    def at(ctime_ns: int, device: int = fresh.st_dev) -> os.stat_result:
        whole = ctime_ns // 10**9
        extra = {"st_ctime_ns": ctime_ns, "st_mtime_ns": 0, "st_atime_ns": 0}
        return os.stat_result((0o100644, 1, device, 1, 0, 0, 0, 0, 0, whole, 0, 0, whole), extra)

    now = fresh.st_mtime_ns
    odd = now - (now % 10**9 == GRAIN_NS) - 1
    assert clock.is_settled(at(odd - 2 * GRAIN_NS))
    assert not clock.is_settled(at(now + DAY)), "from the future"
    assert not clock.is_settled(at(odd - 2 * GRAIN_NS, device=fresh.st_dev + 1)), "another file system's clock"
    assert clock.is_settled(at(odd - 2 * COARSE_GRAIN_NS, device=fresh.st_dev + 1))
    assert not clock.is_settled(at((now // 10**9) * 10**9)), "a file system that keeps whole seconds"


def test_folder_that_cannot_be_written_gives_a_clock_that_trusts_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    clock = Clock.read(tmp_path / "file" / "below")
    assert not clock.is_settled(os.stat(tmp_path))


# The file -------------------------------------------------------------------------------------------------------------

ROW = Row(1, 2, 3, 4, raw_digest(hash_bytes(b"x")))


def test_a_row_is_about_a_file_that_differs_in_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    stat = os.stat(tmp_path / "file")
    row = Row(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, ROW.digest)
    assert row.matches(stat)
    for name in ("size", "mtime_ns", "ctime_ns", "inode"):
        assert not row._replace(**{name: getattr(row, name) + 1}).matches(stat), name


def open_state(path: Path, checkout: str = "") -> Iterator[State]:
    state = State.open(path, checkout)
    yield state
    state.close()


def test_rows_are_kept(tmp_path: Path):
    path = tmp_path / "deep" / "state.db"
    for state in open_state(path):
        state.save([(b"data", {b"a": ROW, b"\xff\n": ROW}, ())])
    for state in open_state(path):
        assert state.rows(b"data") == {b"a": ROW, b"\xff\n": ROW}
        assert state.row(b"data", b"a") == ROW
        assert state.row(b"data", b"b") is None
        assert state.rows(b"elsewhere") == {}
        state.save([(b"data", {}, [b"a"])])
        assert state.rows(b"data") == {b"\xff\n": ROW}


def test_checkouts_do_not_see_each_other(tmp_path: Path):
    path = tmp_path / "state.db"
    for state in open_state(path, "one"):
        state.save([(b"data", {b"a": ROW}, ())])
    for state in open_state(path, "two"):
        assert state.rows(b"data") == {}
        state.save([(b"data", {b"b": ROW}, ())])
        state.forget()
        assert state.rows(b"data") == {}
    for state in open_state(path, "one"):
        assert state.rows(b"data") == {b"a": ROW}


def spoil_with_garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def spoil_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def spoil_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_newer(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.execute("DROP TABLE files")
    database.close()


def drop_table(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("DROP TABLE files")
    database.close()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil", [spoil_with_garbage, spoil_half, spoil_bytes, delete, empty, make_newer, drop_table, make_folder]
)
def test_damaged_index_costs_time_only(tracked: Sandbox, spoil: Callable[[Path], None], trusting: None):
    path = tracked.project().local / "state.db"
    states(tracked)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    spoil(path)
    assert states(tracked) == {"ok"}
    tracked.write("data/a", "changed")
    assert tracked.states() == {"data": "modified", "lone": "ok"}
    tracked.add("data")
    assert states(tracked) == {"ok"}


def test_what_is_left_out_of_a_known_folder_takes_nothing_with_it(box: Sandbox, trusting: None):
    box.write("src/a.py", "a")
    box.write("src/sub/b.py", "b")
    (box.root / "src/empty").mkdir()

    def look() -> tuple[int, int]:
        with open_scanner(box.project(), as_code=True) as scanner:
            found = scanner.look("src")
        assert found is not None
        return found.files, len(scanner.read(found.digest))

    before = look(), look()
    for folder in ("src", "src/sub"):
        box.write(f"{folder}/__pycache__/x.pyc", "bytecode")

    assert (look(), look()) == before
    box.write("src/empty/__pycache__/x.pyc", "bytecode")
    with_bytecode_alone = look()
    (box.project().local / "state.db").unlink()
    assert look() == with_bytecode_alone


def test_flipped_bits_in_the_index_cost_time_only(tracked: Sandbox, trusting: None):
    path = tracked.project().local / "state.db"
    states(tracked)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        values = [row[0] for row in database.execute("SELECT rows FROM files UNION SELECT tree FROM folder") if row[0]]
    data = path.read_bytes()
    places = [data.index(value) + len(value) - 5 for value in values]
    assert len(places) > 2
    chance = random.Random(1)
    for at in [*places, *(chance.randrange(len(data)) for _ in range(150))]:
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])

        assert states(tracked) == {"ok"}, at


def test_index_that_is_locked_does_not_stop_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state.db"
    for state in open_state(path):
        state.save([(b"data", {b"a": ROW}, ())])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout=0: real(path, timeout=0))
    for state in open_state(path):
        assert state.rows(b"data") in ({b"a": ROW}, {})
        state.save([(b"data", {b"b": ROW}, ())])
        state.forget()
    other.execute("ROLLBACK")
    other.close()


def test_copied_clone(tracked: Sandbox, tmp_path: Path, hashed: list[str], trusting: None):
    states(tracked)
    copy = tmp_path / "copy"
    shutil.copytree(tracked.root, copy, symlinks=True)
    other = Sandbox(copy)
    place = copy / "data/a"
    before = (tracked.root / "data/a").stat()
    place.write_bytes(b"A")
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert other.states() == {"data": "modified", "lone": "ok"}
    assert tracked.states() == {"data": "ok", "lone": "ok"}


def test_moved_clone_keeps_its_index(tracked: Sandbox, tmp_path: Path, hashed: list[str], trusting: None):
    states(tracked)
    tracked.root.rename(tmp_path / "moved")
    hashed.clear()
    assert states(Sandbox(tmp_path / "moved")) == {"ok"}
    assert hashed == []


def test_worktrees_have_rows_of_their_own(tracked: Sandbox, tmp_path: Path, trusting: None):
    tracked.commit()
    states(tracked)
    tracked.git("worktree", "add", "--quiet", tmp_path / "second")
    second = Sandbox(tmp_path / "second")
    assert second.states() == {"data": "missing", "lone": "missing"}
    second.checkout()
    second.write("data/a", "A")
    assert second.states() == {"data": "modified", "lone": "ok"}
    assert tracked.states() == {"data": "ok", "lone": "ok"}


@pytest.mark.parametrize("with_index", [True, False])
def test_read_only_clone_can_be_looked_at(tracked: Sandbox, with_index: bool):
    local = tracked.project().local
    if with_index:
        states(tracked)
    else:
        for path in local.glob("state.db*"):
            path.unlink()
    tracked.write("data/a", "changed")
    with read_only(local):
        assert tracked.states() == {"data": "modified", "lone": "ok"}


def test_index_of_a_clone_without_data(tracked: Sandbox, tmp_path: Path):
    tracked.commit()
    other = clone(tracked, tmp_path / "clone")
    assert states(other) == {"not_cached"}
